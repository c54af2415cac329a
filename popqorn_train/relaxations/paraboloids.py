"""Quadratic functions below what a linear one misses of a nonlinearity.

For a plane ``a x + b y + m`` through a product f, a sign, and x = middle + half p, y likewise,

    one + on_p p + on_q q + pp p^2 + pq p q + qq q^2  <=  sign (f(x, y) - a x - b y - m)  =:  F

on an octagon. The coefficients are those of least squares on a grid, weighted again where the
quadratic Q lies too high; any would do, since the constant is lowered to where all holds. Between
the nodes of a grid of spacing s, interpolating along p and then along q,

    F - Q  >=  least value at the nodes  -  s^2 / 8 (max (F - Q)_pp^+ + max (F - Q)_qq^+)

Nodes up to 2 s outside a band are corners of cells that reach into the octagon.

B: batch, U: units, G: nodes.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from popqorn_train.nested import map_nested
from popqorn_train.relaxations.domain import Octagon, Rectangle
from popqorn_train.relaxations.extremum import clip, largest, slack
from popqorn_train.relaxations.gap_search import shape_of
from popqorn_train.relaxations.products import Product
from popqorn_train.relaxations.strips import LineStrip, PlaneStrip

_COARSE, _FINE = 11, 21  # nodes a side, where it is fitted and where it is lowered
_LINE = 41  # nodes of a function of one argument
_FITS, _HEAVIER = 6, 3.0  # how often weights change, and by how much at the deepest node
_WIDER = 4.0  # units in the last place by which a side is widened
_LOWER = 4.0  # times the rounding of one value, what two of them and their sums are off by

Nested = TypeVar("Nested")


class Axis(NamedTuple):
    """A coordinate from -1 to 1 along a range: ``x = middle + half p``, ``(B, U)`` each."""

    middle: Tensor
    half: Tensor

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Where p is -1 and 1."""
        return self.middle - self.half, self.middle + self.half


class Quadratic(NamedTuple):
    """``one + on_p p + on_q q + pp p^2 + pq p q + qq q^2``; every field is ``(B, U)``."""

    one: Tensor
    on_p: Tensor
    on_q: Tensor
    pp: Tensor
    pq: Tensor
    qq: Tensor


class Smooth(Protocol):
    """A function of one argument, the most it bends between its breaks, and where these are."""

    @property
    def value(self) -> Callable[[Tensor], Tensor]:
        """The function."""

    @property
    def bend(self) -> float:
        """Greatest absolute second derivative."""

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where the derivative jumps."""


def below_product(
    product: Product, octagon: Octagon, strip: PlaneStrip, sign: Tensor
) -> tuple[Quadratic, tuple[Axis, Axis]]:
    """A quadratic below what a plane misses of a product, times a sign.

    Args:
        product: the function.
        octagon: its domain, in the precision of the ranges.
        strip: the plane, in float64 like all that is returned.
        sign: ``(B, U)`` 1 or -1.
    """
    grid = _Grid(product, octagon, strip, sign)
    basis, f, inside = grid.nodes(_COARSE)
    found = _fitted(basis, f, inside.to(f))
    basis, f, inside = grid.nodes(_FINE)
    rest = (f - found @ basis.T).masked_fill(~inside, torch.inf).amin(-1)
    x, y = grid.axes
    shape = shape_of(product, Rectangle(*x.ends, *y.ends))
    upward = (shape.bend_x * x.half**2 - 2 * found[..., 3]).relu()
    upward = upward + (shape.bend_y * y.half**2 - 2 * found[..., 5]).relu()
    between = (2 / (_FINE - 1)) ** 2 / 8 * upward
    far_x, far_y = largest(*x.ends), largest(*y.ends)
    terms = shape.high, shape.low, strip.x * far_x, strip.y * far_y, strip.middle, between
    rounding = slack(*terms, shape.x * far_x, shape.y * far_y, found.abs().sum(-1))
    one = found[..., 0] + rest - between - _LOWER * rounding
    return Quadratic(one, *found[..., 1:].unbind(-1)), grid.axes


class _Grid:
    """Nodes on the square around an octagon.

    Attributes:
        axes: of both arguments.
    """

    def __init__(self, product: Product, octagon: Octagon, strip: PlaneStrip, sign: Tensor) -> None:
        # Bands are measured on the scale of the precision that they were bounded in.
        scale = _in_precision_of(sign, octagon.scale())
        self._bands = _in_precision_of(sign, octagon.bands)
        self._product, self._strip, self._sign = product, strip, sign
        self.axes = _axis(scale.x, scale.half_x), _axis(scale.y, scale.half_y)
        wider = self.axes[0].half / scale.half_x + self.axes[1].half / scale.half_y - 2
        self._wider = (2 * wider + 1e-6)[..., None]

    def nodes(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Terms of a quadratic ``(G, 6)``, F and whether it counts, ``(B, U, G)``."""
        line = torch.linspace(-1, 1, count, dtype=self._sign.dtype, device=self._sign.device)
        x, y = (axis.middle[..., None] + axis.half[..., None] * line for axis in self.axes)
        f = x.sigmoid()[..., None] * self._product.g(y)[..., None, :]
        in_x, in_y, middle = (part[..., None] for part in self._strip[:3])
        f = f - (in_x * x + middle)[..., None] - (in_y * y)[..., None, :]
        p, q = (part.flatten() for part in torch.meshgrid(line, line, indexing="ij"))
        more = 4 / (count - 1) + self._wider
        low, high, down, up = (end[..., None] for end in self._bands)
        inside = (p + q <= high + more) & (p + q >= low - more)
        inside = inside & (p - q <= up + more) & (p - q >= down - more)
        basis = torch.stack([torch.ones_like(p), p, q, p * p, p * q, q * q], -1)
        return basis, (f * self._sign[..., None, None]).flatten(-2), inside


