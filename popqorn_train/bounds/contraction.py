"""Sums of products of what moves with constants: products of matrices, cumulative sums.

B: batch, K: bounded rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from popqorn_train.bounds.affine import full
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.tape import Tape
from popqorn_train.perturbations.region import Bounds, around


class Contraction(Node):
    """``function(x, *weights)``: sums of products of one entry of each, with no constant.

    Args:
        function: takes values in the user's layout; multilinear, as products of matrices are.
        x: node.
        weights: what does not move.
        shape: of the result, without the batch.
        batch_axis: of the result.

    Raises:
        RuntimeError: an entry of a sample reads other samples.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        x: Node,
        weights: Sequence[Tensor],
        *,
        shape: Sequence[int],
        batch_axis: int,
    ) -> None:
        super().__init__([x], shape, batch_axis)
        self.function, self.weights = function, tuple(weights)
        self._rises = all(not w.requires_grad and bool((w >= 0).all()) for w in self.weights)
        if self.region is not None and not self._keeps_samples(self.region.value):
            raise RuntimeError("an entry of its result adds up entries of several samples")
        self._shared = self.region is not None and self._takes_another_batch(self.region.value)

    def _run(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """The function on a value with the batch first."""
        (node,) = self.inputs
        return self.function(x.movedim(0, node.batch_axis), *weights).movedim(self.batch_axis, 0)

    @torch.no_grad()
    def _keeps_samples(self, like: Tensor) -> bool:
        """Whether numbers that differ from sample to sample stay with their samples."""
        batch, numbers = len(like), torch.arange(1, len(like) + 1, device=like.device).double()
        ones = [torch.ones_like(weight, dtype=torch.float64) for weight in self.weights]
        every = numbers.new_ones(batch, *self.inputs[0].shape)
        counts = self._run(every, ones)
        own = numbers.sqrt().view(-1, *[1] * len(self.inputs[0].shape))
        found = self._run(own * every, ones)
        expected = numbers.sqrt().view(-1, *[1] * len(self.shape)) * counts
        near = 4 * torch.finfo(found.dtype).eps * counts * expected  # of sums of that many terms
        return len(found) == batch and bool(((found - expected).abs() <= near).all())

    @torch.no_grad()
    def _takes_another_batch(self, like: Tensor) -> bool:
        """Whether it runs on one more sample too: then no weight belongs to one of them."""
        more = len(like) + 1
        try:
            found = self._run(like.new_ones(more, *self.inputs[0].shape), self.weights)
        except RuntimeError:
            return False
        return len(found) == more

    def range(self, *inputs: Bounds) -> Bounds:
        """Centre and radius through the weights; the ends themselves if no weight is negative."""
        (x,) = inputs
        if self._rises:
            return Bounds(*(self._run(end, self.weights) for end in x))
        center = self._run((x.lower + x.upper) / 2, self.weights)
        return around(center, self.size(None, (x.upper - x.lower) / 2))

    def linear(self, x: Tensor) -> Tensor | None:
        """The image of any number of values; None if a weight belongs to a sample."""
        return self._run(x, self.weights) if self._shared else None

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """Absolute weights."""
        return self._run(inputs[0], [weight.abs() for weight in self.weights])

    def backward(self, slope: Tensor, tape: Tape, relaxation: Any) -> None:
        """Transpose."""
        (x,) = self.inputs
        slope = full(slope, self.shape)
        if self._shared:  # then rows are as good as samples
            (part,) = self._transposed(slope.shape[0] * slope.shape[1], slope)(slope.flatten(0, 1))
            tape.add(x, part.view(*slope.shape[:2], *x.shape))
            return
        slope = slope.expand(tape.batch, -1, *self.shape)
        (part,) = torch.vmap(self._transposed(tape.batch, slope), in_dims=1, out_dims=1)(slope)
        tape.add(x, part)

    def _transposed(self, batch: int, like: Tensor) -> Callable[[Tensor], tuple[Tensor]]:
        """The transpose on a batch of this size."""
        zeros = like.new_zeros(batch, *self.inputs[0].shape)
        _, transpose, *_ = torch.func.vjp(lambda x: self._run(x, self.weights), zeros)
        return transpose
