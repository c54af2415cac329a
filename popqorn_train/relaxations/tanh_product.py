"""Exact intercepts over a box for ``sigmoid(x) tanh(y)``, in the manner of extremum.py.

A smooth function has its maximum at a corner, at a stationary point of an edge, or at a local
maximum inside. There is at most one: with s = sigmoid(x), w = 1 - s, beta = 1 - b, stationarity
of ``sigmoid(x) tanh(y) - a x - b y`` leaves r(w) = a for the function

    r(w) = w sqrt((1-w)(beta-w))

which is concave; the maximum is the root w* below the peak of r.

Source: planes.md section 5 of this project.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.kernels.library import is_recorded
from popqorn_train.relaxations.extremum import (
    LEAST,
    argmax_tanh,
    clip,
    gap_at,
    largest,
    prefer,
    slack,
)

_NEAR = 1e-3  # relative distance at which something counts as reached
_MANY = 8  # one box in so many costs less to pick out than to look at all


class Point(NamedTuple):
    """A point of the box, and by how much its value may miss the true maximum."""

    x: Tensor
    y: Tensor
    miss: Tensor


class Interior(NamedTuple):
    """The interior local maximum lies between two points, as near as Newton's method brings them.

    Attributes:
        near: the point found; ``miss`` is what the maximum may exceed its value by.
        near_w: its w = 1 - sigmoid(x).
        far_w: that of the other point, which is at least as large.
        room: positive where there is an interior local maximum at all.
    """

    near: Point
    near_w: Tensor
    far_w: Tensor
    room: Tensor

    @property
    def far_x(self) -> Tensor:
        """Coordinate of the other point, at most that of ``near``."""
        return _x_at(self.far_w)

    def far_y(self, b: Tensor) -> Tensor:
        """The other coordinate, for the slope in y, at most that of ``near``."""
        return _y_at(self.far_w, _inner_slope(b))


def _x_at(w: Tensor) -> Tensor:
    """The x with 1 - sigmoid(x) = w."""
    return torch.rsub(w, 1).log_().sub_(w.clamp(min=10 * torch.finfo(w.dtype).tiny).log_())


def _y_at(w: Tensor, b: Tensor) -> Tensor:
    """The y at which the derivative in y vanishes, for that x."""
    ratio = (b / (1 - w)).clamp_(10 * torch.finfo(w.dtype).tiny, 1)
    return torch.rsub(ratio, 1).sqrt_().add_(1).div_(ratio.sqrt_()).log_()


def _over_w(w: Tensor, beta: Tensor) -> Tensor:
    """``r(w) / w``, and a little above 0 where that is 0."""
    least = 10 * torch.finfo(w.dtype).tiny
    return torch.rsub(w, 1).mul_(beta - w).clamp_(min=least).sqrt_()


def _newton(w: Tensor, a: Tensor, beta: Tensor) -> Tensor:
    """One step towards r(w) = a from the left; r is concave, so it does not go too far."""
    height = _over_w(w, beta)
    slope = torch.sub(1 + beta, w, alpha=2).mul_(w).div_(height).mul_(-0.5).add_(height)
    # Near the double root the derivative is noise: a steeper one makes a smaller step.
    slope = torch.maximum(slope, height * torch.finfo(w.dtype).eps ** (1 / 3))
    return w - height.mul_(w).sub_(a).div_(slope)


def _peak(beta: Tensor) -> tuple[Tensor, Tensor]:
    """Where r is greatest, and its value there."""
    spread = 3 + 3 * beta
    least = 10 * torch.finfo(beta.dtype).tiny
    root = (spread * spread).sub_(beta, alpha=32).clamp_(min=least).sqrt_()
    w = (4 * beta).div_(root.add_(spread))
    return w, w * _over_w(w, beta)


def _inner_slope(b: Tensor) -> Tensor:
    """A slope in y for which there may be an interior maximum."""
    numbers = torch.finfo(b.dtype)
    return b.clamp(10 * numbers.tiny, 1 - 4 * numbers.eps)


@torch.no_grad()
def interior(a: Tensor, b: Tensor, steps: int | None = None) -> Interior:
    """The one interior local maximum of ``sigmoid(x) tanh(y) - a x - b y`` on the plane.

    Newton's method comes from the side w <= w*, so the remaining error is bounded:
    G* - G <= (a - r(w)) (x - x_peak). The chord of r from w to the peak lies below r, so its
    root lies beyond w*.

    Args:
        a: slope in x.
        b: slope in y.
        steps: of Newton's method; None takes what the precision can tell.
    """
    if steps is None:
        steps = 2 if a.dtype == torch.float32 else 3
    eps, tiny = torch.finfo(a.dtype).eps, 10 * torch.finfo(a.dtype).tiny
    b_in, a_in = _inner_slope(b), a.clamp(min=tiny)
    beta = 1 - b_in
    w_peak, r_peak = _peak(beta)
    rho = (a_in / r_peak.clamp(min=tiny)).clamp_(max=1 - eps)
    least = torch.minimum(a_in / beta.sqrt(), w_peak)
    w = torch.maximum((w_peak * rho).div_(torch.rsub(rho, 1).sqrt_().add_(1)), least)
    for _ in range(steps):
        w = clip(_newton(w, a_in, beta), least, w_peak)
    r = w * _over_w(w, beta)
    short = (a_in - r).clamp_(min=0)
    share = torch.add(short, r_peak, alpha=8 * eps)
    share = share.div_((r_peak - r).add_(r_peak, alpha=4 * eps).clamp_(min=tiny)).clamp_(max=1)
    x, y, far = _x_at(w), _y_at(w, b_in), torch.lerp(w, w_peak, share)
    miss = short.mul_((x - _x_at(w_peak)).clamp_(min=0))
    room = functools.reduce(torch.minimum, (a, b, 1 - b, r_peak * (1 + 1e-3) - a_in))
    return Interior(Point(x, y, miss), w, far, room)


class _High(NamedTuple):
    """A point, and how high ``sigmoid(x) tanh(y) - a x - b y`` is there."""

    x: Tensor
    y: Tensor
    height: Tensor

    def or_point(self, other: "_High") -> "_High":
        """The higher one."""
        share = other.height - self.height
        x, y = prefer(share, (self.x, other.x), (self.y, other.y))
        return _High(x, y, torch.maximum(self.height, other.height))


def _on_border(a: Tensor, b: Tensor, lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor) -> _High:
    """The highest point of the border.

    The edges along y have their greatest value at the stationary point or at the lower corner, see
    ``argmax_tanh``. With that, all corners are known, and of the edges along x the stationary
    points are enough.
    """
    low, high = ly.tanh(), uy.tanh()
    sides = []
    for x in (lx, ux):
        gate = x.sigmoid()
        y = argmax_tanh(gate, b, ly, uy)
        height = y.tanh().mul_(gate).addcmul_(b, y, value=-1)
        corner = (gate * low).addcmul_(b, ly, value=-1)
        (y,) = prefer(height - corner, (ly, y))
        height = torch.maximum(height, corner).addcmul_(a, x, value=-1)
        sides.append(_High(x, y, height))
    best, steep = sides[0].or_point(sides[1]), 4 * a
    for y, value in ((ly, low), (uy, high)):
        x = clip(_on_edge(steep, value), lx, ux)
        height = x.sigmoid().mul_(value).addcmul_(a, x, value=-1).addcmul_(b, y, value=-1)
        best = best.or_point(_High(x, y, height))
    return best


def _on_edge(steep: Tensor, value: Tensor) -> Tensor:
    """Where ``4 value sigmoid(x) - steep x`` has its local maximum, if any; else somewhere.

    With 4 sigmoid'(x) = 1 - tanh(x/2)^2, x/2 is the artanh of a root, see extremum.py.
    """
    numbers, sign = torch.finfo(value.dtype), value.sign()
    ratio = (steep * sign).div_(value.abs().clamp_(min=numbers.tiny))
    ratio = ratio.clamp_(LEAST[value.dtype], 1 - 2 * numbers.eps)
    return torch.rsub(ratio, 1).sqrt_().add_(1).square_().div_(ratio).log_().mul_(sign)


def _roomy(ux: Tensor, uy: Tensor) -> Tensor:
    """Boxes that may hold a local maximum inside, for any slopes.

    There the second derivatives are negative definite: with s = sigmoid(x) and t = tanh(y), that
    is t > 0 and t^2 (3 s - 1) > 1 - s > 0, which is most easily so at the upper ends.
    """
    s, t = ux.sigmoid(), uy.tanh().relu()
    return t * t * (3 * s - 1) + s > 1 - 1e-3


def _reaching(a: Tensor, b: Tensor, lx: Tensor, ux: Tensor) -> Tensor:
    """Boxes whose x include that of the local maximum, or nearly: r rises up to its peak."""
    beta = (1 - b).clamp_(min=0)
    w_peak, _ = _peak(beta)
    low, high = (torch.minimum((-x).sigmoid(), w_peak) for x in (ux, lx))
    r_low, r_high = (w * _over_w(w, beta) for w in (low, high))
    near = torch.minimum(r_high * (1 + _NEAR) - a, a * (1 + _NEAR) - r_low)
    # Close to 0, beta is rounded too much to tell.
    return torch.maximum(near, _NEAR - beta) >= 0


class _Inner(NamedTuple):
    """The local maximum inside; ``gain`` is positive where it is there and the highest point."""

    x: Tensor
    y: Tensor
    miss: Tensor
    gain: Tensor


def _inside(
    a: Tensor, b: Tensor, lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor, height: Tensor
) -> _Inner:
    """The local maximum inside, beside the height of the border."""
    inner = interior(a, b)
    x, y, miss = clip(inner.near.x, lx, ux), clip(inner.near.y, ly, uy), inner.near.miss
    gain = x.sigmoid().mul_(y.tanh()).addcmul_(a, x, value=-1).addcmul_(b, y, value=-1)
    gain = gain.add_(miss).sub_(height)
    inside = torch.minimum((-lx).sigmoid_() - inner.near_w, inner.far_w - (-ux).sigmoid_())
    return _Inner(x, y, miss, functools.reduce(torch.minimum, (gain, inner.room, inside)))


@torch.no_grad()
def argmax_sigmoid_tanh(
    a: Tensor, b: Tensor, lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor
) -> Point:
    """Where ``sigmoid(x) tanh(y) - a x - b y`` is largest on the box; shapes are broadcast."""
    best = _on_border(a, b, lx, ux, ly, uy)
    parts, roomy = (a, b, lx, ux, ly, uy, best.height), _roomy(ux, uy).expand_as(best.height)
    # To count them, a GPU would wait; what is recorded to be compiled holds no numbers.
    counted = roomy.is_cpu and not is_recorded(roomy)
    if not counted or _MANY * roomy.sum() > roomy.numel():
        inner = _inside(a.expand_as(best.height), *parts[1:])
        pairs = zip((best.x, best.y, torch.zeros_like(best.x)), inner[:3], strict=True)
        return Point(*prefer(inner.gain, *pairs))
    found = Point(best.x, best.y, torch.zeros_like(best.height))
    flat = [part.expand_as(best.height).flatten() for part in parts]
    some = roomy.flatten().nonzero()[:, 0]
    some = some[_reaching(*(part[some] for part in flat[:4]))]
    inner = _inside(*(part[some] for part in flat))
    higher = inner.gain.gt(0).nonzero()[:, 0]
    for whole, part in zip(found, inner[:3], strict=True):
        whole.view(-1)[some[higher]] = part[higher]
    return found


def sigmoid_tanh_intercept(
    a: Tensor, b: Tensor, lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor
) -> Tensor:
    """``max over the box of sigmoid(x) tanh(y) - a x - b y``; shapes are broadcast."""
    x, y, miss = argmax_sigmoid_tanh(a, b, lx, ux, ly, uy)
    with torch.no_grad():
        height = largest(ly, uy)
        allowance = slack(ux.sigmoid() * height.tanh(), a * largest(lx, ux), b * height) + miss
    return gap_at(x, y, a, b, (lx, ux, ly, uy), curved=True) + allowance
