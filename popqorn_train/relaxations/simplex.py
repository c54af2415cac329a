"""The plane above a product that is lowest at a reference point, by column generation.

    least height of a plane above f at r  =  greatest  w1 f(p1) + w2 f(p2) + w3 f(p3)
                                             with the mean w1 p1 + w2 p2 + w3 p3 = r

Every step puts the plane through three points around r, finds the point of the surface that is
most above it, and exchanges one of the three for it: a simplex method for all units at once. The
slopes of any step are sound; the best of all steps are taken (planes.md 4, frontier.md 3).

Everything is scaled to the square (domain.py) and without gradient.
B: batch, H: units; a leading axis of 2 stacks a domain and its mirror.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.relaxations.domain import Domain, Octagon, Rectangle, Scale
from popqorn_train.relaxations.extremum import clip
from popqorn_train.relaxations.octagon import border, inside, scaled
from popqorn_train.relaxations.products import Product, Steepness, steepness
from popqorn_train.relaxations.tanh_product import argmax_sigmoid_tanh

_INSIDE = (0.25, 0.5, 0.75)  # sampled points of a side along x or y


class _Triangle(NamedTuple):
    """Three points of the surface, scaled; weights whose mean is the reference. ``(3, B, H)``."""

    p: Tensor
    q: Tensor
    z: Tensor
    weight: Tensor

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Of the plane through the points."""
        first, second = _differences(self.p), _differences(self.q)
        third = _differences(self.z)
        area = _area(self.p, self.q)
        area = torch.where(area.abs() < 1e-9, torch.full_like(area, 1e-9), area)
        a = (third[0] * second[1] - third[1] * second[0]) / area
        return a, (first[0] * third[1] - first[1] * third[0]) / area

    def shares(self, p: Tensor, q: Tensor) -> Tensor:
        """Barycentric coordinates of a point."""
        return _shares(self.p, self.q, p, q)


def _differences(v: Tensor) -> tuple[Tensor, Tensor]:
    return v[1] - v[0], v[2] - v[0]


def _area(p: Tensor, q: Tensor) -> Tensor:
    """Twice the signed area of a triangle."""
    (p1, p2), (q1, q2) = _differences(p), _differences(q)
    return p1 * q2 - p2 * q1


def _shares(corners_p: Tensor, corners_q: Tensor, p: Tensor, q: Tensor) -> Tensor:
    (p1, p2), (q1, q2) = _differences(corners_p), _differences(corners_q)
    area = p1 * q2 - p2 * q1
    area = torch.where(area.abs() < 1e-9, torch.full_like(area, 1e-9), area)
    p, q = p - corners_p[0], q - corners_q[0]
    one, two = (p * q2 - p2 * q) / area, (p1 * q - p * q1) / area
    return torch.stack([1 - one - two, one, two])


@functools.cache
def _triples(count: int, device: torch.device) -> Tensor:
    """Triples of 4 corners; of 8, those of every other one, as neighbours are mostly close."""
    triples = itertools.combinations(range(count), 3)
    kept = [t for t in triples if count == 4 or len({i % 2 for i in t}) == 1]
    return torch.tensor(kept, device=device).T


def _first_triangle(p: Tensor, q: Tensor, z: Tensor, reference: tuple[Tensor, Tensor]) -> _Triangle:
    """Of the triples of corners around the reference, the one whose plane is highest there."""
    triples = _triples(len(p), p.device)
    corners_p, corners_q, corners_z = p[triples], q[triples], z[triples]  # (3, M, ...)
    weight = _shares(corners_p, corners_q, *reference)
    around = (weight >= -1e-6).all(0) & (_area(corners_p, corners_q).abs() > 1e-4)
    height = torch.where(
        around, (weight * corners_z).sum(0) + _order(z, len(triples[0])), -math.inf
    )
    best = height.argmax(0)[None, None].expand(3, 1, *height.shape[1:])
    parts = (part.gather(1, best)[:, 0] for part in (corners_p, corners_q, corners_z, weight))
    found = _Triangle(*parts)
    return found._replace(weight=found.weight.clamp(min=0))


def _order(z: Tensor, count: int) -> Tensor:
    """A slight preference for what comes first, ``(count, B, H)``.

    The surface is partly straight, where many points are equally high: without it, the last bit
    would choose between them.
    """
    places = torch.arange(count, dtype=z.dtype, device=z.device).view(-1, *[1] * (z.ndim - 1))
    return -64 * torch.finfo(z.dtype).eps * places * z.abs().amax(0)


