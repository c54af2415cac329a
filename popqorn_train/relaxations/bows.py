"""Functions that bend one way: convex or concave on their whole domain.

For a convex f, any slope k and any t of [lower, upper],

    f(t) - k t + min over the ends of (f'(t) - k) (end - t)  <=  f(x) - k x
                                                             <=  max over the ends of f(end) - k end

so that every slope and every t are sound, however they were rounded. Above lies the chord. Below,
the tangent at the middle leaves the least area, and the tangent that is parallel to the chord
misses least. A concave f is minus a convex one.

An interval that reaches the edge of the domain has no bound: everything there is NaN, which
certifies nothing. Where the edge belongs to the domain, as 0 to that of the root, it may be an end.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.extremum import clip, largest, slack
from popqorn_train.relaxations.lines import Lines
from popqorn_train.relaxations.strips import LineStrip, between

_Function = Callable[[Tensor], Tensor]
_OFF = 1 / 64  # how far from an edge tangents stay, as a share of the interval


class Bow(NamedTuple):
    """An elementwise function that bends one way.

    Attributes:
        value: the function.
        slope: its derivative.
        touch: where the derivative is this number.
        convex: whether it lies below its chords, else above them.
        rises: whether it never falls; else it never rises, or turns.
        edge: of the domain, all of which is above it.
        closed: whether the edge belongs to it.
        turn: where the function is least, if it turns.
    """

    value: _Function
    slope: _Function
    touch: _Function
    convex: bool = True
    rises: bool = True
    edge: float = -math.inf
    closed: bool = False
    turn: float | None = None

    def range(self, bounds: Bounds) -> Bounds:
        """Images of the ends, and of the turn."""
        lower, upper = self._inside(*bounds)
        one, two = self.value(lower), self.value(upper)
        if self.turn is not None:
            bottom = self.value(clip(torch.full_like(lower, self.turn), lower, upper))
            return Bounds(bottom, torch.maximum(one, two))
        low, high = (one, two) if self.rises else (two, one)
        return Bounds(low.clamp(max=torch.finfo(low.dtype).max), high)

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """The chord, and the tangent at the middle."""
        return self.closest(lower, upper, (lower + upper) / 2)

    def closest(self, lower: Tensor, upper: Tensor, point: Tensor) -> Lines:
        """The chord, and the tangent at a point."""
        lower, upper = self._inside(lower, upper)
        bow = self._as_convex()
        chord, above = bow._chord(lower, upper)
        t = self._touching(point, lower, upper)
        tangent = bow._slope_at(t)
        terms = slack(bow.value(t), 2 * tangent * largest(lower, upper))
        below = bow.value(t) - tangent * t - terms
        if self.convex:
            return Lines(tangent, below, chord, above)
        return Lines(-chord, -above, -tangent, -below)

    def strip(self, lower: Tensor, upper: Tensor) -> LineStrip:
        """The chord, moved to the middle of what it misses."""
        lower, upper = self._inside(lower, upper)
        bow = self._as_convex()
        chord, top = bow._chord(lower, upper)
        with torch.no_grad():
            t = torch.where(bow.touch(chord).isnan(), (lower + upper) / 2, bow.touch(chord))
        t = self._touching(t, lower, upper)
        steeper = bow._slope_at(t) - chord
        rest = torch.minimum(steeper * (lower - t), steeper * (upper - t))
        size = slack(bow.value(t), (chord.abs() + steeper.abs()) * largest(lower, upper))
        middle, half = between(top, bow.value(t) - chord * t + rest - size)
        return LineStrip(chord, middle, half) if self.convex else LineStrip(-chord, -middle, half)

    def _as_convex(self) -> "Bow":
        """The function, or minus the function."""
        if self.convex:
            return self
        return self._replace(
            value=lambda x: -self.value(x),
            slope=lambda x: -self.slope(x),
            touch=lambda k: self.touch(-k),
        )

    def _inside(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """NaN in the place of intervals that reach the edge."""
        if self.edge == -math.inf:
            return lower, upper
        inside = lower >= self.edge if self.closed else lower > self.edge
        nan = torch.full_like(lower, math.nan)
        return torch.where(inside, lower, nan), torch.where(inside, upper, nan)

    def _chord(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and intercept of the line above; of short intervals, the slope in their middle."""
        width, middle = upper - lower, (lower + upper) / 2
        near = torch.finfo(lower.dtype).eps ** (1 / 3) * (middle - self.edge).clamp(max=1)
        short = (width <= near).detach()
        low, high = self.value(lower), self.value(upper)
        chord = (high - low) / torch.where(short, torch.ones_like(width), width)
        slope = torch.where(short, self._slope_at(middle), chord)
        top = torch.maximum(low - slope * lower, high - slope * upper)
        return slope, top + slack(largest(low, high), slope * largest(lower, upper))

    def _touching(self, point: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """A point of the interval, off the edge, where the derivative may be infinite."""
        if not self.closed:
            return clip(point, lower, upper)
        t = clip(point, torch.lerp(lower, upper, _OFF), upper)
        return torch.where(t > self.edge, t, upper)

    def _slope_at(self, x: Tensor) -> Tensor:
        """The derivative; 0 at an edge, which is all of the interval then."""
        at_edge = x <= self.edge
        found = self.slope(torch.where(at_edge, torch.ones_like(x), x))
        return torch.where(at_edge, torch.zeros_like(x), found)


class Odd(NamedTuple):
    """``f(-x) = -f(x)``, which bends one way on either side of 0, its edge."""

    half: Bow
    edge: float = 0.0

    def range(self, bounds: Bounds) -> Bounds:
        """Mirrored where the interval is left of 0."""
        left, lower, upper = self._right(*bounds)
        low, high = self.half.range(Bounds(lower, upper))
        return Bounds(torch.where(left, -high, low), torch.where(left, -low, high))

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """See ``Bow``."""
        return self.closest(lower, upper, (lower + upper) / 2)

    def closest(self, lower: Tensor, upper: Tensor, point: Tensor) -> Lines:
        """See ``Bow``."""
        left, lower, upper = self._right(lower, upper)
        one = self.half.closest(lower, upper, torch.where(left, -point, point))
        other = Lines(one.upper_slope, -one.upper_intercept, one.lower_slope, -one.lower_intercept)
        return Lines(*(torch.where(left, y, x) for x, y in zip(one, other, strict=True)))

    def strip(self, lower: Tensor, upper: Tensor) -> LineStrip:
        """See ``Bow``."""
        left, lower, upper = self._right(lower, upper)
        slope, middle, half = self.half.strip(lower, upper)
        return LineStrip(slope, torch.where(left, -middle, middle), half)

    @staticmethod
    def _right(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether the interval is left of 0, and its ends on the right of it."""
        left = upper < 0
        return left, torch.where(left, -upper, lower), torch.where(left, -lower, upper)


def _at_0(function: _Function, x: Tensor) -> Tensor:
    """A function that is 0 at 0, with 0 as its gradient there."""
    at_edge = x <= 0
    found = function(torch.where(at_edge, torch.ones_like(x), x))
    return torch.where(at_edge, torch.zeros_like(x), found)


def _logarithm(value: _Function, unit: float, shift: float = 0.0) -> Bow:
    """``log(x + shift) / unit``."""
    return Bow(
        value,
        lambda x: 1 / (unit * (x + shift)),
        lambda k: 1 / (unit * k) - shift,
        convex=False,
        edge=-shift,
    )


def _exponential(value: _Function, power: _Function, unit: float = 1.0) -> Bow:
    """``exp(unit x)``, which is the power, give or take a constant."""
    return Bow(value, lambda x: unit * power(x), lambda k: (k / unit).log() / unit)


def _fallen(value: _Function, power: float) -> Bow:
    """``x ** -power``."""
    return Bow(
        value,
        lambda x: -power * value(x) / x,
        lambda k: (-k / power) ** (-1 / (1 + power)),
        rises=False,
        edge=0.0,
    )


@functools.cache
def power(exponent: float) -> Bow:
    """``x ** exponent`` of what is not negative, for an exponent that is no whole number."""

    def value(x: Tensor) -> Tensor:
        return (x.double() ** exponent).to(x)  # float32 would round the exponent

    if exponent < 0:
        return _fallen(value, -exponent)
    return Bow(
        functools.partial(_at_0, value),
        lambda x: exponent * x ** (exponent - 1),
        lambda k: (k / exponent) ** (1 / (exponent - 1)),
        convex=exponent > 1,
        edge=0.0,
        closed=True,
    )


_RECIPROCAL = Odd(_fallen(torch.reciprocal, 1.0))
_BOWS = {
    "exp": _exponential(torch.exp, torch.exp),
    "exp2": _exponential(torch.exp2, torch.exp2, math.log(2)),
    "expm1": _exponential(torch.expm1, torch.exp),
    "log": _logarithm(torch.log, 1.0),
    "log2": _logarithm(torch.log2, math.log(2)),
    "log10": _logarithm(torch.log10, math.log(10)),
    "log1p": _logarithm(torch.log1p, 1.0, 1.0),
    "sqrt": Bow(
        lambda x: _at_0(torch.sqrt, x),
        lambda x: 0.5 * x.rsqrt(),
        lambda k: (2 * k) ** -2,
        False,
        edge=0.0,
        closed=True,
    ),
    "rsqrt": _fallen(torch.rsqrt, 0.5),
    "square": Bow(torch.square, lambda x: 2 * x, lambda k: k / 2, rises=False, turn=0.0),
}
BOWS: dict[str, Callable[[], Bow | Odd]] = {
    **{name: functools.partial(_BOWS.__getitem__, name) for name in _BOWS},
    "reciprocal": lambda: _RECIPROCAL,
}
