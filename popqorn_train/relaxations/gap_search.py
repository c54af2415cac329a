"""The plane through a product whose greatest distance from it is smallest, nearly.

Slopes are searched on points of the border of an octagon; any slopes are sound. What the plane
misses is bounded on the border by the second derivative along it, as in octagon.py, and inside at
the only local maximum and the only local minimum.

B: batch, H: units, P: points of a side.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.kernels import enclosing as compiled
from popqorn_train.relaxations.domain import Bands, Domain, Octagon, Rectangle
from popqorn_train.relaxations.extremum import clip, largest, slack
from popqorn_train.relaxations.lines import sigmoid_secant, sigmoid_slope
from popqorn_train.relaxations.octagon import inside
from popqorn_train.relaxations.products import SIGMOID_BEND, Product
from popqorn_train.relaxations.strips import PlaneStrip, between, smaller

_PIECES, _STEPS = 4, 4  # of a side of an octagon; of the search
_STEP, _DECAY = 0.15, 0.7  # of Polyak's step
_TURN = 1e-3  # share of the gap by which a later point comes before an equal one


class _Border(NamedTuple):
    """Points on the border of an octagon.

    Attributes:
        p: ``(8 P, B, H)``, scaled to the square.
        q: likewise.
        f: the product there.
        dx: ``(8, B, H)`` from a point to the next one of its side.
        dy: likewise.
    """

    p: Tensor
    q: Tensor
    f: Tensor
    dx: Tensor
    dy: Tensor


class Shape(NamedTuple):
    """Bounds on a product and its derivatives over a box, ``(B, H)`` each.

    Attributes:
        low: least value.
        high: greatest value.
        x: greatest absolute derivative in x.
        y: likewise in y.
        bend_x: greatest absolute second derivative in x.
        bend_y: likewise in y.
        mixed: greatest mixed derivative, which is not negative.
    """

    low: Tensor
    high: Tensor
    x: Tensor
    y: Tensor
    bend_x: Tensor
    bend_y: Tensor
    mixed: Tensor


def shape_of(product: Product, box: Rectangle) -> Shape:
    """A product on a box."""
    lx, ux, ly, uy = box
    zero, gate = torch.zeros_like(lx), ux.sigmoid()
    height = largest(product.g(ly), product.g(uy))
    rise = sigmoid_slope(clip(zero, lx, ux))
    # |sigmoid''| = sigmoid' |1 - 2 sigmoid|, and |tanh''| = 2 |tanh| tanh'.
    turn = largest(1 - 2 * lx.sigmoid(), 1 - 2 * gate)
    bend_x = (rise * turn).clamp(max=SIGMOID_BEND) * height
    slope = product.slope(clip(zero.expand_as(ly), ly, uy))
    bend_y = (2 * height * slope).clamp(max=product.bend) * gate
    ends = _range(product, box)
    return Shape(*ends, rise * height, slope * gate, bend_x, bend_y, rise * slope)


def _range(product: Product, box: Rectangle) -> tuple[Tensor, Tensor]:
    """Least and greatest value of a product on a box."""
    shut, gate, low, high = box.lx.sigmoid(), box.ux.sigmoid(), product.g(box.ly), product.g(box.uy)
    return torch.minimum(shut * low, gate * low), torch.maximum(shut * high, gate * high)


def least_gap(product: Product, domain: Domain) -> PlaneStrip:
    """The plane whose greatest distance from f is smallest, nearly; slopes without gradient."""
    octagon = domain if isinstance(domain, Octagon) else _uncut(domain)
    found = compiled.strips(octagon.ends(), curved=product.curved)
    return _least_gap(product, octagon) if found is None else PlaneStrip(*found.unbind())


def _least_gap(product: Product, octagon: Octagon) -> PlaneStrip:
    """The same, in operations of torch."""
    edge, covered = _border(product, octagon), octagon.box.covered()
    shape = shape_of(product, covered)
    with torch.no_grad():
        a, b = _searched(edge, *_first_slopes(product, octagon), octagon.box.flat())
    top, bottom = _on_border(edge, a, b, shape)
    scale = octagon.scale()
    a, b = a / scale.half_x, b / scale.half_y
    shift = a * scale.x + b * scale.y
    top, bottom = top - shift, bottom - shift
    if product.curved:
        top, bottom = _with_inside(product, a, b, octagon, top, bottom)
    middle, half = between(top, bottom)
    found = PlaneStrip(a, b, middle, half + _allowance(product, a, b, covered, shape))
    zero, (low, high) = torch.zeros_like(a), _range(product, octagon.box)
    return smaller(found, PlaneStrip(zero, zero, *between(high, low)))


def _border(product: Product, octagon: Octagon) -> _Border:
    """Points on all sides of an octagon, anticlockwise."""
    scale, (p, q) = octagon.scale(), octagon.vertices()
    dp, dq = ((corner.roll(-1, 0) - corner) / _PIECES for corner in (p, q))
    place = torch.arange(_PIECES, dtype=p.dtype, device=p.device).view(1, -1, *[1] * (p.ndim - 1))
    p, q = ((at[:, None] + place * step[:, None]).flatten(0, 1) for at, step in ((p, dp), (q, dq)))
    f = product.value(scale.x + scale.half_x * p, scale.y + scale.half_y * q)
    return _Border(p, q, f, (dp * scale.half_x).detach(), (dq * scale.half_y).detach())


def _uncut(box: Rectangle) -> Octagon:
    """A box as an octagon."""
    two = torch.full_like(box.ly, 2.0)
    return Octagon(box.expanded(), Bands(-two, two, -two, two))


def _first_slopes(product: Product, octagon: Octagon) -> tuple[Tensor, Tensor]:
    """Chords, as slopes in p and q."""
    (lx, ux, ly, uy), scale = octagon.box, octagon.scale()
    a = (product.g(ly) + product.g(uy)) / 2 * sigmoid_secant(lx, ux) * scale.half_x
    b = (lx.sigmoid() + ux.sigmoid()) / 2 * product.secant(ly, uy) * scale.half_y
    return a, b


def _searched(
    edge: _Border, a: Tensor, b: Tensor, flat: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Slopes in p and q of a small ``max - min`` over the points, by Polyak's steps.

    Chords leave the same rest at several corners: which one counts must not be left to rounding,
    nor the slope along a side that has no width.
    """
    rest = edge.f - a * edge.p - b * edge.q
    gap = rest.amax(0) - rest.amin(0)
    turn = torch.linspace(0, _TURN, len(rest), dtype=rest.dtype, device=rest.device)
    rest = torch.addcmul(rest, turn.view(-1, *[1] * gap.ndim), gap)
    best_gap, best = torch.full_like(gap, torch.inf), (a, b)
    for k in range(_STEPS + 1):
        (top, i), (bottom, j) = rest.max(0, keepdim=True), rest.min(0, keepdim=True)
        gap = (top - bottom)[0]
        better = gap < best_gap
        best_gap = torch.minimum(gap, best_gap)
        best = torch.where(better, a, best[0]), torch.where(better, b, best[1])
        if k == _STEPS:
            break
        in_p, in_q = (
            (x.gather(0, i) - x.gather(0, j))[0].masked_fill(none, 0)
            for x, none in zip((edge.p, edge.q), flat, strict=True)
        )
        size = _STEP * _DECAY**k * gap / (in_p * in_p + in_q * in_q).clamp(min=1e-6)
        da, db = size * in_p, size * in_q
        a, b = a + da, b + db
        rest = torch.addcmul(torch.addcmul(rest, da, edge.p, value=-1), db, edge.q, value=-1)
    return best


