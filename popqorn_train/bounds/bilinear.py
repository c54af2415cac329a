"""The product and the quotient of two quantities that move, as in gates written by hand.

With centres xc, yc and half widths hx, hy of the box, (x - xc)(y - yc) lies within hx hy of 0:

    |x y - (yc x + xc y - xc yc)|  <=  hx hy

which is attained at the corners, so no parallel planes are closer (the mean of the two planes of
McCormick, Mathematical Programming, 1976, on either side).

x / y is linear in x, so that what a plane misses of it is largest where x is at an end. There it is
convex or concave in y, and bounded like a function of one argument (relaxations/bows.py): by its
ends, or by a tangent of which the place is a choice.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.affine import full
from popqorn_train.bounds.back_substitution import back_substitute
from popqorn_train.bounds.node import Node, Nonlinear
from popqorn_train.bounds.relaxer import Relaxer
from popqorn_train.bounds.tape import Tape
from popqorn_train.perturbations.region import Bounds, dot
from popqorn_train.relaxations.extremum import clip, largest, slack


class Strip(NamedTuple):
    """``x * first + y * second + intercept``, give or take ``reach``; all of one shape."""

    x: Tensor
    y: Tensor
    intercept: Tensor
    reach: Tensor


class Planes(NamedTuple):
    """A plane below and one above every entry, for every row: ``(B, K, *shape)``."""

    lower: Sequence[Tensor]
    upper: Sequence[Tensor]


class Bilinear(Nonlinear):
    """``x y``, entry by entry, of two nodes of one shape."""

    def __init__(self, x: Node, y: Node) -> None:
        super().__init__([x, y], x.shape, x.batch_axis)
        self.has_choice = len(x.shape) == 1

    def range(self, *inputs: Bounds) -> Bounds:
        """Exact on the corners of the box."""
        products = torch.stack([x * y for x in inputs[0] for y in inputs[1]])
        return Bounds(products.amin(0), products.amax(0))

    def relax(self, relaxer: Relaxer, *inputs: Bounds) -> Strip:
        """The strip between two parallel planes."""
        return self.strip(*inputs)

    def strip(self, *inputs: Bounds) -> Strip:
        """The same."""
        x, y = inputs
        (xc, hx), (yc, hy) = (((b.lower + b.upper) / 2, (b.upper - b.lower) / 2) for b in (x, y))
        size = largest(*x) * largest(*y)
        return Strip(yc, xc, -xc * yc, hx * hy + slack(4 * size))

    def sides(self, relaxation: Strip) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """See ``Nonlinear``."""
        x, y, intercept, reach = relaxation
        return (x, y, intercept - reach), (x, y, intercept + reach)

    def closest(self, points: Sequence[Tensor], ranges: Sequence[Bounds]) -> Planes:
        """Of the two planes of McCormick on either side the one that is closer at the point."""
        ends = [Bounds(*(end[:, None] for end in bounds)) for bounds in ranges]
        (lx, ux), (ly, uy) = ends
        more = slack(4 * largest(lx, ux) * largest(ly, uy))
        pairs = (((lx, ly), (ux, uy)), ((lx, uy), (ux, ly)))
        below, above = (
            _closer([(y, x, -x * y) for x, y in corners], points, sign)
            for corners, sign in zip(pairs, (1.0, -1.0), strict=True)
        )
        return Planes((*below[:2], below[2] - more), (*above[:2], above[2] + more))

    def backward(self, slope: Tensor, tape: Tape, relaxation: Strip | Planes) -> Tensor:
        """Both sides of a strip have the same slopes."""
        slope = full(slope, self.shape)
        if isinstance(relaxation, Planes):
            slopes, constant = back_substitute(slope, relaxation.lower, relaxation.upper)
        else:
            x, y, intercept, reach = relaxation
            slopes = [slope * x[:, None], slope * y[:, None]]
            constant = dot(slope, intercept) - dot(slope.abs(), reach)
        for node, on_node in zip(self.inputs, slopes, strict=True):
            tape.add(node, self._gathered(on_node, node))
        return constant

    def _gathered(self, slope: Tensor, node: Node) -> Tensor:
        """The slope on a factor."""
        return slope


def _closer(
    planes: Sequence[tuple[Tensor, Tensor, Tensor]], points: Sequence[Tensor], sign: float
) -> list[Tensor]:
    """Of two planes the one that is higher at a point, times the sign; as ``(B, K, *shape)``."""
    x, y = points
    one, two = (sign * (a * x + b * y + c) for a, b, c in planes)
    return [torch.where(one > two, first, second) for first, second in zip(*planes, strict=True)]


class Quotient(Bilinear):
    """``x / y``, entry by entry, of two nodes of one shape; NaN where y may be 0."""

    partial = True

    def __init__(self, x: Node, y: Node) -> None:
        super().__init__(x, y)
        self.has_choice = False

    def range(self, *inputs: Bounds) -> Bounds:
        """Exact on the corners of the box."""
        x, y = _upright(*inputs)[1:]
        quotients = torch.stack([one / other for one in x for other in y])
        return Bounds(quotients.amin(0), quotients.amax(0))

    def strip(self, *inputs: Bounds) -> Strip:
        """The chord in y for the middle of x, and the mean of the slopes in x at both ends of y."""
        sign, x, y = _upright(*inputs)
        ends = y.lower * y.upper
        a = (y.lower + y.upper) / 2 / ends
        b = -(x.lower + x.upper) / 2 / ends
        top = torch.maximum(*(_greatest(end, y, a, b) for end in x))
        bottom = -torch.maximum(*(_greatest(-end, y, a, -b) for end in x))
        size = largest(*x) / y.lower + b.abs() * y.upper
        middle, reach = (top + bottom) / 2, (top - bottom) / 2
        return Strip(sign * a, sign * b, middle, reach + slack(4 * size))


def _upright(x: Bounds, y: Bounds) -> tuple[Tensor, Bounds, Bounds]:
    """Both times the sign of y, and that sign; NaN where y has none."""
    sign = torch.where(y.lower > 0, 1.0, torch.where(y.upper < 0, -1.0, math.nan)).to(y.lower)
    turned = []
    for lower, upper in (x, y):
        one, two = sign * lower, sign * upper
        turned.append(Bounds(torch.minimum(one, two), torch.maximum(one, two)))
    return sign, turned[0], turned[1]


def _greatest(x: Tensor, y: Bounds, a: Tensor, b: Tensor) -> Tensor:
    """Upper bound of ``x / y - a x - b y`` for positive y, close to the greatest value."""
    at_ends = torch.maximum(x / y.lower - b * y.lower, x / y.upper - b * y.upper)
    with torch.no_grad():
        place = (-x / b).sqrt()
        t = clip(torch.where(place.isnan(), (y.lower + y.upper) / 2, place), *y)
    steep = -x / t.square() - b
    rest = torch.maximum(steep * (y.lower - t), steep * (y.upper - t))
    concave = x / t - b * t + rest
    return torch.where(x < 0, concave, at_ends) - a * x
