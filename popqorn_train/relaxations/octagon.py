"""Exact intercepts over an octagon, up to a proven allowance.

    intercept(a, b) = max over the octagon of f(x, y) - a x - b y

The maximum of a smooth function is at a local maximum inside (extremum.py has the only one) or
on the border. On sides along x or y it is in closed form. A diagonal is cut into pieces: where
the second derivative along it is at least -M, a piece of length h with end values g0 and g1 has

    max g <= max(g0, g1) + A relu(1 - |g1 - g0| / (4 A))^2,      A = M h^2 / 8

the peak of the parabola through both ends with second derivative -M.

B: batch, H: units.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.relaxations.domain import Octagon, Scale
from popqorn_train.relaxations.extremum import (
    LEAST_GATE,
    argmax_sigmoid,
    clip,
    follow_ends,
    largest,
    slack,
)
from popqorn_train.relaxations.lines import sigmoid_slope
from popqorn_train.relaxations.products import SIGMOID_BEND, Product
from popqorn_train.relaxations.tanh_product import Point, interior

PIECES = 8  # of a diagonal
_NEAR = 1e-3  # a local maximum this far outside, in half widths, counts as inside


class Diagonals(NamedTuple):
    """From where to where four diagonals go, ``(4, B, H)`` each."""

    x: Tensor
    y: Tensor
    to_x: Tensor
    to_y: Tensor

    def _shares(self) -> Tensor:
        return torch.linspace(0, 1, PIECES + 1, dtype=self.x.dtype, device=self.x.device)

    def points(self) -> tuple[Tensor, Tensor]:
        """Points in equal steps, both ends among them: x and y, ``(PIECES + 1, 4, B, H)`` each."""
        share = self._shares().view(-1, *[1] * self.x.ndim)
        return torch.lerp(self.x, self.to_x, share), torch.lerp(self.y, self.to_y, share)

    def point(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """One of them for each unit, by its place ``(B, H)`` among all."""
        share = self._shares()[index // 4]
        x, y, to_x, to_y = (end.gather(0, index[None] % 4)[0] for end in self)
        return torch.lerp(x, to_x, share), torch.lerp(y, to_y, share)


class Border(NamedTuple):
    """The border of an octagon.

    Attributes:
        x: corners in turn, ``(8, B, H)``.
        y: likewise.
        diagonals: every other side.
        bend: ``(4, B, H)`` the allowance A of each diagonal.
    """

    x: Tensor
    y: Tensor
    diagonals: Diagonals
    bend: Tensor


def border(product: Product, octagon: Octagon) -> Border:
    """Corners and diagonals of an octagon."""
    scale = octagon.scale()
    p, q = octagon.vertices()
    x, y = scale.x + scale.half_x * p, scale.y + scale.half_y * q
    ends = Diagonals(x[1::2], y[1::2], x[::2].roll(-1, 0), y[::2].roll(-1, 0))
    dx, dy = (ends.to_x - ends.x).detach() / PIECES, (ends.to_y - ends.y).detach() / PIECES
    return Border(x, y, ends, _bend(product, octagon, dx, dy))


def _bend(product: Product, octagon: Octagon, dx: Tensor, dy: Tensor) -> Tensor:
    """``M h^2 / 8`` for steps (dx, dy) along the diagonals.

    -f'' = -f_xx dx^2 - 2 f_xy dx dy - f_yy dy^2 with f_xy >= 0: the mixed term counts only
    where x and y move against each other.
    """
    lx, ux, ly, uy = (end.detach() for end in octagon.box.covered())
    zero = torch.zeros_like(lx)
    mixed = sigmoid_slope(clip(zero, lx, ux)) * product.slope(clip(zero, ly, uy))
    height = largest(product.g(ly), product.g(uy))
    along_y = ux.sigmoid() * product.bend
    against = (-dx * dy).clamp(min=0)
    return (SIGMOID_BEND * height * dx**2 + 2 * mixed * against + along_y * dy**2) / 8


def _sides(product: Product, a: Tensor, b: Tensor, edge: Border) -> tuple[Tensor, Tensor]:
    """The best points of the four sides along x or y, ``(4, B, H)`` each."""
    xs, ys = [], []
    for side in (0, 2, 4, 6):
        x, y = edge.x[side], edge.y[side]
        lower, upper = (torch.minimum(x, edge.x[side + 1]), torch.maximum(x, edge.x[side + 1]))
        if side % 4 == 0:  # x stays
            lower, upper = torch.minimum(y, edge.y[side + 1]), torch.maximum(y, edge.y[side + 1])
            y = follow_ends(product.argmax(x.sigmoid(), b, lower, upper).detach(), lower, upper)
        else:
            best = argmax_sigmoid(product.g(y), a, lower, upper).detach()
            x = follow_ends(best, lower, upper)
        xs.append(x)
        ys.append(y)
    return torch.stack(xs), torch.stack(ys)


def inside(product: Product, a: Tensor, b: Tensor, octagon: Octagon) -> tuple[Point, Tensor]:
    """The local maximum inside, and whether the octagon may hold it."""
    found, scale, bands = interior(a, b), octagon.scale(), octagon.bands
    near = found.near
    p, q = (near.x - scale.x) / scale.half_x, (near.y - scale.y) / scale.half_y
    far_p, far_q = (found.far_x - scale.x) / scale.half_x, (found.far_y(b) - scale.y) / scale.half_y
    # The true point lies in [far_p, p] x [far_q, q].
    in_box = (p >= -1 - _NEAR) & (far_p <= 1 + _NEAR) & (q >= -1 - _NEAR) & (far_q <= 1 + _NEAR)
    in_sums = (p + q >= bands.sum_low - _NEAR) & (far_p + far_q <= bands.sum_high + _NEAR)
    in_diffs = (p - far_q >= bands.diff_low - _NEAR) & (far_p - q <= bands.diff_high + _NEAR)
    lx, ux, ly, uy = octagon.box.covered()
    point = Point(clip(near.x, lx, ux), clip(near.y, ly, uy), near.miss)
    return point, (found.room > 0) & in_box & in_sums & in_diffs


def _highest(product: Product, a: Tensor, b: Tensor, edge: Border) -> tuple[Tensor, Tensor, Tensor]:
    """The highest points of the diagonals, and how far these may rise beside: ``(B, H)`` each."""
    with torch.no_grad():
        x, y = edge.diagonals.points()
        gap = product.value(x, y) - a * x - b * y
        rise = gap.diff(dim=0).abs()
        part = (1 - rise / (4 * edge.bend).clamp(min=torch.finfo(a.dtype).tiny)).clamp(min=0)
        peak = edge.bend * part**2
        peak = torch.maximum(
            torch.cat([peak, torch.zeros_like(peak[:1])]),
            torch.cat([torch.zeros_like(peak[:1]), peak]),
        )  # the greater allowance of the two pieces that meet
        best = (gap + peak).flatten(0, 1).max(0).indices
        room = peak.flatten(0, 1).gather(0, best[None])[0]
    return *edge.diagonals.point(best), room


def octagon_intercept(product: Product, a: Tensor, b: Tensor, octagon: Octagon) -> Tensor:
    """``max over the octagon of f - a x - b y``; all of one shape.

    Args:
        product: the function f.
        a: slope in x.
        b: slope in y.
        octagon: where.
    """
    edge = border(product, octagon)
    x, y, room = _highest(product, a, b, edge)
    gaps = [(product.value(x, y) - a * x - b * y + room)[None]]
    x, y = _sides(product, a, b, edge)
    gaps.append(product.value(x, y) - a * x - b * y)
    if product.curved:
        with torch.no_grad():
            point, held = inside(product, a, b, octagon)
        value = product.value(point.x, point.y) - a * point.x - b * point.y + point.miss
        gaps.append(torch.where(held, value, gaps[0][0])[None])
    candidates = torch.cat(gaps)
    best = candidates.detach().max(0, keepdim=True).indices
    return candidates.gather(0, best)[0] + 2 * _allowance(product, a, b, octagon)


def _allowance(product: Product, a: Tensor, b: Tensor, octagon: Octagon) -> Tensor:
    """Rounding of f, of the plane, and of the place of a corner, at which both are taken."""
    lx, ux, ly, uy = (end.detach() for end in octagon.box.covered())
    x, y, zero = largest(lx, ux), largest(ly, uy), torch.zeros_like(lx)
    gate, value = ux.sigmoid().clamp(min=LEAST_GATE), largest(product.g(ly), product.g(uy))
    in_x = sigmoid_slope(clip(zero, lx, ux)) * value
    in_y = product.slope(clip(zero.expand_as(ly), ly, uy)) * gate
    return slack(gate * value, a * x, b * y, in_x * x, in_y * y)


def scaled(scale: Scale, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """From the box to the square."""
    return (x - scale.x) / scale.half_x, (y - scale.y) / scale.half_y
