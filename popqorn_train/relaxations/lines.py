"""Straight lines that enclose an activation f on an interval.

For every x in [lower, upper]:
    lower_slope * x + lower_intercept <= f(x) <= upper_slope * x + upper_intercept

tanh and sigmoid take the line of least area, relu the triangle of Zhang et al., "CROWN",
NeurIPS 2018, with the lower line of least area. The area under a line over an interval is its
value at the middle, so the best line supports the concave envelope there (planes.md 0 and 2).

B: batch, H: units.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from popqorn_train.kernels.chords import SIGMOID_LINES, TANH_LINES, strips_with_gradient
from popqorn_train.relaxations.extremum import (
    argmax_sigmoid,
    argmax_tanh,
    follow_ends,
    largest,
    line_intercept,
    prefer,
    slack,
)
from popqorn_train.relaxations.tanh_lines import TINY, over_and_slope, tanh_above


class Lines(NamedTuple):
    """One line below and one above each unit; every field is ``(B, H)``."""

    lower_slope: Tensor
    lower_intercept: Tensor
    upper_slope: Tensor
    upper_intercept: Tensor


class _TanhOver(torch.autograd.Function):
    """``tanh(d) / d`` for d >= 0, smooth at 0."""

    @staticmethod
    def forward(ctx: FunctionCtx, d: Tensor) -> Tensor:
        d = d.clamp(min=TINY)
        ctx.save_for_backward(d)
        return d.tanh().div_(d)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (d,) = ctx.saved_tensors
        return over_and_slope(d)[1].mul_(gradient)


def _tanh_over(d: Tensor) -> Tensor:
    found: Tensor = _TanhOver.apply(d)  # type: ignore[no-untyped-call]
    return found


def tanh_secant(lower: Tensor, upper: Tensor) -> Tensor:
    """Slope of the chord of tanh; without cancellation, so lower = upper gives the tangent."""
    return _tanh_over(upper - lower) * (1 - lower.tanh() * upper.tanh())


def sigmoid_secant(lower: Tensor, upper: Tensor) -> Tensor:
    """Slope of the chord of sigmoid."""
    return tanh_secant(lower / 2, upper / 2) / 4


def tanh_slope(x: Tensor) -> Tensor:
    """Derivative of tanh."""
    return 1 - x.tanh().square()


def sigmoid_slope(x: Tensor) -> Tensor:
    """Derivative of sigmoid."""
    return x.sigmoid() * (-x).sigmoid()


class Stacked(NamedTuple):
    """Lines above f on [lower, upper] and on [-upper, -lower], stacked on a new first axis."""

    slope: Tensor
    intercept: Tensor


class Curve(NamedTuple):
    """An S-shaped function, convex left of 0 and concave right of it.

    Attributes:
        value: the function.
        slope: its derivative.
        secant: slope of the chord between two points.
        argmax: where ``weight * f(x) - slope * x`` is largest on an interval.
        lines: lines on both sides from those above f and above its mirror image.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    secant: Callable[[Tensor, Tensor], Tensor]
    argmax: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    lines: Callable[[Stacked], Lines]

    def touching(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Right end d of the straight part of the concave envelope, without gradient.

        The envelope is the chord from the left end to its tangent point d, then the curve; right of
        0 it is the curve alone. d maximises the slope of that chord; Dinkelbach's iteration finds
        it. A quotient will do for that slope: close to its maximum, the chord hardly depends on d.
        """
        with torch.no_grad():
            one, slope, low = torch.ones_like(lower), self.secant(lower, upper), self.value(lower)
            d = self.argmax(one, slope, lower, upper)
            for _ in range(3):
                chord = (self.value(d) - low).div_((d - lower).clamp_(min=TINY))
                slope = torch.maximum(slope, chord)
                d = self.argmax(one, slope, lower, upper)
            return torch.where(lower < 0, d, lower)

    def above(self, lower: Tensor, upper: Tensor, d: Tensor, point: Tensor) -> Stacked:
        """The line above that is lowest at a point; all of one shape, see ``touching``."""
        chord = self.secant(lower, follow_ends(d, lower, upper))
        (slope,) = prefer(d - point, (self.slope(point), chord))
        return Stacked(slope, line_intercept(self.value, self.argmax, slope, lower, upper))


def mirrored(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of an interval and of its mirror image, stacked on a new first axis."""
    return torch.stack([lower, -upper]), torch.stack([upper, -lower])


def _odd(above: Stacked) -> Lines:
    (slope, mirrored), (top, bottom) = (part.unbind() for part in above)
    return Lines(mirrored, -bottom, slope, top)


def _odd_about_half(above: Stacked) -> Lines:
    (slope, mirrored), (top, bottom) = (part.unbind() for part in above)
    return Lines(mirrored, 1 - bottom - slack(bottom + 1), slope, top)


TANH = Curve(torch.tanh, tanh_slope, tanh_secant, argmax_tanh, _odd)
SIGMOID = Curve(torch.sigmoid, sigmoid_slope, sigmoid_secant, argmax_sigmoid, _odd_about_half)


def _least_area(curve: Curve, lower: Tensor, upper: Tensor) -> Lines:
    lower, upper = mirrored(lower, upper)
    middle = (lower + upper) / 2
    return curve.lines(curve.above(lower, upper, curve.touching(lower, upper), middle))


def tanh_lines(lower: Tensor, upper: Tensor) -> Lines:
    """Enclose tanh, which is odd: the line below is the mirrored line above the mirror."""
    known = strips_with_gradient(TANH_LINES, (lower, upper))
    if known is not None:
        return Lines(*known)
    return _odd(Stacked(*tanh_above(lower, upper)))


def sigmoid_lines(lower: Tensor, upper: Tensor) -> Lines:
    """Enclose sigmoid, where sigmoid(-x) = 1 - sigmoid(x)."""
    known = strips_with_gradient(SIGMOID_LINES, (lower, upper))
    if known is not None:
        return Lines(*known)
    return _least_area(SIGMOID, lower, upper)


def relu_lines(lower: Tensor, upper: Tensor) -> Lines:
    """Enclose relu: the chord above; below, the identity or 0, whichever leaves less area."""
    width = upper - lower
    flat = width <= 0
    chord = (upper.relu() - lower.relu()) / torch.where(flat, torch.ones_like(width), width)
    upper_slope = torch.where(flat, (upper > 0).to(upper), chord)
    allowance = slack(largest(lower, upper))
    ends = torch.stack([lower.relu() - upper_slope * lower, upper.relu() - upper_slope * upper])
    lower_slope = (lower + upper > 0).to(lower)
    # With slope 0 or 1 the line through the origin lies below relu everywhere.
    return Lines(lower_slope, -allowance, upper_slope, ends.amax(0) + allowance)