def _reference(p: Tensor, q: Tensor, shift: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The middle of the corners, shifted, but no more than nine tenths of the way out."""
    middle_p, middle_q = p.mean(0), q.mean(0)
    p, q = p - middle_p, q - middle_q
    normal_p, normal_q = q.roll(-1, 0) - q, p - p.roll(-1, 0)  # pointing out of every side
    room = normal_p * p + normal_q * q
    towards = normal_p * shift[0] + normal_q * shift[1]
    way = torch.where(towards > 1e-9, room / towards.clamp(min=1e-9), math.inf).amin(0)
    way = (0.9 * way).clamp(0, 1)
    return middle_p + way * shift[0], middle_q + way * shift[1]


def lowest_plane(
    product: Product, domain: Domain, shift: tuple[float, float], steps: int
) -> tuple[Tensor, Tensor]:
    """Column generation: the plane through three points, each step with the point most above it.

    The least height at the reference over all planes above the surface is, by duality, the
    greatest mean of three values of the surface around the reference.
    """
    scale, limits = domain.scale(), _scaled_limits(product, domain)
    p, q = domain.vertices()
    z = product.value(scale.x + scale.half_x * p, scale.y + scale.half_y * q)
    reference = _reference(p, q, shift)
    triangle = _first_triangle(p, q, z, reference)
    above = _oracle(product, domain, scale)
    best = torch.full_like(scale.x, math.inf)
    best_a = best_b = torch.zeros_like(best)
    for step in range(steps + 1):
        a, b = triangle.slopes()
        a, b = clip(a, limits.x_low, limits.x_high), clip(b, limits.y_low, limits.y_high)
        new = above(a, b)
        height = new.z + a * (reference[0] - new.p) + b * (reference[1] - new.q)
        better = height < best
        best = torch.where(better, height, best)
        best_a, best_b = torch.where(better, a, best_a), torch.where(better, b, best_b)
        if step < steps:
            triangle = _pivot(triangle, new, a, b)
    return best_a / scale.half_x, best_b / scale.half_y


def _scaled_limits(product: Product, domain: Domain) -> Steepness:
    """Ranges of the slopes per half width."""
    limits, scale = steepness(product, domain.box), domain.scale()
    return Steepness(
        limits.x_low * scale.half_x,
        limits.x_high * scale.half_x,
        limits.y_low * scale.half_y,
        limits.y_high * scale.half_y,
    )


class _Point(NamedTuple):
    """A point of the surface, scaled."""

    p: Tensor
    q: Tensor
    z: Tensor


def _pivot(triangle: _Triangle, new: _Point, a: Tensor, b: Tensor) -> _Triangle:
    """Exchange a corner for a point above the plane, so that the reference stays inside."""
    share = triangle.shares(new.p, new.q)
    ratio = torch.where(share > 1e-7, triangle.weight / share.clamp(min=1e-7), math.inf)
    theta, leaving = ratio.min(0)
    plane = triangle.z[0] + a * (new.p - triangle.p[0]) + b * (new.q - triangle.q[0])
    gain = new.z - plane
    used = gain > (1e-9 if gain.dtype == torch.float64 else 1e-7)
    out = (leaving == torch.arange(3, device=leaving.device).view(3, *[1] * leaving.ndim)) & used
    moved = torch.where(out, theta, (triangle.weight - theta * share).clamp(min=0))
    return _Triangle(
        torch.where(out, new.p, triangle.p),
        torch.where(out, new.q, triangle.q),
        torch.where(out, new.z, triangle.z),
        torch.where(used, moved, triangle.weight),
    )


def _oracle(product: Product, domain: Domain, scale: Scale) -> Callable[[Tensor, Tensor], _Point]:
    """What finds the point of the surface most above a plane with given scaled slopes."""
    if isinstance(domain, Rectangle):
        return functools.partial(_above_box, domain, scale)
    return _Sampled(product, domain, scale)


def _above_box(box: Rectangle, scale: Scale, a: Tensor, b: Tensor) -> _Point:
    x, y, _ = argmax_sigmoid_tanh(a / scale.half_x, b / scale.half_y, *box)
    return _Point(*scaled(scale, x, y), x.sigmoid() * y.tanh())


class _Sampled:
    """The highest of points on the border of an octagon, and of the local maximum inside."""

    def __init__(self, product: Product, octagon: Octagon, scale: Scale) -> None:
        edge = border(product, octagon)
        x, y = (part.flatten(0, 1) for part in edge.diagonals.points())
        sides = [torch.lerp(v[::2], v[1::2], share) for v in (edge.x, edge.y) for share in _INSIDE]
        half = len(sides) // 2
        side_x, side_y = torch.cat(sides[:half]), torch.cat(sides[half:])
        self.p, self.q = scaled(scale, torch.cat([x, side_x]), torch.cat([y, side_y]))
        self.z = torch.cat([product.value(x, y), product.value(side_x, side_y)])
        self.order = _order(self.z, len(self.z))
        self.product, self.octagon, self.scale = product, octagon, scale

    def __call__(self, a: Tensor, b: Tensor) -> _Point:
        gap = self.z - a * self.p - b * self.q + self.order
        height, best = gap.max(0, keepdim=True)
        found = _Point(*(part.gather(0, best)[0] for part in (self.p, self.q, self.z)))
        if not self.product.curved:
            return found
        slopes = a / self.scale.half_x, b / self.scale.half_y
        point, held = inside(self.product, *slopes, self.octagon)
        p, q = scaled(self.scale, point.x, point.y)
        z = self.product.value(point.x, point.y)
        held = held & (z - a * p - b * q > height[0])
        pairs = zip((p, q, z), found, strict=True)
        return _Point(*(torch.where(held, new, old) for new, old in pairs))
