"""Exact intercepts: the greatest gap between a nonlinearity and a linear function on a box.

    intercept(a, b) = max over the box of f(x, y) - a x - b y

so that ``f <= a x + b y + intercept`` for *any* slopes a, b. The maximising point is found in
closed form, without gradient; the gap is then evaluated once there with gradient (envelope
theorem: a coordinate at an end follows that end, a free one is a constant). Every intercept is
raised by a few units in the last place of the largest term on the box, so that rounding cannot
lower it below the true maximum.

Only upper sides are written; lower ones follow by symmetry (lines.py, planes.py).
Sources: planes.md sections 2-6 of this project; Ko et al., "POPQORN", ICML 2019, appendix A.4,
for the problem.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

Edges = tuple[Tensor, Tensor]
_SLACK = 4.0  # units in the last place; the need measured is below 2
_FLOOR = 1e-30  # covers gates that are denormal numbers
LEAST_GATE = 1e-28  # what a gate counts as, beside a large factor: ratios below LEAST are cut off
LEAST = {torch.float32: 1e-36, torch.float64: 1e-300}  # ratio that counts as 0


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        ctx.save_for_backward(x, lower, upper)
        return torch.minimum(torch.maximum(x, lower), upper)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, lower, upper = ctx.saved_tensors
        of_rest = gradient * (x - lower).relu().sign()
        of_x = of_rest * (upper - x).relu().sign()
        of_lower, of_upper = gradient - of_rest, of_rest - of_x
        of_x = of_x.sum_to_size(x.shape) if ctx.needs_input_grad[0] else None
        return of_x, of_lower.sum_to_size(lower.shape), of_upper.sum_to_size(upper.shape)


def clip(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Move x into [lower, upper]; on an end it follows that end. NaN stays NaN."""
    if not torch.is_grad_enabled():
        return torch.clamp(x, lower, upper)
    found: Tensor = _Clip.apply(x, lower, upper)  # type: ignore[no-untyped-call]
    return found


