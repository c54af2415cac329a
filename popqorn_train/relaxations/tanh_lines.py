"""The least-area lines around tanh, in one step with their gradient; see lines.py.

The line above tanh on [l, u] that is lowest at the middle m supports the concave envelope there:

    the tangent at m                               where m > d
    the chord from l to min(d, u)                  else

d, the tangent point of the chord from l, depends on l alone. It starts from a fit; one step of
Dinkelbach's iteration, d = tanh'^-1(slope of the chord to d), squares the error, and the slope is
stationary there. Any slope is sound: the intercept is exact. Training encloses every tanh anew in
every step, so operations are few and the gradient is written out.

B: batch, H: units; the line below is minus the line above on the mirror image [-u, -l], which is
stacked on a new first axis.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from popqorn_train.relaxations.extremum import LEAST, clip, largest, on_ends, prefer, slack

_FAR, _HALF_WAY = 2.34, 4.42  # d is nearly _FAR v / (v + _HALF_WAY) for l = -v, within .1
TINY = 1e-30  # a width that divides 0
NEAR = 1e-2  # below which a series is more exact than the quotient


def _inverse_slope(slope: Tensor) -> Tensor:
    """Where tanh' takes a value from 0 to 1, right of 0."""
    inside = slope.clamp(LEAST[slope.dtype], 1 - 2 * torch.finfo(slope.dtype).eps)
    return torch.rsub(inside, 1).sqrt_().add_(1).div_(inside.sqrt_()).log_()


def _stacked(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of an interval and of its mirror image."""
    return torch.stack([lower, -upper]), torch.stack([upper, -lower])


def _touching(low: Tensor, high: Tensor, at_low: Tensor) -> Tensor:
    """The tangent point of the chord from the left end, or the right end before it."""
    left = low.clamp(max=0).neg_()
    d = clip((left / (left + _HALF_WAY)).mul_(_FAR), low, high)
    crude = (d.tanh() - at_low).div_((d - low).clamp_(min=TINY))
    # Right of 0 it is the left end itself.
    return clip(_inverse_slope(crude).mul_(left.sign_()), low, high)


class _TanhAbove(torch.autograd.Function):
    """Slopes and intercepts of the lines above, on an interval and on its mirror image."""

    @staticmethod
    def forward(ctx: FunctionCtx, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        tanh_lower, tanh_upper = lower.tanh(), upper.tanh()
        low, high = _stacked(lower, upper)
        at_low, _ = _stacked(tanh_lower, tanh_upper)
        middle = torch.add(lower, upper).div_(2)
        middle = torch.stack([middle, -middle])
        d = _touching(low, high, at_low)
        at_d, width = d.tanh(), (d - low).clamp_(min=TINY)
        chord = (at_low * at_d).neg_().add_(1).mul_(width.tanh().div_(width))
        at_middle = middle.tanh()
        slope = torch.addcmul(chord.new_ones(()), at_middle, at_middle, value=-1)
        beyond = (middle - d).sign_().relu_()
        (slope,) = prefer(beyond, (chord, slope))
        x = clip(_inverse_slope(slope), low, high)
        at_x = x.tanh()
        height, corner = at_x.addcmul(slope, x, value=-1), at_low.addcmul(slope, low, value=-1)
        inner = (height - corner).sign_().relu_()
        x, at_x = torch.lerp(low, x, inner), torch.lerp(at_low, at_x, inner)
        ctx.save_for_backward(low, high, d, at_low, at_d, at_middle, beyond, slope, x, at_x)
        allowance = slack(largest(tanh_lower, tanh_upper), slope * largest(lower, upper))
        return slope, torch.maximum(height, corner).add_(allowance)

    @staticmethod
    def backward(ctx: Any, of_slope: Tensor, of_top: Tensor) -> tuple[Tensor, Tensor]:
        low, high, d, at_low, at_d, at_middle, beyond, slope, x, at_x = ctx.saved_tensors
        # The maximising x is held, but follows an end on which it lies; so is d.
        of_slope = of_slope.addcmul(of_top, x, value=-1)
        of_x = (1 - at_x * at_x).sub_(slope).mul_(of_top)
        of_low, of_high = on_ends(of_x, x, low, high)
        of_tangent = of_slope * beyond
        of_chord = of_slope - of_tangent
        steep_d, width = 1 - at_d * at_d, (d - low).clamp_(min=TINY)
        over, bend = over_and_slope(width)
        bend = bend.mul_(1 - at_low * at_d)
        of_d = (over * at_low).mul_(steep_d).neg_().add_(bend).mul_(of_chord)
        of_left = over.mul_(at_d).mul_(1 - at_low * at_low).add_(bend).mul_(of_chord)
        on_low, on_high = on_ends(of_d, d, low, high)
        of_middle = (at_middle * at_middle).sub_(1).mul_(at_middle).mul_(of_tangent)
        of_low = of_low.add_(on_low).sub_(of_left).add_(of_middle)
        of_high = of_high.add_(on_high).add_(of_middle)
        return of_low[0] - of_high[1], of_high[0] - of_low[1]


def over_and_slope(width: Tensor) -> tuple[Tensor, Tensor]:
    """``tanh(width) / width`` for a width > 0, and its derivative."""
    over = width.tanh().div_(width)
    far, near = width.clamp(min=NEAR), width.clamp(max=NEAR)
    quotient = (over * far).square_().add_(over).neg_().add_(1).div_(far)
    series = near.square().mul_(8 / 15).sub_(2 / 3).mul_(near)
    return over, prefer(width - NEAR, (series, quotient))[0]


def tanh_above(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the line above tanh, of least area, and of that on the mirror image.

    Args:
        lower: left ends, of any shape.
        upper: right ends, of the same shape.

    Returns:
        Both with a new first axis of 2.
    """
    found: tuple[Tensor, Tensor] = _TanhAbove.apply(lower, upper)  # type: ignore[no-untyped-call]
    return found
