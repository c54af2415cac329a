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


class Border(NamedTuple):
    """The border of an octagon, and the product on its diagonals.

    Attributes:
        x: corners in turn, ``(8, B, H)``.
        y: likewise.
        diagonal: x, y and f on the four diagonals, ``(PIECES + 1, 4, B, H)`` each.
        bend: ``(4, B, H)`` the allowance A of each diagonal.
    """

    x: Tensor
    y: Tensor
    diagonal: tuple[Tensor, Tensor, Tensor]
    bend: Tensor


def border(product: Product, octagon: Octagon) -> Border:
    """Corners and diagonals of an octagon."""
    scale = octagon.scale()
    p, q = octagon.vertices()
    x, y = scale.x + scale.half_x * p, scale.y + scale.half_y * q
    share = torch.linspace(0, 1, PIECES + 1, dtype=x.dtype, device=x.device)
    share = share.view(-1, 1, *[1] * scale.x.ndim)
    starts, stops = (x[1::2], y[1::2]), (x[::2].roll(-1, 0), y[::2].roll(-1, 0))
    along_x, along_y = (torch.lerp(*ends, share) for ends in zip(starts, stops, strict=True))
    diagonal = along_x, along_y, product.value(along_x, along_y)
    dx, dy = ((stop - start).detach() / PIECES for start, stop in zip(starts, stops, strict=True))
    return Border(x, y, diagonal, _bend(product, octagon, dx, dy))


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


def octagon_intercept(product: Product, a: Tensor, b: Tensor, octagon: Octagon) -> Tensor:
    """``max over the octagon of f - a x - b y``; all of one shape.

    Args:
        product: the function f.
        a: slope in x.
        b: slope in y.
        octagon: where.
    """
    edge = border(product, octagon)
    x, y, f = edge.diagonal
    gap = f - a * x - b * y
    with torch.no_grad():
        rise = gap.diff(dim=0).abs()
        part = (1 - rise / (4 * edge.bend).clamp(min=torch.finfo(a.dtype).tiny)).clamp(min=0)
        peak = edge.bend * part**2
        peak = torch.maximum(
            torch.cat([peak, torch.zeros_like(peak[:1])]),
            torch.cat([torch.zeros_like(peak[:1]), peak]),
        )  # the greater allowance of the two pieces that meet
    gaps = [(gap + peak).flatten(0, 1)]
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
