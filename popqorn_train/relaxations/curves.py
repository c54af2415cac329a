"""Elementwise functions in general: lines for any f whose bend between its breaks is known.

With |f''| <= bend between the breaks, and points that cut [lower, upper] at every break into
cells no wider than h, f lies within ``bend h^2 / 8`` of its chord in every cell, so for any slope k

    max over [lower, upper] of f(x) - k x  <=  max over the points of f(x) - k x  +  bend h^2 / 8.

For functions made of straight pieces (bend = 0) that is exact. Slopes are the chord's or the
tangent's at the middle, whichever line is closer to f there (planes.md 0); they carry no gradient,
intercepts do.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.bows import BOWS, Bow, Odd
from popqorn_train.relaxations.extremum import clip, follow_ends, largest, slack
from popqorn_train.relaxations.lines import Lines

_CELLS = 32


class Curve(NamedTuple):
    """An elementwise function and its shape.

    Attributes:
        value: the function.
        bend: greatest ``|f''|`` between breaks.
        breaks: where f' jumps.
        rises: whether f never falls.
        miss: how far the function that torch computes may lie from ``value`` beyond the last break.
        most: no absolute value of the function is greater.
    """

    value: Callable[[Tensor], Tensor]
    bend: float
    breaks: tuple[float, ...] = ()
    rises: bool = True
    miss: float = 0.0
    most: float = math.inf

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """Enclose f on ``[lower, upper]``."""
        above_slope, above = _above(self, lower, upper)
        below_slope, below = _above(self.mirrored(), lower, upper)
        return Lines(-below_slope, -below, above_slope, above)

    def range(self, bounds: Bounds) -> Bounds:
        """Range of f."""
        if self.rises:
            lower, upper = self.value(bounds.lower), self.value(bounds.upper)
            miss = self._missed(bounds.upper)
            return Bounds(lower - miss, upper + miss)
        flat = torch.zeros_like(bounds.lower)
        above = _intercept(self, flat, *bounds).clamp(max=self.most)
        return Bounds(-_intercept(self.mirrored(), flat, *bounds).clamp(max=self.most), above)

    def mirrored(self) -> "Curve":
        """``-f``."""
        return self._replace(value=lambda x: -self.value(x))

    def _missed(self, upper: Tensor) -> Tensor:
        if not self.miss:
            return torch.zeros_like(upper)
        return self.miss * (upper >= self.breaks[-1]).to(upper)


def _points(curve: Curve, lower: Tensor, upper: Tensor) -> Tensor:
    """Ends of the cells, ``(P, ...)``."""
    shares = torch.linspace(0, 1, _CELLS + 1, dtype=lower.dtype, device=lower.device)
    inner = [torch.lerp(lower, upper, share) for share in shares[1:-1]] if curve.bend else []
    breaks = [clip(torch.full_like(lower, place), lower, upper) for place in curve.breaks]
    return torch.stack([lower, upper, *inner, *breaks])


def _intercept(curve: Curve, slope: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Upper bound of ``f(x) - slope x`` on the interval, with a gradient to its ends."""
    with torch.no_grad():
        points = _points(curve, lower, upper)
        best = (curve.value(points) - slope * points).max(0, keepdim=True).indices
        x = points.gather(0, best)[0]
    x = follow_ends(x, lower, upper)
    between = curve.bend / 8 * ((upper - lower) / _CELLS).square()
    size = largest(lower, upper)  # curved functions are products with x, up to its size
    allowance = slack((1 + slope.abs()) * size, curve.value(x), between) + curve._missed(upper)
    return curve.value(x) - slope * x + between + allowance


