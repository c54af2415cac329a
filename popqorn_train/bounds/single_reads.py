"""Affine nodes of which every entry reads a single coordinate: operations that move and scale.

Such an operation is linear up to a constant, so its backward rule is the transpose, which autograd
knows.

B: batch, K: bounded rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from popqorn_train.bounds.affine import full
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.single import reads_single, same_for_all
from popqorn_train.bounds.tape import Tape
from popqorn_train.kernels.library import is_recorded
from popqorn_train.perturbations.region import Bounds, dot


class Affine(Node):
    """Any affine operation of which every output reads a single coordinate.

    That covers moving, selecting, joining and scaling. The ends of the range are then the images
    of the ends, whatever the sign of the coefficient is. It is not taken on trust (single.py).

    Args:
        function: maps the values of ``inputs``, in the user's layout, to the result.
        inputs: the nodes it reads.
        shape: of the result, without the batch.
        batch_axis: of the result.

    Raises:
        RuntimeError: an output reads several coordinates.
    """

    exact = True

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[Node],
        shape: Sequence[int],
        batch_axis: int,
    ) -> None:
        super().__init__(inputs, shape, batch_axis)
        self.function = function
        self._shared: bool | None = None
        shapes = [node.shape for node in self.inputs]
        if self.region is not None and not reads_single(self._run, shapes, self.region.value):
            raise RuntimeError("an entry of its result adds up several entries of what moves")

    def _run(self, *values: Tensor) -> Tensor:
        """The function on values with the batch first."""
        pairs = zip(values, self.inputs, strict=True)
        theirs = [value.movedim(0, node.batch_axis) for value, node in pairs]
        return self.function(*theirs).movedim(self.batch_axis, 0)

    def range(self, *inputs: Bounds) -> Bounds:
        """Images of the ends, in order."""
        one = self._run(*[bounds.lower for bounds in inputs])
        two = self._run(*[bounds.upper for bounds in inputs])
        return Bounds(torch.minimum(one, two), torch.maximum(one, two))

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """Image without the constant, and the constant."""
        constant = self._run(*[torch.zeros_like(x) for x in inputs])
        return (self._run(*inputs) - constant).abs() + constant.abs()

    def backward(self, slope: Tensor, tape: Tape, relaxation: Any) -> Tensor:
        """Transpose of the linear part; the constant part is the image of 0."""
        zeros = [slope.new_zeros(tape.batch, *node.shape) for node in self.inputs]
        constant, transpose, *_ = torch.func.vjp(self._run, *zeros)
        slope = full(slope, self.shape)
        if slope.shape[0] == 1 < slope.shape[1] and tape.batch > 1 and self._is_shared(zeros[0]):
            parts = _of_rows(transpose, slope, tape.batch)
        else:
            slope = slope.expand(tape.batch, -1, *self.shape)
            parts = torch.vmap(transpose, in_dims=1, out_dims=1)(slope)
        for node, part in zip(self.inputs, parts, strict=True):
            tape.add(node, part)
        return dot(slope, constant)

    def linear(self, *x: Tensor) -> Tensor | None:
        """The image of any number of values without the constant; None if samples differ in it."""
        if self.region is None:
            return None
        batch, like = len(self.region.value), self.region.value
        zeros = [like.new_zeros(batch, *node.shape) for node in self.inputs]
        if not self._is_shared(zeros[0]):
            return None
        # The linear part as the transpose of its transpose: users' functions know no batches.
        constant, transpose, *_ = torch.func.vjp(self._run, *zeros)
        _, again, *_ = torch.func.vjp(transpose, torch.zeros_like(constant))
        count = max(len(one) for one in x)
        filled = tuple(_in_batches(one.expand(count, *one.shape[1:]), batch) for one in x)
        (found,) = torch.vmap(lambda *columns: again(columns))(*filled)
        return found.flatten(0, 1)[:count]

    def _is_shared(self, like: Tensor) -> bool:
        """Whether the linear part is known to be the same for all samples; looked at once."""
        if is_recorded(like):  # nothing can be looked at
            return False
        if self._shared is None:
            shapes = [node.shape for node in self.inputs]
            self._shared = same_for_all(self._run, shapes, like)
        return self._shared


def _of_rows(
    transpose: Callable[[Tensor], tuple[Tensor, ...]], slope: Tensor, batch: int
) -> list[Tensor]:
    """A transpose that does the same to all samples, on rows in their places.

    Args:
        transpose: takes ``(B, *shape)``.
        slope: ``(1, K, *shape)``.
        batch: B.

    Returns:
        ``(1, K, ...)`` for every argument.
    """
    parts = torch.vmap(transpose)(_in_batches(slope[0], batch))
    return [part.flatten(0, 1)[None, : slope.shape[1]] for part in parts]


def _in_batches(x: Tensor, batch: int) -> Tensor:
    """``(n, *shape)`` cut to batches ``(m, B, *shape)``, the last one filled up by zeros."""
    missing = x.new_zeros(-len(x) % batch, *x.shape[1:])
    return torch.cat([x, missing]).view(-1, batch, *x.shape[1:])