def below_curve(
    curve: Smooth, lower: Tensor, upper: Tensor, strip: LineStrip, sign: Tensor
) -> tuple[Quadratic, Axis]:
    """The same below what a line misses of a function of one argument; q does not occur."""
    middle, least = (lower + upper) / 2, 8 * torch.finfo(lower.dtype).eps
    half = torch.maximum(largest(upper - middle, middle - lower), least * (1 + middle.abs()))
    axis = _axis(middle, half)
    line = torch.linspace(-1, 1, _LINE, dtype=sign.dtype, device=sign.device)
    x = axis.middle[..., None] + axis.half[..., None] * line
    basis = torch.stack([torch.ones_like(line), line, line * line], -1)
    f = _missed(curve, x, strip, sign)
    found = _fitted(basis, f, torch.ones_like(f))
    rest = (f - found @ basis.T).amin(-1)
    for place in curve.breaks:  # a cell with a break inside is two cells
        at = clip(torch.full_like(middle, place), *axis.ends)
        p = (at - axis.middle) / axis.half
        height = found[..., 0] + p * (found[..., 1] + p * found[..., 2])
        rest = torch.minimum(rest, _missed(curve, at[..., None], strip, sign)[..., 0] - height)
    gap = 2 / (_LINE - 1)
    between = gap**2 / 8 * (curve.bend * axis.half**2 - 2 * found[..., 2]).relu()
    rounding = _rounding(curve.value(x), curve, axis, gap)
    rounding = rounding + slack(strip.slope * largest(*axis.ends), strip.middle, between)
    # A place is off by its rounding, which is much of a half width far from 0.
    far = 1 + largest(*axis.ends) / axis.half if curve.breaks else 1.0
    rounding = rounding + slack(found.abs().sum(-1) * far)
    none, (one, on_p, pp) = torch.zeros_like(rest), found.unbind(-1)
    one = one + rest - between - _LOWER * rounding
    return Quadratic(one, on_p, none, pp, none, none), axis


def _missed(curve: Smooth, x: Tensor, strip: LineStrip, sign: Tensor) -> Tensor:
    """F at points ``(B, U, G)``."""
    slope, middle, sign = (part[..., None] for part in (strip.slope, strip.middle, sign))
    return (curve.value(x) - slope * x - middle) * sign


def _rounding(value: Tensor, curve: Smooth, axis: Axis, gap: float) -> Tensor:
    """Of values at nodes ``(B, U, G)``, and of the places at which they are taken."""
    steep = value.diff(dim=-1).abs().amax(-1) / gap + curve.bend * axis.half**2
    return slack(value.abs().amax(-1), steep * largest(*axis.ends) / axis.half)


def _fitted(basis: Tensor, f: Tensor, held: Tensor) -> Tensor:
    """Coefficients ``(B, U, k)`` of a function that lies low, and nowhere much too high.

    Args:
        basis: ``(G, k)`` terms at the nodes.
        f: ``(B, U, G)`` what it should lie below.
        held: 1 at nodes that count, else 0.
    """
    count, size = held.sum(-1).clamp(min=1), basis.shape[-1]
    squares = (basis[:, :, None] * basis[:, None]).flatten(1)
    numbers = torch.finfo(f.dtype)
    ridge = 1e-6 * torch.eye(size, dtype=f.dtype, device=f.device)
    weight = held / count[..., None]
    best, least = f.new_zeros(()), f.new_full((), torch.inf)
    for _ in range(_FITS + 1):
        normal = (weight @ squares).view(*count.shape, size, size)
        scale = normal[..., :1, :1].clamp(min=numbers.tiny)
        right = ((weight * f) @ basis)[..., None]
        found = torch.linalg.solve(normal / scale + ridge, right / scale)[..., 0]
        rest = (f - found @ basis.T) * held
        low = rest.amin(-1)
        loss = rest.sum(-1) / count - low
        better = loss < least
        least, best = torch.minimum(loss, least), torch.where(better[..., None], found, best)
        depth = (rest / low.clamp(max=-numbers.tiny)[..., None]).clamp(min=0)
        weight = weight * (1 + _HEAVIER * depth**4)
        weight = weight / weight.amax(-1, keepdim=True)
    return best


def _axis(middle: Tensor, half: Tensor) -> Axis:
    """An axis that surely covers what it was made for."""
    return Axis(middle, half + _WIDER * torch.finfo(half.dtype).eps * (middle.abs() + half))


def _in_precision_of(like: Tensor, found: Nested) -> Nested:
    """Tensors in the shape, precision and place of another one."""
    moved: Nested = map_nested(found, Tensor, lambda x: x.expand_as(like).to(like))
    return moved