def _above(curve: Curve, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of a line above."""
    with torch.no_grad():
        middle, half = (lower + upper) / 2, (upper - lower) / 2
        near = torch.finfo(lower.dtype).eps ** (1 / 3) * (1 + middle.abs())
        slopes = torch.stack(
            [_secant(curve, middle, torch.maximum(half, near)), _secant(curve, middle, near)]
        )
    pair = slopes, lower.expand_as(slopes), upper.expand_as(slopes)
    intercepts = _intercept(curve, *pair)
    values = (slopes * middle + intercepts).detach()
    # Rounding must not decide between lines that are as good as each other.
    first = values[0] - values[1] <= torch.finfo(lower.dtype).eps ** 0.5 * (1 + values[1].abs())
    slope = torch.where(first, slopes[0], slopes[1])
    intercept = torch.where(first, intercepts[0], intercepts[1])
    level = values.amin(0) > curve.most  # a constant is lower there
    return slope.masked_fill(level, 0.0), intercept.masked_fill(level, curve.most)


def _secant(curve: Curve, middle: Tensor, half: Tensor) -> Tensor:
    return (curve.value(middle + half) - curve.value(middle - half)) / (2 * half)


def _pieces(value: Callable[[Tensor], Tensor], *breaks: float, rises: bool = True) -> Curve:
    return Curve(value, 0.0, breaks, rises)


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(
            f"`{name}` of an activation must be positive to have a bound, got {value}."
        )


def leaky_relu(negative_slope: float = 0.01) -> Curve:
    """``x`` above 0, ``negative_slope x`` below."""
    rises = negative_slope >= 0
    return _pieces(lambda x: functional.leaky_relu(x, negative_slope), 0.0, rises=rises)


def prelu(weight: Tensor) -> Curve:
    """``x`` above 0, ``weight x`` below, with one weight for all features."""
    return _pieces(lambda x: x.relu() - weight * (-x).relu(), 0.0, rises=bool(weight >= 0))


def hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Curve:
    """Cut x to an interval."""
    return _pieces(lambda x: x.clamp(min_val, max_val), min_val, max_val)


def clamp(min: float | None = None, max: float | None = None) -> Curve:
    """Cut x on one side or both."""
    ends = [end for end in (min, max) if end is not None]
    return _pieces(lambda x: x.clamp(min, max), *ends)


def elu(alpha: float = 1.0) -> Curve:
    """``alpha (exp(x) - 1)`` below 0."""
    return Curve(lambda x: functional.elu(x, alpha), abs(alpha), (0.0,), rises=alpha >= 0)


def celu(alpha: float = 1.0) -> Curve:
    """``alpha (exp(x / alpha) - 1)`` below 0."""
    _check_positive("alpha", alpha)
    return Curve(lambda x: functional.celu(x, alpha), 1 / alpha, (0.0,))


def gelu(approximate: str = "none") -> Curve:
    """``x Phi(x)``; its second derivative is greatest at 0."""
    return Curve(lambda x: functional.gelu(x, approximate=approximate), 0.8, rises=False)


def softplus(beta: float = 1.0, threshold: float = 20.0) -> Curve:
    """``log(1 + exp(beta x)) / beta``, for which torch takes x beyond the threshold."""
    _check_positive("beta", beta)
    miss = torch.tensor(-threshold, dtype=torch.float64).exp().item() / beta

    def value(x: Tensor) -> Tensor:
        return torch.logaddexp(beta * x, torch.zeros_like(x)) / beta

    return Curve(value, beta / 4, (threshold / beta,), miss=miss)


_SELU = 1.0507009873554805 * 1.6732632423543772

# Bounds on |f''|: sigmoid(x) x has 1/2 at 0, tanh 4 / (3 sqrt 3) = 0.7698, softsign 2 at 0; that
# of mish, 0.65, and of gelu with either approximation, 0.8, are tested.
CURVES: dict[str, Callable[..., Curve | Bow | Odd]] = {
    "leaky_relu": leaky_relu,
    "hardtanh": hardtanh,
    "clamp": clamp,
    "clip": clamp,
    "relu6": lambda: hardtanh(0.0, 6.0),
    "hardsigmoid": lambda: _pieces(functional.hardsigmoid, -3.0, 3.0),
    "abs": lambda: _pieces(torch.abs, 0.0, rises=False),
    "elu": elu,
    "celu": celu,
    "selu": lambda: Curve(torch.selu, _SELU, (0.0,)),
    "gelu": gelu,
    "silu": lambda: Curve(functional.silu, 0.5, rises=False),
    "mish": lambda: Curve(functional.mish, 0.65, rises=False),
    "hardswish": lambda: Curve(functional.hardswish, 1 / 3, (-3.0, 3.0), rises=False),
    "softplus": softplus,
    "softsign": lambda: Curve(functional.softsign, 2.0, (0.0,)),
    "log_sigmoid": lambda: Curve(functional.logsigmoid, 0.25),
    "tanhshrink": lambda: Curve(functional.tanhshrink, 0.77),
    "erf": lambda: Curve(torch.erf, 0.97),
    "sin": lambda: Curve(torch.sin, 1.0, rises=False, most=1.0),
    "cos": lambda: Curve(torch.cos, 1.0, rises=False, most=1.0),
    **BOWS,
}