def _on_border(edge: _Border, a: Tensor, b: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Greatest and least ``f - a p - b q`` on the border, by the bend between its points."""
    plane = a * edge.p + b * edge.q
    rest = edge.f - plane
    (plane, beyond), (rest, after) = _with_next(plane), _with_next(rest)
    plain = shape.bend_x * edge.dx.square() + shape.bend_y * edge.dy.square()
    mixed = 2 * shape.mixed * edge.dx * edge.dy
    rise = (after - rest).abs().detach()

    def peak(bend: Tensor) -> Tensor:
        most = bend[:, None].detach() / 8
        tiny = torch.finfo(rise.dtype).tiny
        return most * (1 - rise / (4 * most).clamp(min=tiny)).relu().square()

    top = torch.maximum(rest, after) + peak(plain + (-mixed).relu())
    bottom = torch.minimum(rest, after) - peak(plain + mixed.relu())
    # Far apart, points say little about what lies between them, the range of f does.
    top = torch.minimum(top, shape.high - torch.minimum(plane, beyond))
    bottom = torch.maximum(bottom, shape.low - torch.maximum(plane, beyond))
    return top.flatten(0, 1).amax(0), bottom.flatten(0, 1).amin(0)


def _with_next(at: Tensor) -> tuple[Tensor, Tensor]:
    """What holds at every point, and at the next one, ``(8, P, B, H)`` each."""
    shape = (8, _PIECES, *at.shape[1:])
    return at.view(shape), at.roll(-1, 0).view(shape)


def _with_inside(
    product: Product, a: Tensor, b: Tensor, octagon: Octagon, top: Tensor, bottom: Tensor
) -> tuple[Tensor, Tensor]:
    """The same, with the local extrema inside: f(x, -y) = -f(x, y)."""
    slopes = torch.stack([a, -a]), torch.stack([b, b])
    with torch.no_grad():
        point, held = inside(product, *slopes, octagon.with_mirror())
    value = product.value(point.x, point.y) - slopes[0] * point.x - slopes[1] * point.y
    above, below = torch.where(held, value + point.miss, -torch.inf)
    return torch.maximum(top, above), torch.minimum(bottom, -below)


def _allowance(product: Product, a: Tensor, b: Tensor, box: Rectangle, shape: Shape) -> Tensor:
    """Rounding of f, of the plane, and of the place of a point, which both are taken at."""
    lx, ux, ly, uy = box
    x, y = largest(lx, ux), largest(ly, uy)
    height = ux.sigmoid() * largest(product.g(ly), product.g(uy))
    return 3 * slack(height, a * x, b * y, shape.x * x, shape.y * y)
