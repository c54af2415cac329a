"""How a certified margin falls with epsilon, from the one or two margins that are known.

    margin(r) = clean - fall r exp(a r + b r^2)

has the margin and its slope at 0. With two margins it passes through both; with one it bends like
clean - fall (exp(rate r) - 1) / rate, which ranges that feed on ranges come close to.

B: batch.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_SAME = 1e-6  # epsilons closer than this share count as one
_STEPS = 12  # of Newton's method, which starts close by
_TOLERANCE = 1e-7  # of the logarithm of an epsilon


class MarginCurve(NamedTuple):
    """One curve per sample, all ``(B,)``.

    Attributes:
        clean: margin at 0, positive.
        fall: how fast it falls there, positive.
        tilt: a of the exponent.
        bend: b of the exponent.
        near: an epsilon through which the curve passes.
    """

    clean: Tensor
    fall: Tensor
    tilt: Tensor
    bend: Tensor
    near: Tensor

    @classmethod
    def through(
        cls,
        clean: Tensor,
        fall: Tensor,
        first: tuple[Tensor, Tensor],
        other: tuple[Tensor, Tensor],
        bend_of: Tensor | None = None,
    ) -> "MarginCurve":
        """The curve through two epsilons and their margins; an ``other`` that is NaN is unknown.

        Args:
            clean: margin at 0.
            fall: how fast it falls there.
            first: an epsilon and its margin.
            other: likewise.
            bend_of: ``bend_at`` of a curve like this one, where one margin alone is known; NaN
                for the natural one.
        """
        (r, _), (s, _) = first, other
        one, two = (_excess(clean, fall, *point) / point[0] for point in (first, other))
        apart = ((r - s).abs() > _SAME * r) & two.isfinite()
        natural = rate_of(clean - first[1], fall, r) ** 2 / 24
        if bend_of is not None:
            natural = torch.where(bend_of.isfinite(), bend_of / r.square(), natural)
        bend = torch.where(apart, (two - one) / (s - r), natural)
        return cls(clean, fall, one - bend * r, bend, r)

    def bend_at(self, radius: Tensor) -> Tensor:
        """What the bend adds to the exponent at a radius, whatever its unit, ``(B,)``."""
        return self.bend * radius.square()

    def reach(self, level: float = 0.0) -> Tensor:
        """Where the margin is that many clean margins, ``(B,)``; NaN where the curve never is."""
        aim = (self.fall / ((1 - level) * self.clean)).log()
        place = self.near.log()
        for _ in range(_STEPS):
            r = place.exp()
            excess = place + aim + (self.tilt + self.bend * r) * r
            slope = 1 + (self.tilt + 2 * self.bend * r) * r
            step = (excess / slope).clamp(-1, 1)
            place = torch.where(slope > 0, place - step, math.nan)
        return torch.where(step.abs() < _TOLERANCE, place.exp(), math.nan)


def _excess(clean: Tensor, fall: Tensor, r: Tensor, margin: Tensor) -> Tensor:
    """Logarithm of how much more the margin fell than along its slope at 0."""
    return ((clean - margin) / (fall * r)).clamp(0.1, 1e20).log()


def rate_of(fallen: Tensor, fall: Tensor, radius: Tensor) -> Tensor:
    """The rate for which a margin has fallen that far at a radius, all ``(B,)``."""
    return _rate(fallen / (fall * radius)) / radius


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
