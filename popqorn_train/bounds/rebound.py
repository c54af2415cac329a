"""Output-constrained re-bounding: a proof by contradiction that one margin is positive.

Suppose an input of the ball has  margin = row . logits <= threshold. For every quantity z that a
nonlinearity reads and every multiplier gamma >= 0, at that input

    z >= z + gamma (margin - threshold) >= minimum over the ball of (z + gamma margin)
                                            - gamma threshold

and the right side is one backward bound that starts at z and at the logits. So ranges shrink,
with them the planes, and with these the bound on the margin. If a range becomes empty, or the
margin is bounded above the threshold, then no such input exists (frontier.md 4).

Kotha et al., "Provably bounding neural network preimages", NeurIPS 2023, for the idea.

B: batch, of pairs of a sample and a row; K: bounded rows, H: units, M: chosen units.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.backward import Enclosure, lower_bound, sizes_of, visits
from popqorn_train.bounds.node import Logits, Node, Nonlinear
from popqorn_train.bounds.picking import twins
from popqorn_train.bounds.relaxer import Relaxation, Relaxer, Rows
from popqorn_train.nested import map_nested
from popqorn_train.perturbations.region import Bounds

_FIRST = 0.4  # multiplier, in half widths of the quantity per quarter of the margin's width
_BAND = 1.5  # half width of a band of an octagon, in half widths of the box
_Key = tuple[Any, ...]


@dataclass(frozen=True)
class Budget:
    """How much re-bounding may cost, in counts.

    Attributes:
        rounds: how often ranges are bounded again.
        units: of every product, those where its planes lie farthest apart; None for all.
        frames: products of the last frames only; None for all. Activations of one argument cost
            little: all of them are bounded again.
    """

    rounds: int
    units: int | None
    frames: int | None

    def __post_init__(self) -> None:
        for name in ("rounds", "units", "frames"):
            count = getattr(self, name)
            if count is None and name != "rounds":
                continue
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"`{name}` must be a positive whole number, got {count!r}.")


class BadRegion:
    """What is known of the inputs at which a margin is at most the threshold.

    Nothing in it holds for other inputs, so its ranges and planes are no ``Enclosure`` and are
    not given away: it answers only whether it is empty, and how small the margin can be in it.

    Args:
        output: logits of the pairs, which all take the same way through the graph (picking.py).
        row: ``(B, C)`` the margins.
        found: ranges and relaxations that hold on the whole ball; it is copied.
        bounds: of the margins on the whole ball, ``(B,)`` each.

    Attributes:
        threshold: ``(B,)`` the margin that inputs of the region do not exceed: it just stands out
            from the rounding, so that what is proved is positive.
        spread: ``(B,)`` a quarter of the margin's range, the scale of multipliers.
        empty: ``(B,)`` whether there is no such input.
    """

    def __init__(self, output: Logits, row: Tensor, found: Enclosure, bounds: Bounds) -> None:
        numbers = torch.finfo(row.dtype)
        self._output, self._row, self._bounds = output, row, bounds
        self.threshold = threshold_of(bounds)
        self.spread = ((bounds.upper - bounds.lower) / 4).clamp(min=numbers.tiny)
        self._found = Enclosure(dict(found.ranges), dict(found.relaxations))
        self._sizes = sizes_of(output, found)
        self._multipliers: dict[_Key, Tensor] = {}
        self.empty = torch.zeros_like(self.threshold, dtype=torch.bool)

    @classmethod
    def of(
        cls, output: Logits, found: Enclosure, samples: Tensor, row: Tensor, bounds: Bounds
    ) -> "BadRegion":
        """The regions of pairs: ``(B,)`` indices of samples, which may repeat, and their rows."""
        picked = output.pick(samples)
        return cls(picked, row, picked_enclosure(found, samples, twins(output, picked)), bounds)

    def pick(self, chosen: Tensor) -> "BadRegion":
        """The regions of some pairs."""
        output = self._output.pick(chosen)
        new = twins(self._output, output)
        bounds = Bounds(*(end[chosen] for end in self._bounds))
        picked = BadRegion(
            output, self._row[chosen], picked_enclosure(self._found, chosen, new), bounds
        )
        picked.empty = self.empty[chosen]
        picked._multipliers = {
            tuple(new.get(part, part) for part in key): value[chosen]
            for key, value in self._multipliers.items()
        }
        return picked

    def least_margin(self) -> Tensor:
        """Lower bound ``(B,)`` on the margin in the region."""
        terms = [(self._output, self._row[:, None])]
        return lower_bound(terms, self._found, sizes=self._sizes)[:, 0]

    def tighten(self, relaxation: Relaxation, budget: Budget, step: float) -> None:
        """One round: bound ranges again, frame by frame, and make new planes.

        Args:
            relaxation: how to enclose products.
            budget: which frames and units.
            step: factor by which multipliers are varied, above 1.
        """
        slopes = self._slopes_of_margin()
        last = max((node.time for node in slopes), default=-1)
        first = 0 if budget.frames is None else last + 1 - budget.frames
        for time in range(last + 1):
            chosen = {}
            for node in slopes:
                if node.time == time and len(node.inputs) == 1:
                    chosen[node] = self._widest(node, slopes[node], None)
                elif node.time == time >= first:
                    products = len(node.inputs) - 1  # the next state of a GRU is a sum of two
                    count = budget.units and budget.units * products
                    chosen[node] = self._widest(node, slopes[node], count)
            if chosen:
                self._bound_inputs(chosen, step)
            for node, units in chosen.items():
                self._relax(node, units, relaxation, step)

    def _slopes_of_margin(self) -> dict[Nonlinear, Tensor]:
        """Every nonlinear node of one frame, and the slopes ``(B, H)`` of the margin on it."""
        terms, found = [(self._output, self._row[:, None])], {}
        for node, slope, tape in visits(terms, len(self._row)):
            node.backward(slope, tape, self._found.relaxations.get(node))
            flat = len(node.shape) == 1 and all(x.shape == node.shape for x in node.inputs)
            if isinstance(node, Nonlinear) and flat:
                found[node] = slope[:, 0].expand(len(self._row), -1)
        return found

    def _widest(self, node: Nonlinear, slope: Tensor, count: int | None) -> Tensor:
        """Units ``(B, M)`` whose two sides, weighted by the margin, lie farthest apart."""
        batch, units = slope.shape
        if count is None or count >= units:
            return torch.arange(units, device=slope.device).expand(batch, -1)
        centers = [(bounds.lower + bounds.upper) / 2 for bounds in self._inputs(node)]
        gap = node.gap(self._found.relaxations[node], *centers)
        return (slope.abs() * gap).topk(count, 1).indices

    def _inputs(self, node: Node) -> list[Bounds]:
        batch = len(self._row)
        ranges = [self._found.ranges[parent] for parent in node.inputs]
        return [Bounds(*(end.expand(batch, -1) for end in bounds)) for bounds in ranges]

    def _bound_inputs(self, chosen: dict[Nonlinear, Tensor], step: float) -> None:
        """Bound both ends of everything that the chosen units read, in one backward pass."""
        parts = [
            (parent, units, bounds)
            for node, units in chosen.items()
            for parent, bounds in zip(node.inputs, self._inputs(node), strict=True)
            if parent.time >= 0  # what does not move has its range
        ]
        total = sum(2 * units.shape[1] for _, units, _ in parts)
        terms, halves, places, start, size = [], [], [], 0, 0
        for parent, units, bounds in parts:
            unit = _one_hot(units, parent.shape[-1], self._row)
            terms.append((parent, _embedded(torch.cat([unit, -unit], 1), start, total)))
            halves += 2 * [((bounds.upper - bounds.lower) / 2).gather(1, units)]
            places += [units + size, units + size + parent.shape[-1]]
            start, size = start + 2 * units.shape[1], size + 2 * parent.shape[-1]
        query = _Query((*chosen,), terms, torch.cat(halves, 1), torch.cat(places, 1), size)
        lower = self._best(query, step)
        blocks = torch.split(lower, [2 * units.shape[1] for _, units, _ in parts], 1)
        for (parent, units, _), block in zip(parts, blocks, strict=True):
            self._cut(parent, units, *block.chunk(2, 1))

    def _cut(self, node: Node, units: Tensor, lower: Tensor, minus_upper: Tensor) -> None:
        """Intersect the range of a node with new bounds on some units."""
        low, high = (end.expand(len(self._row), -1) for end in self._found.ranges[node])
        low = low.scatter_reduce(1, units, lower, "amax")
        high = high.scatter_reduce(1, units, -minus_upper, "amin")
        # Rounding errors are already taken off: where the ends cross, nothing is left.
        self.empty = self.empty | (low > high).any(1)
        self._found.ranges[node] = Bounds(torch.minimum(low, high), torch.maximum(low, high))

    def _relax(self, node: Nonlinear, units: Tensor, relaxation: Relaxation, step: float) -> None:
        """New planes for the chosen units of a node; the others keep theirs."""
        size = node.shape[-1]
        pairs = itertools.count()

        def bands(terms: Rows) -> Tensor:
            width = self._row.new_full((len(units), 4 * units.shape[1]), _BAND)
            places = torch.cat([units + size * index for index in range(4)], 1)
            return self._best(_Query((node, next(pairs)), terms, width, places, 4 * size), step)

        ranges = [Bounds(*(end.gather(1, units) for end in b)) for b in self._inputs(node)]
        unit = _one_hot(units, size, self._row)
        new = node.relax(Relaxer(relaxation, bands, unit), *ranges)
        self._found.relaxations[node] = _merged(self._found.relaxations[node], new, units)

    def _best(self, query: "_Query", step: float) -> Tensor:
        """Bounds ``(B, K)``: the better of two multipliers around the best so far."""
        key, terms, half, places, size = query
        if key not in self._multipliers:
            self._multipliers[key] = half.new_full((len(half), size), _FIRST)
        known = self._multipliers[key].gather(1, places)
        tried = torch.stack([known / step, known * step], 1)  # (B, 2, K)
        gamma = (tried * (half / self.spread[:, None])[:, None]).flatten(1)
        doubled = [(node, slope.repeat(1, 2, 1)) for node, slope in terms]
        constrained = [(self._output, gamma[..., None] * self._row[:, None]), *doubled]
        bounds = lower_bound(constrained, self._found, sizes=self._sizes)
        bounds = bounds - gamma * self.threshold[:, None]
        bounds = torch.where(bounds.isfinite(), bounds, -math.inf)
        values, best = bounds.reshape(len(half), 2, -1).max(1)
        used = tried.gather(1, best[:, None])[:, 0]
        self._multipliers[key] = self._multipliers[key].scatter(1, places, used)
        return values


class _Query(NamedTuple):
    """Rows to be bounded from below.

    Attributes:
        key: what they are about.
        terms: nodes and slopes ``(B, K, H)`` on them.
        half: ``(B, K)`` half widths of what is bounded.
        places: ``(B, K)`` where the multiplier of each row is kept.
        size: the number of places.
    """

    key: _Key
    terms: Rows
    half: Tensor
    places: Tensor
    size: int


def threshold_of(bounds: Bounds) -> Tensor:
    """A margin ``(B,)`` that just stands out from the rounding of margins within these bounds."""
    return 4 * torch.finfo(bounds.upper.dtype).eps * bounds.upper.clamp(min=0)


def _one_hot(units: Tensor, size: int, like: Tensor) -> Tensor:
    """``(B, M)`` units to ``(B, M, H)``."""
    return torch.nn.functional.one_hot(units, size).to(like)


def _embedded(rows: Tensor, start: int, total: int) -> Tensor:
    """Rows ``(B, k, H)`` among ``total`` rows, the others 0."""
    return torch.nn.functional.pad(rows, (0, 0, start, total - start - rows.shape[1]))


def _merged(old: Any, new: Any, units: Tensor) -> Any:
    """A relaxation ``(B, H)`` with other values ``(B, M)`` at some units."""
    if isinstance(old, Tensor):
        return old.expand(len(units), -1).scatter(1, units, new)
    parts = [_merged(*pair, units) for pair in zip(old, new, strict=True)]
    return type(old)(*parts) if hasattr(old, "_fields") else tuple(parts)


def picked_enclosure(found: Enclosure, chosen: Tensor, new: dict[Node, Node]) -> Enclosure:
    """An enclosure of the same network on some samples.

    Args:
        found: of all samples.
        chosen: ``(b,)`` indices.
        new: the nodes on the chosen samples.
    """
    batch = max(len(bounds.lower) for bounds in found.ranges.values())

    def pick(x: Tensor) -> Tensor:
        return x.expand(batch, *x.shape[1:])[chosen]

    return Enclosure(
        {new[node]: map_nested(bounds, Tensor, pick) for node, bounds in found.ranges.items()},
        {new[node]: map_nested(planes, Tensor, pick) for node, planes in found.relaxations.items()},
    )
