"""The tape on which a backward bound is carried: slopes on nodes, and on pieces of nodes.

B: batch, K: bounded rows. Slopes on a node are ``(B, K, *shape)`` or ``(1, K, *shape)``; on a
sequence ``(T, F)`` one may cover the first frames only, the rest being 0.
"""

import functools
import heapq
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from popqorn_train.bounds.node import Node
from popqorn_train.bounds.slices import Frame, NodeSlice, Span
from popqorn_train.perturbations.region import for_batch


class Tape:
    """Slopes on the nodes still to be visited.

    Attributes:
        batch: number of samples.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._slopes: dict[Node, Tensor] = {}
        self._slices: dict[Node, dict[NodeSlice, Tensor]] = {}
        self._order: list[tuple[int, Node]] = []  # a heap, last node first

    def add(self, node: Node, slope: Tensor) -> None:
        """Add to the slope on a node."""
        self._see(node)
        self._put(node, slope)

    def add_slice(self, part: NodeSlice, slope: Tensor) -> None:
        """Add to the slope on a piece of a node."""
        self._see(part.inputs[0])
        self._slices.setdefault(part.inputs[0], {})[part] = slope

    def _put(self, node: Node, slope: Tensor) -> None:
        known = self._slopes.get(node)
        self._slopes[node] = slope if known is None else _sum_of_prefixes(known, slope)

    def _see(self, node: Node) -> None:
        if node not in self._slopes and node not in self._slices:
            heapq.heappush(self._order, (-node.index, node))

    def drain(self) -> Iterator[tuple[Node, Tensor]]:
        """Yield nodes from last to first, each with its whole slope."""
        while self._order:
            _, node = heapq.heappop(self._order)
            if node in self._slices:
                self._add_pieces(node, self._slices.pop(node))
            yield node, self._slopes.pop(node)

    def _add_pieces(self, node: Node, slices: dict[NodeSlice, Tensor]) -> None:
        """Add the slopes on pieces of a node."""
        frames = _gathered(
            (part.t, slope) for part, slope in slices.items() if isinstance(part, Frame)
        )
        spans = _gathered(
            ((part.start, part.stop), slope)
            for part, slope in slices.items()
            if isinstance(part, Span)
        )
        if frames:
            self._put(node, _join_frames(frames))
        if spans:
            self._put(node, _join_spans(spans, node.shape[-1]))


def _gathered(slopes: Iterable[tuple[Any, Tensor]]) -> dict[Any, Tensor]:
    """Slopes by place; the same place may be read more than once."""
    found: dict[Any, Tensor] = {}
    for place, slope in slopes:
        found[place] = found[place] + slope if place in found else slope
    return found


def _join_frames(slopes: dict[int, Tensor]) -> Tensor:
    """Stack slopes on frames, zeros where there is none, up to the last one present."""
    batch = max([slope.shape[0] for slope in slopes.values()])
    places, some = range(max(slopes) + 1), next(iter(slopes.values()))
    if len(slopes) < len(places):
        empty = some.new_zeros(()).expand_as(some)
        slopes = {t: slopes.get(t, empty) for t in places}
    parts = [slopes[t] for t in places]
    return torch.stack([for_batch(part, batch) for part in parts], 2)


def _join_spans(slopes: dict[tuple[int, int], Tensor], size: int) -> Tensor:
    """Put slopes on spans side by side, zeros in the gaps; where spans overlap they add up."""
    places = sorted(slopes)
    if any(start < stop for (_, stop), (start, _) in itertools.pairwise(places)):
        return _sum_of_padded(slopes, size)
    batch = max(len(slope) for slope in slopes.values())
    parts, at = [], 0
    for (start, stop), slope in sorted(slopes.items(), key=lambda item: item[0]):
        if start > at:
            parts.append(slope.new_zeros(batch, *slope.shape[1:-1], start - at))
        parts.append(for_batch(slope, batch))
        at = stop
    if at < size:
        parts.append(parts[-1].new_zeros(*parts[-1].shape[:-1], size - at))
    return torch.cat(parts, -1)


def _sum_of_padded(slopes: dict[tuple[int, int], Tensor], size: int) -> Tensor:
    """Sum of slopes on spans of a last axis of this size."""
    padded = [
        torch.nn.functional.pad(slope, (start, size - stop))
        for (start, stop), slope in slopes.items()
    ]
    return functools.reduce(torch.add, padded)


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
