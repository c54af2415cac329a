"""Nodes of the graph that is bounded, and the tape on which a backward bound is carried.

B: batch, K: bounded rows. Values of a node are ``(B, *shape)``, slopes on it ``(B, K, *shape)`` or
``(1, K, *shape)``; on a sequence ``(T, F)`` a slope may cover the first frames only, the rest
being 0.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from popqorn_train.region import Bounds, Region
from popqorn_train.substitutions import Choices

if TYPE_CHECKING:
    from popqorn_train.relaxer import Relaxer

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
        self.pieces: dict[Any, tuple[Bounds, list[Bounds]]] = {}
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
    """

    has_choice = False

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

    def closest(self, point: Tensor, x: Bounds) -> Any:
        """Enclose the function between linear ones that are close at a point, for every row.

        Args:
            point: ``(B, K, *shape)`` value of the input; the first frames of a sequence only.
            x: range of the input.
        """
        raise NotImplementedError

    def sides(self, relaxation: Any) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The linear functions below and above: slopes on every input, then the intercept."""
        lower, upper = relaxation
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


class Piece(Node):
    """A part of another node; slopes on pieces are joined before the whole is visited.

    Attributes:
        place: which of the pieces it is.
    """

    exact = True
    moves = True
    place: int

    def cut(self, x: Tensor) -> Sequence[Tensor]:
        """All pieces of a value ``(B, *shape)`` of the whole."""
        raise NotImplementedError

    @property
    def kind(self) -> Any:
        """What pieces that are cut together share."""
        raise NotImplementedError

    def range(self, *inputs: Bounds) -> Bounds:
        """The piece of the range.

        All pieces are cut at once: the gradient of every cut is as large as the whole.
        """
        known, kind = self.inputs[0].pieces, self.kind
        if kind not in known or known[kind][0] is not inputs[0]:
            ends = zip(*map(self.cut, inputs[0]), strict=True)
            known[kind] = inputs[0], [Bounds(*pair) for pair in ends]
        return known[kind][1][self.place]

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """The piece of the size."""
        return self.cut(inputs[0])[self.place]

    def backward(self, slope: Tensor, tape: "Tape", relaxation: Any) -> Tensor | None:
        """Hand the slope to the whole."""
        tape.add_piece(self, slope)
        return None


class Frame(Piece):
    """Frame ``t`` of a sequence ``(T, F)``."""

    kind = "frames"

    def __init__(self, node: Node, t: int) -> None:
        super().__init__([node], node.shape[1:])
        self.t = self.place = t
        self.time = min(t, node.time)

    def cut(self, x: Tensor) -> Sequence[Tensor]:
        """``(B, T, F)`` to ``(B, F)`` each."""
        return x.unbind(1)


class Span(Piece):
    """One of several neighbouring spans of the last axis.

    Args:
        node: the whole.
        sizes: of all spans.
        place: of this one.
    """

    def __init__(self, node: Node, sizes: tuple[int, ...], place: int) -> None:
        super().__init__([node], (*node.shape[:-1], sizes[place]), node.batch_axis)
        self.sizes, self.place = sizes, place
        self.start = sum(sizes[:place])
        self.stop = self.start + sizes[place]

    @property
    def kind(self) -> tuple[int, ...]:
        """The sizes."""
        return self.sizes

    def cut(self, x: Tensor) -> Sequence[Tensor]:
        """``(B, F)`` to ``(B, stop - start)`` each."""
        return torch.split(x, list(self.sizes), -1)


class Logits(Node):
    """The output of a network, which can build itself again for some of its samples.

    Args:
        node: the logits, of shape ``(C,)``.
        pick: from ``(b,)`` indices of samples, which may repeat, to their logits.
    """

    exact = True

    def __init__(self, node: Node, pick: Callable[[Tensor], "Logits"]) -> None:
        super().__init__([node], node.shape, node.batch_axis)
        self.pick = pick

    def range(self, *inputs: Bounds) -> Bounds:
        """The same."""
        return inputs[0]

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """The same."""
        return inputs[0]

    def backward(self, slope: Tensor, tape: "Tape", relaxation: Any) -> None:
        """Hand the slope on."""
        tape.add(self.inputs[0], slope)


def split(node: Node, *sizes: int) -> list[Node]:
    """Neighbouring spans of the last axis."""
    return [Span(node, sizes, place) for place in range(len(sizes))]


class Tape:
    """Slopes on the nodes still to be visited.

    Attributes:
        batch: number of samples.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._slopes: dict[Node, Tensor] = {}
        self._pieces: dict[Node, dict[Piece, Tensor]] = {}

    def add(self, node: Node, slope: Tensor) -> None:
        """Add to the slope on a node."""
        known = self._slopes.get(node)
        self._slopes[node] = slope if known is None else _sum_of_prefixes(known, slope)

    def add_piece(self, piece: Piece, slope: Tensor) -> None:
        """Add to the slope on a piece of a node."""
        self._pieces.setdefault(piece.inputs[0], {})[piece] = slope

    def drain(self) -> Iterator[tuple[Node, Tensor]]:
        """Yield nodes from last to first, each with its whole slope."""
        while self._slopes or self._pieces:
            node = max([*self._slopes, *self._pieces], key=lambda node: node.index)
            pieces = self._pieces.pop(node, {})
            frames = _gathered(
                (piece.t, slope) for piece, slope in pieces.items() if isinstance(piece, Frame)
            )
            spans = _gathered(
                ((piece.start, piece.stop), slope)
                for piece, slope in pieces.items()
                if isinstance(piece, Span)
            )
            if frames:
                self.add(node, _join_frames(frames))
            if spans:
                self.add(node, _join_spans(spans, node.shape[-1]))
            yield node, self._slopes.pop(node)


