"""Means of weights over a softmax: exact extremes on a box of scores, and linear bounds.

    mean(s)  =  w . softmax(s),      s between lower and upper

Least: the mean falls in s[i] where w[i] is below it, and rises elsewhere. So the minimum lies at a
vertex, s[i] = upper[i] where w[i] < m and lower[i] elsewhere, for m the minimum itself: as the
weights are sorted, a threshold. Dinkelbach's iteration (Management Science, 1967) finds it.

Lines: with d = s - center, p = softmax(center), and weights v >= 0,

    sum p v e^d  >=  (p . v) e^(q . d),                      q = p v / (p . v)            (Jensen)
    sum p e^d    <=  sum p (cosh r + d sinh(r) / r)  <=  C e^(c . d)                     (chords)

where r is the half width. So v . softmax(s) >= (p . v / C) (1 + (q - c) . d). The denominator may
first be divided by e^d of the most likely entry, which makes C smaller where one entry dominates.
From above, v . softmax(s) = sum p v e^(d - log sum p e^d) <= sum p v e^(d - p . d), and chords
of every term. With v = w - min w, or v = max w - w, both bound the mean from below.

T: entries, on the last axis.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.extremum import slack

_WIDE = 40.0  # half width of a score from which on only the extremes are used


class Scores(NamedTuple):
    """A box of scores ``(*, T)``, and what all lines over it share.

    Attributes:
        lower: ends of the scores.
        upper: likewise.
        dead: whether an entry has no part in the softmax at all, as what is masked.
        alive: ``(*, 1)`` index of an entry that has one.
        center: of the scores.
        share: softmax of the centre.
        wide: ``(*, 1)`` whether the box is too wide for lines with slopes.
        height: ``(*, 1)`` C.
        tilt: c.
        rise: greatest growth of an entry's share, cosh R for an exponent within R.
        steep: its slope, sinh(R) / R.
    """

    lower: Tensor
    upper: Tensor
    dead: Tensor
    alive: Tensor
    center: Tensor
    share: Tensor
    wide: Tensor
    height: Tensor
    tilt: Tensor
    rise: Tensor
    steep: Tensor

    def of_rows(self) -> "Scores":
        """The same with an axis for rows behind the batch."""
        return Scores(*[field[:, None] for field in self])


def _others(x: Tensor) -> Tensor:
    """Logarithm of the sum of exponentials of all other entries."""
    far = x.new_full((*x.shape[:-1], 1), -torch.finfo(x.dtype).max)
    before = torch.cat([far, x[..., :-1]], -1).logcumsumexp(-1)
    after = torch.cat([far, x[..., 1:].flip(-1)], -1).logcumsumexp(-1).flip(-1)
    return torch.logaddexp(before, after)


def shares(bounds: Bounds) -> Bounds:
    """Exact range of every entry of a softmax; all of [0, 1] where scores are infinite."""
    top = bounds.upper.detach().amax(-1, keepdim=True)  # so that no sum is lost beside it
    lower, upper = bounds.lower - top, bounds.upper - top
    least = torch.sigmoid(lower - _others(upper))
    most = torch.sigmoid(upper - _others(lower))
    return Bounds(least.nan_to_num(0), most.nan_to_num(1))


def _dead(lower: Tensor, upper: Tensor) -> Tensor:
    """Where even the greatest share is so small that it counts as 0."""
    return (upper - lower.amax(-1, keepdim=True)).exp() == 0


def _chord(half: Tensor) -> tuple[Tensor, Tensor]:
    """``cosh h`` and ``sinh(h) / h``: the chord of exp over [-h, h]."""
    small = half < 1e-3
    safe = torch.where(small, torch.ones_like(half), half)
    return half.cosh(), torch.where(small, 1 + half.square() / 6, safe.sinh() / safe)


def _tilted(share: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """``C`` and ``c`` of the chords of all terms of a sum."""
    height, steep = (share * part for part in _chord(half))
    total = height.sum(-1, keepdim=True)
    return total, steep / total


def score_box(lower: Tensor, upper: Tensor) -> Scores:
    """What the lines over a box of scores share."""
    dead, alive = _dead(lower, upper), lower.argmax(-1, keepdim=True)
    center = lower + (upper - lower) / 2
    half = torch.maximum(upper - center, center - lower) * (1 + 4 * torch.finfo(lower.dtype).eps)
    half = torch.where(dead, torch.zeros_like(half), half)
    wide = ~(half <= _WIDE).all(-1, keepdim=True)
    half, share = half.clamp(max=_WIDE), center.softmax(-1)
    first, tilt = _tilted(share, half)
    best = torch.zeros_like(share).scatter(-1, share.argmax(-1, keepdim=True), 1.0)
    apart = (half + (best * half).sum(-1, keepdim=True)) * (1 - best)
    second, beside = _tilted(share, apart)
    beside = torch.where(best > 0, beside + 1 - beside.sum(-1, keepdim=True), beside)
    height, tilt = torch.minimum(first, second), torch.where(second < first, beside, tilt)
    mean = (share * half).sum(-1, keepdim=True)
    rise, steep = _chord((half + mean - 2 * share * half).clamp(min=0))
    return Scores(lower, upper, dead, alive, center, share, wide, height, tilt, rise, steep)


def least_mean(box: Scores, weight: Tensor, enough: Tensor | None = None) -> Tensor:
    """Least mean ``(*, 1)`` of weights ``(*, T)`` over a box of scores.

    Args:
        box: of the scores.
        weight: not negative; the same for dead entries as for some other one.
        enough: ``(*, 1)`` where no least mean below it matters: there, the value is only a mean
            that is reached, and not above it.
    """
    vertex = _best_vertex(box, weight.detach(), enough)
    return (vertex.softmax(-1) * weight).sum(-1, keepdim=True)


def _best_vertex(box: Scores, weight: Tensor, enough: Tensor | None) -> Tensor:
    """Where the mean is least, as a choice of the ends.

    The minimum of ``sum (w - m) e^s`` is negative exactly if some mean is below m. Weights that
    are m but for rounding are tried at both ends, since the others may have hardly any share.
    """
    tie = 16 * torch.finfo(weight.dtype).eps * weight.amax(-1, keepdim=True)
    mean = (box.share * weight).sum(-1, keepdim=True).detach()
    best, idle = torch.full_like(mean.expand_as(weight), 2), 0
    with torch.no_grad():
        for turn in range(2 * weight.shape[-1] + 4):
            rising = (weight < mean + (tie if turn % 2 else -tie)).to(weight.dtype)
            lower = (_at(box, rising).softmax(-1) * weight).sum(-1, keepdim=True)
            better = lower < mean
            best = torch.where(better, rising, best)
            mean = torch.minimum(mean, lower)
            idle = 0 if _matters(better, mean, enough) else idle + 1
            if idle == 2:
                break
    return torch.where(best > 1, box.center, _at(box, best))


def _matters(better: Tensor, mean: Tensor, enough: Tensor | None) -> bool:
    """Whether a mean got lower that was not low enough yet."""
    return bool((better if enough is None else better & (mean > enough)).any())


def _at(box: Scores, rising: Tensor) -> Tensor:
    """The vertex with these entries at their upper end."""
    return torch.where(rising > 0, box.upper, box.lower)


def _settled(box: Scores, weight: Tensor) -> Tensor:
    """Weights of which the dead entries have that of one that is not."""
    weight = weight + torch.zeros_like(box.share)  # in the shape of both
    known = weight.gather(-1, box.alive.expand(*weight.shape[:-1], 1))
    return torch.where(box.dead, known, weight)


def extremes(box: Scores, least: Tensor, most: Tensor) -> Bounds:
    """Exact range ``(*)`` of a mean of weights that lie between two others.

    Args:
        box: of the scores.
        least: ``(*, T)`` least weights.
        most: likewise.
    """
    ends = []
    for weight in (_settled(box, least), _settled(box, -most)):
        low = weight.amin(-1, keepdim=True)
        mean = low + least_mean(box, weight - low)
        ends.append((mean - _allowance(weight))[..., 0])
    return Bounds(ends[0], -ends[1])


def _allowance(weight: Tensor) -> Tensor:
    """For the rounding of a mean of weights, ``(*, 1)``."""
    size = weight.detach().abs().amax(-1, keepdim=True)
    return slack(size, size, size)


def means_below(box: Scores, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A linear function of the scores that no mean of weights falls below.

    Of the three bounds above, the one that is greatest at the centre is taken: a linear one from
    below, one from above, or the least mean.

    Args:
        box: of the scores.
        weight: ``(*, T)``.

    Returns:
        Slopes ``(*, T)`` and the intercept ``(*)``.
    """
    weight = _settled(box, weight)
    slope, value, size = _sloped(box, weight)
    low = weight.amin(-1, keepdim=True)
    value = torch.where(box.wide, low, value)
    least = low + least_mean(box, weight - low, value.detach() - low)
    flat = box.wide | (least > value)
    slope = torch.where(flat, torch.zeros_like(slope), slope)
    terms = size * (box.upper - box.lower) + slope.abs() * box.center.abs()
    terms = torch.where(flat | box.dead, 0, terms.detach()).sum(-1, keepdim=True)
    intercept = torch.where(flat, least, value) - (slope * box.center).sum(-1, keepdim=True)
    return slope, (intercept - _allowance(weight) - slack(terms))[..., 0]


def _sloped(box: Scores, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The better of both lines: slopes, the value at the centre, and the size of what makes slopes.

    What a slope is made of may cancel out, and is off by the rounding of its size.
    """
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    part, rest = box.share * (weight - low), box.share * (high - weight)
    mean = part.sum(-1, keepdim=True)
    one, other = low + mean / box.height, high - (rest * box.rise).sum(-1, keepdim=True)
    minus = rest * box.steep
    plus = box.share * minus.sum(-1, keepdim=True)
    above = other > one
    plus = torch.where(above, plus, part / box.height)
    minus = torch.where(above, minus, mean * box.tilt / box.height)
    return plus - minus, torch.maximum(one, other), (plus + minus).detach()
