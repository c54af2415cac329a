"""A search for many samples at once: the largest epsilon whose certified margin is positive.

Ranges that feed on ranges make the margin fall roughly exponentially:

    margin(r) = clean - fall (exp(rate r) - 1) / rate

Every sample keeps a bracket ``lower < upper`` (proved, not proved), the rate that its newest
margin asks for, and an estimate of the root: the line through its two newest margins, drawn over
exp(rate r). A proof at one epsilon holds for all smaller ones, but the bound jumps where planes are
chosen anew, and can be positive again above ``upper``. So a narrow bracket is not the end: its
sample climbs the rungs of a ladder (ladder.py) until the margin lies a quarter as far below 0 as
the clean one lies above. A rung that is proved is the new ``lower``, from which it goes on.

B: batch.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from popqorn_train.certificates.ladder import RATIO, REACH, Ladder
from popqorn_train.certificates.margins import proved

_SMALLEST = 1e-7  # radii below this share of the largest count as 0
_TRIES = 60  # evaluations after which a sample keeps what it has
_FAILED = -1e30  # stands for a margin that is no number
_SHY = 0.4  # how far below the estimated root to look, in relative tolerances
_NARROW = 0.9  # width of a finished bracket, in relative tolerances: the rest is for rounding
_DEEP = 0.25  # a rung at which the margin is that far below 0, in clean margins, is the last one
_MUTE = 1e-4  # a proof by contradiction shows as a margin below this share of the clean one


class Brackets:
    """One bracket per sample, in float64.

    Finished means ``lower >= (1 - rtol) epsilon`` for every epsilon that is proved below
    ``upper``, if the margin is positive on one side of it only, or that is proved on a rung.

    Args:
        clean: ``(B,)`` margin at 0, positive where there is something to search.
        fall: ``(B,)`` how fast the margin falls at 0.
        cap: ``(B,)`` largest radius tried.
        guess: ``(B,)`` first epsilon.
        rtol: relative width of a bracket at which its sample climbs.
        lower: ``(B,)`` known to be proved; None where nothing is.
        epsilons: rungs beside those of the ladder.
        graded: whether the size of every positive margin says how far the root is.
        monotone: whether no ball above one that is not proved can be.
    """

    def __init__(
        self,
        clean: Tensor,
        fall: Tensor,
        cap: Tensor,
        guess: Tensor,
        rtol: float,
        *,
        lower: Tensor | None = None,
        epsilons: Sequence[float] = (),
        graded: bool = True,
        monotone: bool = False,
    ) -> None:
        self.clean, self.fall = clean, fall.clamp(min=1e-12)
        self.cap, self.rtol, self.graded, self.monotone = cap, rtol, graded, monotone
        self.lower = torch.zeros_like(clean) if lower is None else lower.to(clean).minimum(cap)
        self.upper = torch.full_like(clean, math.inf)
        self.newest, self.at_newest = torch.zeros_like(clean), clean.clone()
        self.root = torch.full_like(clean, math.nan)
        # With such steps up, halving ends at a bracket that is just narrow enough.
        width = -math.log1p(-_NARROW * rtol)
        self._step = math.exp(width * 2 ** max(0, int(math.log2(math.log(RATIO) / width))))
        self.step = torch.full_like(clean, self._step)
        self.mute = self.lower > 0  # how large the margin is at ``lower`` is not known
        self.ladder = Ladder(self.lower, epsilons)
        self.deep = torch.zeros_like(self.mute)  # so far below 0 that no rung above is tried
        guess = torch.where(guess.isfinite(), guess, cap / 100)
        least = torch.maximum(10 * _SMALLEST * cap, self.lower)
        self.next = torch.minimum(torch.maximum(guess, least), cap)
        self.wrong = ~(clean > 0)
        self.evaluations = torch.zeros_like(clean, dtype=torch.long)

    def open(self) -> Tensor:
        """Indices of the samples that are not finished."""
        tiny = self.upper <= _SMALLEST * self.cap
        done = self.wrong | tiny | (self.lower >= self.cap) | (self.evaluations >= _TRIES)
        return (~done & ~(self._narrow() & self._at_top())).nonzero()[:, 0]

    def _narrow(self) -> Tensor:
        return self.lower >= (1 - _NARROW * self.rtol) * self.upper

    def _at_top(self) -> Tensor:
        """Whether no further rung is worth trying, ``(B,)``."""
        rung, above = self.ladder.next(self.upper), self.ladder.above(self.upper)
        end = self.deep | self.monotone | (rung > REACH * self.lower)
        return (rung > self.cap) | above & end

    def tell(self, chosen: Tensor, margin: Tensor) -> None:
        """Record margins at ``next`` and choose the next epsilons."""
        self.evaluations[chosen] += 1
        epsilon, good = self.next[chosen], proved(margin)
        margin = margin.nan_to_num(_FAILED, _FAILED, _FAILED)
        climbed = self._narrow()[chosen]
        self._move(chosen, epsilon, margin, good, climbed)
        root = self._estimate(chosen, epsilon, margin)
        # Far beyond the root the margin may hardly change: then its slope tells nothing.
        before = self.at_newest[chosen]
        flat = (before < 0) & (margin < 0.7 * before) | (margin <= _FAILED)
        self.root[chosen], self.newest[chosen], self.at_newest[chosen] = root, epsilon, margin
        aim = self._aim(chosen, flat | self.mute[chosen])
        rung = torch.minimum(self.ladder.next(self.upper), self.cap)[chosen]
        self.next[chosen] = torch.where(self._narrow()[chosen], rung, aim)

    def _move(
        self, chosen: Tensor, epsilon: Tensor, margin: Tensor, good: Tensor, climbed: Tensor
    ) -> None:
        """Move the ends of brackets, and up the ladder."""
        clean, upper = self.clean[chosen], self.upper[chosen]
        fallen = climbed & (margin <= -_DEEP * clean)
        self.deep[chosen] = (self.deep[chosen] | fallen) & ~good
        again = good & self.mute[chosen] & (self.newest[chosen] == self.lower[chosen])
        longer = (self.step[chosen] ** 2).clamp(max=4)
        self.step[chosen] = torch.where(again, longer, self._step)
        self.lower[chosen] = torch.where(good, epsilon, self.lower[chosen])
        beyond = torch.where(epsilon < upper, upper, math.inf)
        self.upper[chosen] = torch.where(good, beyond, torch.minimum(epsilon, upper))
        silent = climbed | (margin < _MUTE * clean) & (not self.graded)
        self.mute[chosen] = torch.where(good, silent, self.mute[chosen])
        self.ladder.climb(chosen[good | climbed], epsilon[good | climbed])

    def _estimate(self, chosen: Tensor, epsilon: Tensor, margin: Tensor) -> Tensor:
        """Where the margin reaches 0, ``(b,)``; NaN where it does not fall towards that."""
        clean, before, at_before = (
            values[chosen] for values in (self.clean, self.newest, self.at_newest)
        )
        rate = _rate((clean - margin) / (self.fall[chosen] * epsilon)) / epsilon
        far = at_before.abs() > clean  # then the margin at 0 is the better second point
        before = torch.where(far, torch.zeros_like(before), before)
        at_before = torch.where(far, clean, at_before)
        step = torch.expm1(rate * (before - epsilon)) / rate
        slope = (at_before - margin) / step
        root = epsilon + torch.log1p(-rate * margin / slope) / rate
        return torch.where(slope < 0, root, torch.full_like(root, math.nan))

    def _aim(self, chosen: Tensor, blind: Tensor) -> Tensor:
        """The next epsilons, ``(b,)``: a little below the root, so that they are proved."""
        lower, upper, root = self.lower[chosen], self.upper[chosen], self.root[chosen]
        more, less = 1 + _SHY * self.rtol, 1 - _SHY * self.rtol
        near = root <= lower * (1 + self.rtol)  # what is left is to refute a little more
        aim = root * torch.where(near, more, less)
        aim = torch.maximum(aim, torch.where(root > lower, lower * more, aim))
        aim = torch.where(lower > 0, torch.minimum(aim, lower * 4), aim)
        count = self.evaluations[chosen]
        halve = blind | (count >= 7) & (count % 2 == 1)  # whatever the shape
        step = torch.where(self.mute[chosen], self.step[chosen], 2.0)
        one_end = torch.where(lower > 0, lower * step, upper / 4)
        middle = torch.where((lower > 0) & upper.isfinite(), (lower * upper).sqrt(), one_end)
        usable = (aim > lower) & (aim < upper) & ~halve
        return torch.minimum(torch.where(usable, aim, middle), self.cap[chosen])


def rate_of(clean: Tensor, fall: Tensor, radius: Tensor) -> Tensor:
    """The rate for which the margin reaches 0 at a radius, all ``(B,)``."""
    return _rate(clean / (fall * radius)) / radius


def root_of(clean: Tensor, fall: Tensor, rate: Tensor) -> Tensor:
    """Where the margin reaches 0 for a rate, ``(B,)``; NaN where it never does."""
    return torch.log1p(rate * clean / fall) / rate


def _rate(ratio: Tensor) -> Tensor:
    """Solve ``(exp(z) - 1) / z = ratio`` for z, between -5 and 50 and never 0.

    The logarithm of the left side is convex and at least z / 2, so Newton's method falls to the
    root from 2 log(ratio).
    """
    goal = ratio.clamp(0.1, 1e20).log()
    z = _off_zero(2 * goal)
    for _ in range(6):
        value = (torch.expm1(z) / z).log() - goal
        z = _off_zero(z - value / (1 / -torch.expm1(-z) - 1 / z))
    return z.clamp(-5, 50)


def _off_zero(z: Tensor) -> Tensor:
    return torch.where(z.abs() < 1e-4, torch.full_like(z, 1e-4), z)
