"""Nodes of the graph that is bounded.

B: batch, K: bounded rows. Values of a node are ``(B, *shape)``, slopes on it ``(B, K, *shape)`` or
``(1, K, *shape)``; on a sequence ``(T, F)`` a slope may cover the first frames only, the rest
being 0.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from popqorn_train.perturbations.region import Bounds, Region
from popqorn_train.perturbations.substitutions import Choices

if TYPE_CHECKING:
    from popqorn_train.bounds.relaxer import Relaxer
    from popqorn_train.bounds.tape import Tape

_created = itertools.count()


class Node:
    """A quantity that depends on the perturbed input.

    Attributes:
        inputs: the nodes it is computed from.
        shape: of one sample, without the batch axis.
        batch_axis: where the user's code has the batch; all values here have it first.
        affine: whether it is an affine function of the perturbed input.
        exact: whether ranges of coordinates carry over without loss (it only moves or scales
            single coordinates).
        mirrors: whether it is minus its input.
        moves: whether it only moves numbers, without rounding.
        drifts: whether it is its input, give or take what does not depend on the input.
        time: the last frame it depends on; -1 if on none.
        state: ``"h"`` or ``"c"`` of a recurrent layer, and after how many earlier steps; None for
            everything else.
        pieces: for every kind of pieces, the range last cut and theirs.
        region: what moves the input it depends on; None if it depends on none.
    """

    exact = False
    mirrors = False
    state: tuple[str, int] | None = None
    moves = False
    drifts = False

    def __init__(self, inputs: Iterable["Node"], shape: Iterable[int], batch_axis: int = 0) -> None:
        self.inputs = tuple(inputs)
        self.shape = tuple(shape)
        self.batch_axis = batch_axis
        self.affine, self.time = True, -1
        self.region: Region | Choices | None = None
        for node in self.inputs:
            self.affine = self.affine and node.affine
            self.time = max(self.time, node.time)
            self.region = node.region or self.region
        self.slices: dict[Any, tuple[Bounds, list[Bounds]]] = {}
        self.index = next(_created)  # nodes are created in topological order

    def range(self, *inputs: Bounds) -> Bounds:
        """Interval bound from the ranges of the inputs."""
        raise NotImplementedError

    def range_from_ball(self) -> Bounds | None:
        """Range straight from the perturbation, if this node knows a quick way."""
        return None

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """Sum of the absolute values of the terms that ``backward`` adds up.

        Args:
            relaxation: of this node, if it is nonlinear.
            inputs: greatest absolute values of the inputs, ``(B, *shape)``.
        """
        raise NotImplementedError

    def backward(self, slope: Tensor, tape: "Tape", relaxation: Any) -> Tensor | None:
        """Turn ``slope . self`` into slopes on the inputs, added to the tape.

        Returns:
            The constant it leaves, ``(B, K)``; None for 0.
        """
        raise NotImplementedError


class Nonlinear(Node):
    """A node that needs a relaxation, made from the ranges of its inputs.

    Attributes:
        has_choice: whether ``closest`` gives rows lines of their own.
        kept: whether the next step of its layer reads it in a product, if there is a next step.
        partial: whether it is undefined somewhere, as a logarithm of 0; its bounds are NaN there.
    """

    has_choice = False
    partial = False
    kept = False

    @property
    def kind(self) -> Hashable:
        """Equal for nodes that one call of ``relax`` encloses, their batches put together."""
        return self

    def __init__(self, inputs: Iterable[Node], shape: Iterable[int], batch_axis: int = 0) -> None:
        super().__init__(inputs, shape, batch_axis)
        self.affine = False

    def relax(self, relaxer: "Relaxer", *inputs: Bounds) -> Any:
        """Enclose the function between linear ones on these ranges."""
        raise NotImplementedError

    def closest(self, points: Sequence[Tensor], ranges: Sequence[Bounds]) -> Any:
        """Enclose the function between linear ones that are close at a point, for every row.

        Args:
            points: ``(B, K, *shape)`` value of every input; the first frames of a sequence only.
            ranges: of the inputs.
        """
        raise NotImplementedError

    def sides(self, relaxation: Any) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The linear functions below and above: slopes on every input, then the intercept."""
        lower, upper = relaxation
        return lower, upper

    def at(self, relaxation: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What the linear functions below and above are worth, ``(B, *shape)`` each."""
        lower, upper = (
            sum((slope * x for slope, x in zip(side[:-1], inputs, strict=True)), side[-1])
            for side in self.sides(relaxation)
        )
        return lower, upper

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """Terms of the larger side."""
        sums = [
            sum(
                (slope.abs() * x for slope, x in zip(side[:-1], inputs, strict=True)),
                side[-1].abs(),
            )
            for side in self.sides(relaxation)
        ]
        return torch.maximum(*sums)

    def gap(self, relaxation: Any, *centers: Tensor) -> Tensor:
        """Distance between both sides at a point, ``(B, *shape)``."""
        lower, upper = self.sides(relaxation)
        slopes = zip(lower[:-1], upper[:-1], centers, strict=True)
        return sum(((above - below) * x for below, above, x in slopes), upper[-1] - lower[-1])


class Root(Node):
    """The perturbed tensor as the network first reads it, ``(T, N)`` a sample."""

    exact = True

    def __init__(self, region: Region | Choices, batch_axis: int = 0) -> None:
        super().__init__((), region.value.shape[1:], batch_axis)
        self.region: Region | Choices = region
        self.time = self.shape[0] - 1

    def range(self, *inputs: Bounds) -> Bounds:
        """Range of every coordinate."""
        return self.region.coordinate_bounds()

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """Greatest absolute value of every coordinate."""
        lower, upper = self.region.coordinate_bounds()
        return torch.maximum(lower.abs(), upper.abs())

    def backward(self, slope: Tensor, tape: "Tape", relaxation: Any) -> Tensor:
        """Concretise: the least value over the perturbation."""
        return self.region.minimum(slope)


class Logits(Node):
    """The output of a network, which can build itself again for some of its samples.

    Args:
        node: the logits, of shape ``(C,)``.
        pick: from ``(b,)`` indices of samples, which may repeat, to their logits, by the same
            nodes in the same order.
        anew: likewise, by the nodes that these samples need; None takes ``pick``.
    """

    exact = True

    def __init__(
        self,
        node: Node,
        pick: Callable[[Tensor], "Logits"],
        anew: Callable[[Tensor], "Logits"] | None = None,
    ) -> None:
        super().__init__([node], node.shape, node.batch_axis)
        self.pick, self.anew = pick, anew or pick

    def range(self, *inputs: Bounds) -> Bounds:
        """The same."""
        return inputs[0]

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """The same."""
        return inputs[0]

    def backward(self, slope: Tensor, tape: "Tape", relaxation: Any) -> None:
        """Hand the slope on."""
        tape.add(self.inputs[0], slope)