def _gathered(slopes: Iterable[tuple[Any, Tensor]]) -> dict[Any, Tensor]:
    """Slopes by place; the same place may be read more than once."""
    found: dict[Any, Tensor] = {}
    for place, slope in slopes:
        found[place] = found[place] + slope if place in found else slope
    return found


def _join_frames(slopes: dict[int, Tensor]) -> Tensor:
    """Stack slopes on frames, zeros where there is none, up to the last one present."""
    batch = max(len(slope) for slope in slopes.values())
    some = next(iter(slopes.values()))
    empty = some.new_zeros(()).expand_as(some)
    parts = [slopes.get(t, empty) for t in range(max(slopes) + 1)]
    return torch.stack([part.expand(batch, *part.shape[1:]) for part in parts], 2)


def _join_spans(slopes: dict[tuple[int, int], Tensor], size: int) -> Tensor:
    """Put slopes on spans, which do not overlap, side by side, zeros in the gaps."""
    batch = max(len(slope) for slope in slopes.values())
    parts, at = [], 0
    for (start, stop), slope in sorted(slopes.items(), key=lambda item: item[0]):
        if start > at:
            parts.append(slope.new_zeros(batch, *slope.shape[1:-1], start - at))
        parts.append(slope.expand(batch, *slope.shape[1:]))
        at = stop
    if at < size:
        parts.append(parts[-1].new_zeros(*parts[-1].shape[:-1], size - at))
    return torch.cat(parts, -1)


def _sum_of_prefixes(one: Tensor, two: Tensor) -> Tensor:
    """Add slopes that may cover a different number of first frames."""
    if one.shape[2:] != two.shape[2:]:
        time = max(one.shape[2], two.shape[2])
        one, two = pad_frames(one, time), pad_frames(two, time)
    return one + two


def pad_frames(slope: Tensor, time: int) -> Tensor:
    """Extend a slope over the first frames by zeros on the others."""
    if slope.shape[2] == time:
        return slope
    rest = slope.new_zeros(*slope.shape[:2], time - slope.shape[2], *slope.shape[3:])
    return torch.cat([slope, rest], 2)
