"""One linear function that runs between the lower and the upper side of a nonlinearity.

    |f(x, y) - (a x + b y + middle)|  <=  half       on a box or an octagon

An affine form keeps the linear part and takes ``half`` as the size of a new error symbol
(bounds/forms.py). The best slopes are those with the smallest half: a question of its own, as the
plane of least volume on one side has other slopes.

    chords       the chord of each factor; what is left of the product is bilinear, in closed form
    least_gap    searched, without gradient; see gap_search.py

B: batch, H: units.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from popqorn_train.kernels.chords import CURVED, MEMORY, SIGMOID, TANH, strips_with_gradient
from popqorn_train.relaxations.domain import Bands, Domain, Octagon, Rectangle
from popqorn_train.relaxations.extremum import (
    argmax_sigmoid,
    argmax_tanh,
    clip,
    largest,
    line_intercept,
    slack,
)
from popqorn_train.relaxations.lines import (
    Lines,
    mirrored,
    sigmoid_secant,
    tanh_lines,
    tanh_secant,
)
from popqorn_train.relaxations.products import Product


class LineStrip(NamedTuple):
    """``slope x + middle``, give or take ``half``; every field is ``(B, H)``."""

    slope: Tensor
    middle: Tensor
    half: Tensor


class PlaneStrip(NamedTuple):
    """``x * first + y * second + middle``, give or take ``half``; every field is ``(B, H)``."""

    x: Tensor
    y: Tensor
    middle: Tensor
    half: Tensor


Strip = TypeVar("Strip", LineStrip, PlaneStrip)


def smaller(one: Strip, other: Strip) -> Strip:
    """Of two strips the one that misses less, unit by unit."""
    better = other.half < one.half
    return type(one)(*(torch.where(better, y, x) for x, y in zip(one, other, strict=True)))


def between(top: Tensor, bottom: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and half of what lies between two ends, with the rounding of both."""
    return (top + bottom) / 2, (top - bottom) / 2 + slack(top, bottom)


def _line(
    f: Callable[[Tensor], Tensor],
    argmax: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    slope: Tensor,
    lower: Tensor,
    upper: Tensor,
    middle: float,
) -> LineStrip:
    """A line of some slope; f(-x) = 2 middle - f(x)."""
    low, high = mirrored(lower, upper)
    top, bottom = line_intercept(f, argmax, torch.stack([slope, slope]), low, high)
    return LineStrip(slope, *between(top, 2 * middle - bottom))


def tanh_strip(lower: Tensor, upper: Tensor) -> LineStrip:
    """The chord of tanh, moved to the middle of what it misses.

    Across a wide interval around 0, the mean slope of the lines on both sides misses less.
    """
    known = strips_with_gradient(TANH, (lower, upper))
    if known is not None:
        return LineStrip(*known)
    chord, lines = tanh_secant(lower, upper), tanh_lines(lower, upper)
    mean = (lines.lower_slope + lines.upper_slope) / 2
    one, other = (
        _line(torch.tanh, argmax_tanh, slope, lower, upper, 0.0) for slope in (chord, mean)
    )
    return smaller(one, other)


def sigmoid_strip(lower: Tensor, upper: Tensor) -> LineStrip:
    """The chord of sigmoid, likewise."""
    known = strips_with_gradient(SIGMOID, (lower, upper))
    if known is not None:
        return LineStrip(*known)
    slope = sigmoid_secant(lower, upper)
    return _line(torch.sigmoid, argmax_sigmoid, slope, lower, upper, 0.5)


def relu_strip(lower: Tensor, upper: Tensor) -> LineStrip:
    """The chord of relu, which lies above it; it misses most at 0 where that is inside."""
    width = upper - lower
    flat = width <= 0
    chord = (upper.relu() - lower.relu()) / torch.where(flat, torch.ones_like(width), width)
    slope = torch.where(flat, (upper > 0).to(upper), chord)
    top = torch.maximum(lower.relu() - slope * lower, upper.relu() - slope * upper)
    corner = clip(torch.zeros_like(lower), lower, upper)
    bottom = torch.minimum(top, corner.relu() - slope * corner)
    middle, half = between(top, bottom)
    return LineStrip(slope, middle, half + slack(largest(lower, upper)))


def strip_of_lines(lines: Lines, lower: Tensor, upper: Tensor) -> LineStrip:
    """From a line below and one above: the mean slope, and what lies between them."""
    slope = (lines.lower_slope + lines.upper_slope) / 2
    half = (lines.upper_slope - lines.lower_slope) / 2
    top = lines.upper_intercept + torch.maximum(half * lower, half * upper)
    bottom = lines.lower_intercept - torch.maximum(half * lower, half * upper)
    middle, reach = between(top, bottom)
    return LineStrip(
        slope, middle, reach + slack((slope.abs() + half.abs()) * largest(lower, upper))
    )


def chords(product: Product, domain: Domain) -> PlaneStrip:
    """The chords of both factors; differentiable.

    With sigmoid(x) = s + k dx + r and g(y) = t + m dy + q, where dx and dy are measured from the
    middle and r, q are what the chords miss,

        sigmoid(x) g(y) = s t + t k dx + s m dy  +  k m dx dy + r g(y) + q (s + k dx).

    The bands bound dx dy / (half_x half_y) = ((p + q)^2 - (p - q)^2) / 4.
    """
    octagon = Octagon(domain.box, Bands(*_bands_of(domain)))
    known = strips_with_gradient(CURVED if product.curved else MEMORY, octagon.ends())
    return _chords(product, domain) if known is None else PlaneStrip(*known)


def _bands_of(domain: Domain) -> Sequence[Tensor]:
    """Bands of an octagon; of a box, those that do not cut it."""
    if not isinstance(domain, Rectangle):
        return domain.bands
    two = torch.full_like(domain.ly, 2.0)
    return -two, two, -two, two


def _chords(product: Product, domain: Domain) -> PlaneStrip:
    """The same, in operations of torch."""
    lx, ux, ly, uy = domain.box
    gate = sigmoid_strip(lx, ux)
    xm, hx, ym, hy = (lx + ux) / 2, (ux - lx) / 2, (ly + uy) / 2, (uy - ly) / 2
    s = gate.middle + gate.slope * xm
    low, high = product.g(ly), product.g(uy)
    rest = gate.half * largest(low, high)
    if product.curved:
        other = tanh_strip(ly, uy)
        slope, t = other.slope, other.middle + other.slope * ym
        rest = rest + other.half * (s.abs() + gate.slope * hx)
    else:
        slope, t = torch.ones_like(ly), ym
    least, most = _mixed(domain)
    weight = gate.slope * slope * hx * hy
    a, b = t * gate.slope, s * slope
    middle = s * t - a * xm - b * ym + weight * (most + least) / 2
    sizes = slack(s * largest(ly, uy), a * largest(lx, ux), b * largest(ly, uy), s * t)
    return PlaneStrip(a, b, middle, weight * (most - least) / 2 + rest + 4 * sizes)


def _mixed(domain: Domain) -> tuple[Tensor, Tensor]:
    """Range of p q on a square cut by bands."""
    if isinstance(domain, Rectangle):
        one = torch.ones_like(domain.ly)
        return -one, one
    sums, diffs = (_square(*domain.bands[i : i + 2]) for i in (0, 2))
    return ((sums[0] - diffs[1]) / 4).clamp(min=-1), ((sums[1] - diffs[0]) / 4).clamp(max=1)


def _square(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Range of the square of what lies in ``[low, high]``."""
    near = torch.maximum(low, -high).relu()
    return near.square(), torch.maximum(low.square(), high.square())
