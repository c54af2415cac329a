"""One bound of all gaps at once, and a proof by contradiction that is made of it.

Planes answer for every unit by itself, in the worst case of each. Here a margin is bounded by one
quadratic function of everything that moves (quadratics.py), whose least value is bounded by
its dual (dual.py): what the gaps of many units have in common is used.

Where that does not suffice, suppose an input has a margin of at most the threshold. It lies in an
ellipsoid (ellipsoid.py), in which ranges are smaller; with these, forms and quadratics are made
anew, until the margin is bounded above the threshold, or nothing shrinks.

B: batch, of pairs of a sample and a row.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from popqorn_train.bounds.ascent import learn
from popqorn_train.bounds.backward import Enclosure
from popqorn_train.bounds.dual import Lowest, lowest, search
from popqorn_train.bounds.ellipses import Ellipse
from popqorn_train.bounds.ellipsoid import Ellipsoid
from popqorn_train.bounds.enclosure import intersect
from popqorn_train.bounds.joint_pass import JointPass, Place
from popqorn_train.bounds.joint_rows import flat
from popqorn_train.bounds.node import Logits, Node
from popqorn_train.bounds.quadratics import NONE, Margin, Multipliers, QuadraticForm
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.perturbations.region import Bounds

_WIDER = (1.0, 1.05)  # weights of the ellipsoids: those of the bound leave some directions open
_SHRUNK = 0.995  # of a width, what must not be left for another round
_GAIN = 0.06  # of what a margin lacks, the least gain of a round for another one
_SURE, _MORE = 1e-5, 1e-7  # by which weights found in float32 are raised, in themselves and means
_CLEARLY = 1e-3  # above the threshold, in the scale of the form: there the search ends


@dataclass(frozen=True)
class Jointly:
    """How much joint bounds may cost.

    Attributes:
        rounds: how often they are made, within ranges of the round before.
        hope: how far below 0 a margin may be bounded by planes, in its upper bounds, to be tried.
        trials: factorisations that multipliers may be learned with in every round.
        gates: whether networks with gates are tried, which cost more.
    """

    rounds: int
    hope: float
    trials: int = 0
    gates: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1:
            raise ValueError(f"`rounds` must be a positive whole number, got {self.rounds!r}.")
        if isinstance(self.trials, bool) or not isinstance(self.trials, int) or self.trials < 0:
            raise ValueError(f"`trials` must be a whole number from 0 on, got {self.trials!r}.")
        if not self.hope > 0:
            raise ValueError(f"`hope` must be above 0, got {self.hope!r}.")


class JointRegion:
    """What is known of the inputs at which a margin is at most the threshold; see ``BadRegion``.

    Args:
        output: logits of the pairs, which all take the same way through the graph (picking.py).
        row: ``(B, C)`` the margins.
        found: ranges that hold on the whole ball.
        threshold: ``(B,)`` not negative.
        relaxation: of nonlinearities without quadratics.
        trials: see ``Jointly``.
    """

    def __init__(
        self,
        output: Logits,
        row: Tensor,
        found: Enclosure,
        *,
        threshold: Tensor,
        relaxation: Relaxation,
        trials: int = 0,
    ) -> None:
        self._output, self._row, self.threshold = output, row, threshold
        self._ranges, self._relaxation = dict(found.ranges), relaxation
        self._trials = trials
        self._multipliers = NONE
        self._ellipses: dict[Place, list[Ellipse]] = {}
        self._form, self._weights, self._lowest = self._bounded(None)

    def _bounded(self, known: Tensor | None) -> tuple[QuadraticForm, Tensor, Lowest]:
        found = JointPass(self._output, self._ranges, self._ellipses, self._relaxation)
        margin = Margin(self._output, self._row, found)
        self._ranges = dict(found.found.ranges)
        form = margin.below(self._multipliers)
        threshold = self.threshold.to(form.constant)
        weights = _weights_of(form, threshold, known)
        bound = lowest(form.linear, form.matrix, weights, form.group)
        if not self._trials or not margin.errors or (form.constant + bound.value > threshold).all():
            return form, weights, bound
        return self._learned(margin, form, weights, bound)

    def _learned(
        self, margin: Margin, form: QuadraticForm, weights: Tensor, known: Lowest
    ) -> tuple[QuadraticForm, Tensor, Lowest]:
        """The same with multipliers that are learned, where these are better."""
        wanted, before = self.threshold.to(form.constant), form.constant + known.value
        wanted = torch.where(before > wanted, -math.inf, wanted + _CLEARLY * before.abs())
        learned, found = learn(margin, self._multipliers, weights, wanted, trials=self._trials)
        found = found * (1 + _SURE) + _MORE * found.mean(1, keepdim=True)
        new = margin.below(learned)
        bound = lowest(new.linear, new.matrix, found, new.group)
        better = new.constant + bound.value > before
        if not better.any():
            return form, weights, known
        if not better.all():
            learned = _chosen(better, learned, self._multipliers)
            found = torch.where(better[:, None], found, weights)
            new = margin.below(learned)
            bound = lowest(new.linear, new.matrix, found, new.group)
        self._multipliers = learned
        return new, found, bound

    @property
    def least_margin(self) -> Tensor:
        """Lower bound ``(B,)`` on the margin in the region; -inf for none."""
        # Rounded to the precision of the row, it may rise by a unit in the last place.
        least = self._form.constant + self._lowest.value
        lower = 2 * torch.finfo(self._row.dtype).eps * least.abs()
        return (least - lower).to(self._row)

    def tighten(self) -> Tensor:
        """Bound again within the ellipsoid of the present bound.

        Returns:
            ``(B,)`` whether any range was cut; where none was, nothing is bounded again.
        """
        before = dict(self._ranges)
        self._ellipses = {}
        form, threshold = self._form, self.threshold.to(self._form.constant)
        for factor in _WIDER:
            found = self._lowest
            if factor > 1:
                found = lowest(form.linear, form.matrix, factor * self._weights, form.group)
            self._cut(Ellipsoid(found, threshold - form.constant - found.value))
        nodes = {row.read.node for _, rows in form.rows for row in rows}
        shrunk = torch.stack([_shrunk(self._ranges[node], before[node]) for node in nodes]).any(0)
        if shrunk.any():
            self._form, self._weights, self._lowest = self._bounded(self._weights)
        return shrunk

    def _cut(self, ellipsoid: Ellipsoid) -> None:
        """Intersect ranges with those in an ellipsoid."""
        for gap, rows in self._form.rows:
            ranges, ellipse = ellipsoid.within(rows)
            for row, bounds in zip(rows, ranges, strict=True):
                node = row.read.node
                within = _of_node(bounds, node, self._row)
                self._ranges[node] = intersect(self._ranges[node], within)
            if ellipse is not None:
                self._ellipses.setdefault(gap.place, []).append(ellipse)


def _chosen(better: Tensor, new: Multipliers, old: Multipliers) -> Multipliers:
    """New multipliers where they are better, else those before; 0 where there were none."""
    parts = (
        {
            node: torch.where(better[:, None], part, before.get(node, torch.zeros_like(part)))
            for node, part in now.items()
        }
        for now, before in zip(new, old, strict=True)
    )
    return Multipliers(*parts)


def _weights_of(form: QuadraticForm, threshold: Tensor, known: Tensor | None) -> Tensor:
    """Weights of the dual, searched in float32 on a scale on which nothing overflows."""
    scale = form.linear.abs().sum(1) + form.matrix.abs().sum(2).amax(1)
    scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
    linear, matrix = form.linear / scale[:, None], form.matrix / scale[:, None, None]
    wanted = (threshold - form.constant) / scale + _CLEARLY
    near = None if known is None else (known / scale[:, None]).float()
    found = search(linear.float(), matrix.float(), form.group, wanted.float(), near).to(scale)
    return scale[:, None] * (found * (1 + _SURE) + _MORE * found.mean(1, keepdim=True))


def _of_node(bounds: Bounds, node: Node, like: Tensor) -> Bounds:
    """A range in the shape and precision of a node; what is no number cuts nothing."""
    lower, upper = (end.view(-1, *node.shape).to(like) for end in bounds)
    off = 2 * torch.finfo(like.dtype).eps * torch.maximum(lower.abs(), upper.abs())
    return Bounds((lower - off).nan_to_num(-math.inf), (upper + off).nan_to_num(math.inf))


def _shrunk(now: Bounds, before: Bounds) -> Tensor:
    """Whether a range ``(B, *shape)`` has lost more than a little of its width, ``(B,)``."""
    left, all_of_it = (flat(ends.upper - ends.lower).sum(1) for ends in (now, before))
    return left < _SHRUNK * all_of_it


def refute_jointly(region: JointRegion, lower: Tensor, *, rounds: int) -> Tensor:
    """Try to prove that the margin of every pair is positive.

    Args:
        region: of the pairs.
        lower: ``(B,)`` bounds on the margins already known.
        rounds: see ``Jointly``.

    Returns:
        ``(B,)`` lower bounds, at least the given ones; positive where it is proved.
    """
    threshold, least = region.threshold, _finite(region.least_margin)
    best = torch.fmax(lower, least)  # nothing was assumed for the first one
    open_ = ~(least > threshold) & least.isfinite()
    for _ in range(rounds - 1):
        if not open_.any():
            break
        open_, before = open_ & region.tighten(), least
        if not open_.any():
            break
        least = _finite(region.least_margin)
        # Outside the region the margin exceeds the threshold anyway.
        known = torch.minimum(least, threshold)
        best = torch.where(open_, torch.fmax(best, known), best)
        open_ = open_ & ~(least > threshold) & (least - before > _GAIN * before.abs())
    return best


def _finite(least: Tensor) -> Tensor:
    """Bounds, of which overflow and what is no number prove nothing."""
    return torch.where(least.isfinite(), least, -math.inf)
