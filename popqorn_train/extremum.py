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
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_SLACK = 4.0  # units in the last place; the need measured is below 2
_FLOOR = 1e-30  # covers gates that are denormal numbers


class Point(NamedTuple):
    """A point of the box, and by how much its value may miss the true maximum."""

    x: Tensor
    y: Tensor
    miss: Tensor


class Interior(NamedTuple):
    """The interior local maximum lies between two points, as near as Newton's method brings them.

    Attributes:
        near: the point found; ``miss`` is what the maximum may exceed its value by.
        far_x: coordinate of the other point, at most that of ``near``.
        far_y: likewise.
        exists: whether there is an interior local maximum at all.
    """

    near: Point
    far_x: Tensor
    far_y: Tensor
    exists: Tensor


def clip(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Move x into [lower, upper]; NaN stays NaN."""
    return torch.minimum(torch.maximum(x, lower), upper)


def follow_ends(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Let a detached point that sits on an end follow that end, so that gradients reach it."""
    return torch.where(x <= lower, lower, torch.where(x >= upper, upper, x))


def slack(*terms: Tensor) -> Tensor:
    """Rounding allowance for a sum of terms no larger than these, without gradient."""
    size = functools.reduce(torch.add, [term.detach().abs() for term in terms])
    return _SLACK * torch.finfo(size.dtype).eps * size + _FLOOR


def largest(lower: Tensor, upper: Tensor) -> Tensor:
    """Greatest absolute value in [lower, upper]."""
    return torch.maximum(lower.abs(), upper.abs())


def _ratio(slope: Tensor, weight: Tensor, top: float) -> Tensor:
    """``slope / weight`` clipped to the range (0, top] of the derivative."""
    tiny = torch.finfo(weight.dtype).tiny
    weight = torch.where(weight.abs() < tiny, torch.full_like(weight, tiny), weight)
    return (slope / weight).clamp(10 * tiny, top)


def argmax_sigmoid(weight: Tensor, slope: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Stationary point of ``weight * sigmoid(x) - slope * x`` that may be a maximum, clipped.

    sigmoid' is even and falls in |x|: of the two points where it equals slope / weight, only the
    one on the side of the sign of ``weight`` can be a maximum. Clipping it is harmless.
    """
    ratio = _ratio(slope, weight, 0.25)
    root = (1 - 4 * ratio).clamp(min=0).sqrt()
    x = 2 * torch.log((1 + root) / (2 * ratio.sqrt()))
    return clip(torch.where(weight < 0, -x, x), lower, upper)


def argmax_tanh(weight: Tensor, slope: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The same for ``weight * tanh(x) - slope * x``."""
    ratio = _ratio(slope, weight, 1.0)
    root = (1 - ratio).clamp(min=0).sqrt()
    x = torch.log((1 + root) / ratio.sqrt())
    return clip(torch.where(weight < 0, -x, x), lower, upper)


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
        candidates = torch.stack([lower, upper, inner])
        best = (f(candidates) - slope * candidates).max(0, keepdim=True).indices
        x = candidates.gather(0, best)[0]
    x = follow_ends(x, lower, upper)
    return f(x) - slope * x + slack(largest(f(lower), f(upper)), slope * largest(lower, upper))


def product_edges(slope: Tensor, lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor) -> Tensor:
    """For y at each end, the x that maximises ``y * sigmoid(x) - slope * x``: ``(2, ...)``."""
    with torch.no_grad():
        weight = torch.stack([ly, uy])
        lower, upper = lx.expand_as(weight), ux.expand_as(weight)
        inner = argmax_sigmoid(weight, slope.expand_as(weight), lower, upper)
        candidates = torch.stack([lower, upper, inner])
        best = (weight * candidates.sigmoid() - slope * candidates).max(0, keepdim=True).indices
        return candidates.gather(0, best)[0]


def product_intercept(
    a: Tensor, b: Tensor, lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor
) -> Tensor:
    """``max over the box of sigmoid(x) y - a x - b y``, all of one shape.

    The function is linear in y, so its maximum lies on one of the two edges in y.
    """
    x = follow_ends(product_edges(a, lx, ux, ly, uy), lx, ux)
    y = torch.stack([ly, uy])
    gaps = y * x.sigmoid() - a * x - b * y
    gap = torch.where((gaps[1] > gaps[0]).detach(), gaps[1], gaps[0])
    height = largest(ly, uy)
    return gap + slack(ux.sigmoid() * height, b * height, a * largest(lx, ux))


def _stationary(w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The point (x, y) with 1 - sigmoid(x) = w at which the derivative in y vanishes."""
    tiny = 10 * torch.finfo(w.dtype).tiny
    x = torch.log1p(-w) - w.clamp(min=tiny).log()
    t = ((1 - b - w) / (1 - w)).clamp(0, 1).sqrt()
    return x, torch.log((1 + t) / (b / (1 - w)).clamp(tiny, 1).sqrt())


def interior(a: Tensor, b: Tensor, steps: int = 4) -> Interior:
    """The one interior local maximum of ``sigmoid(x) tanh(y) - a x - b y`` on the plane.

    With s = sigmoid(x), w = 1 - s, beta = 1 - b, stationarity leaves r(w) = a for the function
    r(w) = w sqrt((1-w)(beta-w)), which is concave; the maximum is the root w* below the peak of
    r. Newton's method comes from the side w <= w*, so the remaining error is bounded:
    G* - G <= (a - r(w)) (x - x_peak). The chord of r from w to the peak lies below r, so its
    root lies beyond w*.
    """
    eps, tiny = torch.finfo(a.dtype).eps, 10 * torch.finfo(a.dtype).tiny
    b_in, a_in = b.clamp(tiny, 1 - 4 * eps), a.clamp(min=tiny)
    beta = 1 - b_in
    spread = 6 - 3 * b_in
    w_peak = 4 * beta / (spread + (spread * spread - 32 * beta).clamp(min=0).sqrt())
    r_peak = w_peak * ((1 - w_peak) * (beta - w_peak)).clamp(min=0).sqrt()
    rho = (a_in / r_peak.clamp(min=tiny)).clamp(max=1)
    least = torch.minimum(a_in / beta.sqrt(), w_peak)
    w = torch.maximum(w_peak * rho / (1 + (1 - rho).sqrt()), least)
    for _ in range(steps):
        height = ((1 - w) * (beta - w)).clamp(min=tiny).sqrt()
        slope = height - w * (1 - w + beta - w) / (2 * height)
        newton = w - (w * height - a_in) / slope.clamp(min=tiny)
        # Near the double root the derivative is noise: keep the start there.
        w = clip(torch.where(slope > eps ** (1 / 3) * height, newton, w), least, w_peak)
    r = w * ((1 - w) * (beta - w)).clamp(min=0).sqrt()
    short = (a_in - r).clamp(min=0)
    share = (short + 8 * eps * r_peak) / (r_peak - r + 4 * eps * r_peak).clamp(min=tiny)
    x, y = _stationary(w, b_in)
    far_x, far_y = _stationary(torch.lerp(w, w_peak, share.clamp(max=1)), b_in)
    x_peak, _ = _stationary(w_peak, b_in)
    exists = (a > 0) & (b > 0) & (b < 1) & (a_in <= r_peak * (1 + 1e-3))
    return Interior(Point(x, y, short * (x - x_peak).clamp(min=0)), far_x, far_y, exists)


def argmax_sigmoid_tanh(
    a: Tensor, b: Tensor, lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor
) -> Point:
    """Where ``sigmoid(x) tanh(y) - a x - b y`` is largest on the box.

    A smooth function has its maximum at a corner, at a stationary point of an edge, or at an
    interior local maximum: 4 + 4 + 1 candidates.
    """
    a, b = a.expand_as(lx), b.expand_as(lx)
    y_left, y_right = (argmax_tanh(x.sigmoid(), b, ly, uy) for x in (lx, ux))
    x_low, x_high = (argmax_sigmoid(y.tanh(), a, lx, ux) for y in (ly, uy))
    inner = interior(a, b)
    inside = inner.exists & (inner.near.x >= lx) & (inner.far_x <= ux)
    miss = torch.where(inside, inner.near.miss, torch.zeros_like(inner.near.miss))
    xs = torch.stack([lx, lx, ux, ux, lx, ux, x_low, x_high, clip(inner.near.x, lx, ux)])
    ys = torch.stack([ly, uy, ly, uy, y_left, y_right, ly, uy, clip(inner.near.y, ly, uy)])
    gaps = xs.sigmoid() * ys.tanh() - a * xs - b * ys
    gaps = torch.cat([gaps[:-1], gaps[-1:] + miss])
    best = gaps.max(0, keepdim=True).indices
    miss = torch.where(best[0] == len(gaps) - 1, miss, torch.zeros_like(miss))
    return Point(xs.gather(0, best)[0], ys.gather(0, best)[0], miss)


def sigmoid_tanh_intercept(
    a: Tensor, b: Tensor, lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor
) -> Tensor:
    """``max over the box of sigmoid(x) tanh(y) - a x - b y``, all of one shape."""
    with torch.no_grad():
        x, y, miss = argmax_sigmoid_tanh(a, b, lx, ux, ly, uy)
    x, y = follow_ends(x, lx, ux), follow_ends(y, ly, uy)
    height = largest(ly, uy)
    allowance = slack(ux.sigmoid() * height.tanh(), a * largest(lx, ux), b * height)
    return x.sigmoid() * y.tanh() - a * x - b * y + miss + allowance
