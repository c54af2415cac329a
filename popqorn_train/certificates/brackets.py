"""A root finder for many samples at once: where does the certified margin reach 0?

Ranges that feed on ranges make the margin fall roughly exponentially:

    margin(r) = clean - fall (exp(rate r) - 1) / rate

Every sample keeps a bracket ``lower < upper`` (proved, not proved), the rate that its newest
margin asks for, and an estimate of the root: the line through its two newest margins, drawn over
exp(rate r). It is finished when the bracket is narrow, or when two estimates in a row agree that
the root lies just above ``lower``.

B: batch.
"""

import math

import torch
from torch import Tensor

from popqorn_train.certificates.margins import proved

_SMALLEST = 1e-7  # radii below this share of the largest count as 0
_TRIES = 60  # evaluations after which a sample keeps what it has
_FAILED = -1e30  # stands for a margin that is no number
_SHY = 0.4  # how far below the estimated root to look, in relative tolerances


class Brackets:
    """One bracket a sample, in float64.

    Args:
        clean: ``(B,)`` margin at 0, positive where there is something to search.
        fall: ``(B,)`` how fast the margin falls at 0.
        cap: ``(B,)`` largest radius tried.
        guess: ``(B,)`` first epsilon.
        rtol: relative distance to the root at which a sample is finished.
    """

    def __init__(
        self, clean: Tensor, fall: Tensor, cap: Tensor, guess: Tensor, rtol: float
    ) -> None:
        self.clean, self.fall = clean, fall.clamp(min=1e-12)
        self.cap, self.rtol = cap, rtol
        self.lower, self.upper = torch.zeros_like(clean), torch.full_like(clean, math.inf)
        self.newest, self.at_newest = torch.zeros_like(clean), clean.clone()
        self.root = torch.full_like(clean, math.nan)
        self.agreed = torch.zeros_like(clean, dtype=torch.bool)
        guess = torch.where(guess.isfinite(), guess, cap / 100)
        self.next = torch.minimum(torch.maximum(guess, 10 * _SMALLEST * cap), cap)
        self.wrong = ~(clean > 0)
        self.evaluations = torch.zeros_like(clean, dtype=torch.long)

    def open(self) -> Tensor:
        """Indices of the samples that are not finished."""
        tight = self.agreed | (self.upper <= self.lower * (1 + self.rtol))
        tiny = self.upper <= _SMALLEST * self.cap
        done = self.wrong | tight | tiny | (self.lower >= self.cap) | (self.evaluations >= _TRIES)
        return (~done).nonzero()[:, 0]

    def tell(self, chosen: Tensor, margin: Tensor) -> None:
        """Record margins at ``next`` and choose the next epsilons."""
        self.evaluations[chosen] += 1
        epsilon, good = self.next[chosen], proved(margin)
        margin = margin.nan_to_num(_FAILED, _FAILED, _FAILED)
        self.lower[chosen[good]] = epsilon[good]
        self.upper[chosen[~good]] = epsilon[~good]
        root, lower = self._estimate(chosen, epsilon, margin), self.lower[chosen]
        miss = (root - self.root[chosen]).abs() / 2  # estimates get several times better
        self.agreed[chosen] = (root >= lower) & (root + miss <= lower * (1 + self.rtol))
        # Far beyond the root the margin may hardly change: then its slope tells nothing.
        before = self.at_newest[chosen]
        flat = (before < 0) & (margin < 0.7 * before) | (margin <= _FAILED)
        self.root[chosen], self.newest[chosen], self.at_newest[chosen] = root, epsilon, margin
        self.next[chosen] = self._aim(chosen, flat)

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

    def _aim(self, chosen: Tensor, flat: Tensor) -> Tensor:
        """The next epsilons, ``(b,)``: a little below the root, so that they are proved."""
        lower, upper, root = self.lower[chosen], self.upper[chosen], self.root[chosen]
        more, less = 1 + _SHY * self.rtol, 1 - _SHY * self.rtol
        near = root <= lower * (1 + self.rtol)  # what is left is to refute a little more
        aim = root * torch.where(near, more, less)
        aim = torch.maximum(aim, torch.where(root > lower, lower * more, aim))
        aim = torch.where(lower > 0, torch.minimum(aim, lower * 4), aim)
        count = self.evaluations[chosen]
        halve = flat | (count >= 7) & (count % 2 == 1)  # whatever the shape
        one_end = torch.where(lower > 0, lower * 2, upper / 4)
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