def follow_ends(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Let a point that sits on an end follow that end, so that gradients reach it.

    Args:
        x: points, whose own gradient is left out.
        lower: left ends.
        upper: right ends.
    """
    return clip(x.detach(), lower, upper)


def prefer(gain: Tensor, *pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Of each pair the second where the gain is positive, else the first; all finite.

    An interpolation with weight 0 or 1 is exact, and ten times as fast as a choice by a mask.
    """
    share = gain.detach().sign().relu_()
    return [torch.lerp(one, other, share) for one, other in pairs]


def slack(*terms: Tensor) -> Tensor:
    """Rounding allowance for a sum of terms no larger than these, without gradient."""
    size = functools.reduce(torch.add, [term.detach().abs() for term in terms])
    return size.mul_(_SLACK * torch.finfo(size.dtype).eps).add_(_FLOOR)


def largest(lower: Tensor, upper: Tensor) -> Tensor:
    """Greatest absolute value in [lower, upper]."""
    return torch.maximum(lower.abs(), upper.abs())


def _artanh_root(ratio: Tensor, least: float) -> Tensor:
    """Where tanh' equals a ratio, right of 0: the artanh of sqrt(1 - ratio).

    Ratios are kept a little inside (0, 1), since roots and logarithms of 0 and infinity cost
    twenty times as much; a negative ratio, below which no tanh' falls, gives 1e30, however small
    it is.
    """
    inside = ratio.clamp(least, 1 - 2 * torch.finfo(ratio.dtype).eps)
    root = torch.rsub(inside, 1).sqrt_()
    x = root.add_(1).div_(inside.sqrt_()).log_()
    return x.sub_(ratio.clamp_(max=0).sign_(), alpha=1e30)


@torch.no_grad()
def argmax_tanh(weight: Tensor, slope: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Stationary point of ``weight * tanh(y) - slope * y`` that may be a maximum, clipped.

    The weight is positive. tanh' is even and falls in |y|: of the two points where it equals
    slope / weight, only the right one can be a maximum. Clipped, it is the maximum unless that is
    at the lower end: up to the left point the function falls, then it rises up to the right one,
    and falls again.
    """
    least = LEAST[weight.dtype]
    y = _artanh_root(slope / weight.clamp(min=torch.finfo(weight.dtype).tiny), least)
    return clip(y, lower, upper)


@torch.no_grad()
def argmax_sigmoid(weight: Tensor, slope: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The same for ``weight * sigmoid(x) - slope * x`` and any weight.

    For a negative weight all is mirrored: the point is left of 0, and only the upper end may
    be higher.
    """
    numbers = torch.finfo(weight.dtype)
    sign = weight.sign().add_(0.5).sign_()  # 1 where the weight is 0
    ratio = torch.mul(slope, sign).mul_(4).div_(weight.abs().clamp_(min=numbers.tiny))
    # sigmoid(x) = (1 + tanh(x / 2)) / 2
    x = _artanh_root(ratio, LEAST[weight.dtype]).mul_(sign).mul_(2)
    return clip(x, lower, upper)


def line_intercept(
    f: Callable[[Tensor], Tensor],
    argmax: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    slope: Tensor,
    lower: Tensor,
    upper: Tensor,
) -> Tensor:
    """``max over [lower, upper] of f(x) - slope * x`` for f = tanh or sigmoid, of any shape.

    Args:
        f: the function.
        argmax: where ``weight * f(x) - slope * x`` may be largest inside.
        slope: of the line; every other argument has its shape.
        lower: left end.
        upper: right end.
    """
    with torch.no_grad():
        inner = argmax(torch.ones_like(slope), slope, lower, upper)
        low, high = f(lower), f(upper)
        gain = f(inner) - low - slope * (inner - lower)
        (x,) = prefer(gain, (lower, inner))
        allowance = slack(largest(low, high), slope * largest(lower, upper))
    x = follow_ends(x, lower, upper)
    return f(x) - slope * x + allowance


@torch.no_grad()
def product_edges(slope: Tensor, lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor) -> Edges:
    """For y at each end, the x that maximises ``y * sigmoid(x) - slope * x``."""
    low, high = (product_edge(slope, lx, ux, y) for y in (ly, uy))
    return low, high


def product_edge(slope: Tensor, lx: Tensor, ux: Tensor, y: Tensor) -> Tensor:
    """The x that maximises ``y * sigmoid(x) - slope * x``."""
    inner = argmax_sigmoid(y, slope, lx, ux)
    (end,) = prefer(-y, (lx, ux))
    gain = (y * (inner.sigmoid() - end.sigmoid())).sub_(slope * (inner - end))
    return prefer(gain, (end, inner))[0]


class _Gap(torch.autograd.Function):
    """``sigmoid(x) g(y) - a x - b y`` at a point of the box that maximises it, see ``gap_at``."""

    @staticmethod
    def forward(ctx: Any, curved: bool, x: Tensor, y: Tensor, *parts: Tensor) -> Tensor:
        ctx.curved = curved
        ctx.save_for_backward(x, y, *parts)
        height = x.sigmoid().mul_(y.tanh() if curved else y)
        return height.addcmul_(parts[0], x, value=-1).addcmul_(parts[1], y, value=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, a, b, *box = ctx.saved_tensors
        gate, other = x.sigmoid(), y.tanh() if ctx.curved else y
        in_x = torch.addcmul(gate, gate, gate, value=-1).mul_(other).sub_(a).mul_(gradient)
        steep = torch.addcmul(gate, gate * other, other, value=-1) if ctx.curved else gate
        in_y = (steep - b).mul_(gradient)
        ends = (*on_ends(in_x, x, *box[:2]), *on_ends(in_y, y, *box[2:]))
        found = ((gradient * x).neg_(), (gradient * y).neg_(), *ends)
        sums = [part.sum_to_size(of.shape) for part, of in zip(found, (a, b, *box), strict=True)]
        return (None, None, None, *sums)


def on_ends(gradient: Tensor, x: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of each end where a point of [lower, upper] lies on it, else 0.

    Args:
        gradient: in the point; it is overwritten.
        x: the point.
        lower: left end.
        upper: right end.
    """
    of_rest = (x - lower).sign_().mul_(gradient)
    of_inner = (upper - x).sign_().mul_(of_rest)
    return gradient.sub_(of_rest), of_rest.sub_(of_inner)


def gap_at(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, box: Sequence[Tensor], *, curved: bool
) -> Tensor:
    """``sigmoid(x) g(y) - a x - b y`` where it is largest on a box, with its gradient.

    That is the gradient at the point, which is held, but follows an end on which it lies.

    Args:
        x: of the best point, in the box.
        y: likewise.
        a: slope in x.
        b: slope in y.
        box: the ends in x, then in y.
        curved: whether g is tanh, else the identity.
    """
    found: Tensor = _Gap.apply(curved, x, y, a, b, *box)  # type: ignore[no-untyped-call]
    return found


def product_intercept(
    a: Tensor,
    b: Tensor,
    lx: Tensor,
    ux: Tensor,
    ly: Tensor,
    uy: Tensor,
) -> Tensor:
    """``max over the box of sigmoid(x) y - a x - b y``; shapes are broadcast.

    The function is linear in y, so its maximum lies on one of the two edges in y, whose maxima
    are found first.
    """
    with torch.no_grad():
        x_low, x_high = product_edges(a, lx, ux, ly, uy)
        gain = x_high.sigmoid() * uy - x_low.sigmoid() * ly - a * (x_high - x_low) - b * (uy - ly)
        (x, y), height = prefer(gain, (x_low, x_high), (ly, uy)), largest(ly, uy)
        gate = ux.sigmoid().clamp_(min=LEAST_GATE)
        allowance = slack(gate * height, b * height, a * largest(lx, ux))
    return gap_at(x, y, a, b, (lx, ux, ly, uy), curved=False) + allowance
