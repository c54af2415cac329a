"""Which numbers an operation can give, from the numbers that it reads.

An elementwise operation is run on samples of its arguments: ``1 - sigmoid(z)`` stays in [0, 1] and
keeps 1/2 where it was, ``2 * sigmoid(z) - 1`` does not. No weight takes part.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.nested import map_nested
from popqorn_train.relaxations.curves import CURVES
from popqorn_train.tracing.steps import Multiple, Ref, Repeated, Step, called_name

_PRODUCTS = frozenset(("mul", "multiply", "div", "divide", "true_divide", "truediv"))
_ARITHMETIC = _PRODUCTS | frozenset(
    ("add", "sub", "subtract", "rsub", "neg", "negative", "positive", "pos", "lerp")
)
ELEMENTWISE = (
    _ARITHMETIC
    | CURVES.keys()
    | frozenset(
        (
            "arctan", "atan", "clamp_max", "clamp_min", "erf", "erfc", "exp", "exp2", "expm1",
            "float_power", "fmax", "fmin", "log", "log10", "log1p", "log2", "log_sigmoid", "logit",
            "maximum", "minimum", "ndtr", "pow", "reciprocal", "relu", "round", "rsqrt", "sqrt",
            "tanh",
        )
    )
)  # fmt: skip
_HUGE, _FAR, _POINTS, _NEAR = 1e30, 20.0, 33, 1e-6


class Range(NamedTuple):
    """Which numbers a step can give.

    Attributes:
        low: least, -inf where there is none, NaN where it is not known.
        middle: what becomes of a score of 0 and of a probability of 1/2; NaN if not known.
        high: greatest.
        probable: whether it is made from a probability.
    """

    low: float
    middle: float
    high: float
    probable: bool = False

    @property
    def free(self) -> bool:
        """Whether it is any real number."""
        return self.low == -math.inf and self.high == math.inf and not self.probable

    @property
    def fixed(self) -> bool:
        """Whether it is one number that does not move."""
        return self.low == self.high

    @property
    def is_score(self) -> bool:
        """Whether 0 may part two classes: numbers of both signs, from no probability."""
        both = self.low < 0 < self.high or math.isnan(self.low)
        return self.free or (both and self.middle == 0 and not self.probable)

    @property
    def is_probability(self) -> bool:
        """Whether it lies in [0, 1], on both sides of 1/2, and 1/2 is where it was."""
        inside = self.low >= -_NEAR and self.high <= 1 + _NEAR and self.low < 0.5 < self.high
        return inside and abs(self.middle - 0.5) < _NEAR

    def times(self, count: float) -> "Range":
        """Of a sum of so many."""
        return Range(count * self.low, count * self.middle, count * self.high, self.probable)


FREE = Range(-math.inf, 0.0, math.inf)
UNKNOWN = Range(math.nan, math.nan, math.nan, probable=True)
PROBABILITY = Range(0.0, 0.5, 1.0, probable=True)
LOG_PROBABILITY = Range(-math.inf, math.log(0.5), 0.0, probable=True)


def plain_name(step: Step) -> str:
    """``sigmoid`` for ``torch.sigmoid``; ``softmax`` for ``torch.special.softmax`` too."""
    return called_name(step.target).removeprefix("special_")


def constant(value: float) -> Range:
    """One number."""
    return Range(value, value, value)


def joined(ranges: Sequence[Range | None]) -> Range:
    """Of entries that come from any of these; a constant among them decides nothing."""
    known = [found for found in ranges if found is not None]
    moving = [found for found in known if not found.fixed]
    if moving and all(found.free for found in moving):
        return FREE
    middles = {found.middle for found in moving or known}
    if len(known) < len(ranges) or len(middles) != 1 or any(found.free for found in moving):
        return UNKNOWN
    low, high = min(found.low for found in known), max(found.high for found in known)
    return Range(low, middles.pop(), high, any(found.probable for found in moving))


def sampled(step: Step, read: dict[str, Range | None], layer: nn.Module | None = None) -> Range:
    """Of an elementwise operation.

    Args:
        step: what is run.
        read: ranges of the steps that it reads, None for an unknown constant.
        layer: the module, if it is one.
    """
    name = plain_name(step) if layer is None else ""
    moving = [found for found in read.values() if found is not None and not found.fixed]
    apart = len(step.refs) == len(read)  # z + y is any number, z * z is not
    if name in _ARITHMETIC and apart and any(found.free for found in moving):
        return FREE
    several = all if name in _PRODUCTS else any  # a gate times a value is a value
    probable = several(found.probable for found in moving)
    known = {ref: found for ref, found in read.items() if found is not None}
    if len(known) < len(read):  # 0 times something unknown stays 0
        still = name in _PRODUCTS and any(found.middle == 0 for found in moving)
        return Range(math.nan, 0.0 if still else math.nan, math.nan, probable)
    middles = {ref: torch.tensor(found.middle).double() for ref, found in known.items()}
    axes = len(known)
    samples = {ref: _samples(known[ref], at, axes) for at, ref in enumerate(known)}
    try:
        with torch.no_grad():
            middle, values = (_run(step, layer, given) for given in (middles, samples))
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return FREE if all(found.free for found in moving) else UNKNOWN
    low, high = (_infinite(float(end)) for end in (values.min(), values.max()))
    return Range(low, float(middle), high, probable)


def _samples(found: Range, at: int, axes: int) -> Tensor:
    """Some numbers of a range, along an axis of their own."""
    if math.isnan(found.low):
        points = torch.tensor([math.nan]).double()
    else:
        low, high = (max(min(end, _HUGE), -_HUGE) for end in (found.low, found.high))
        inner = torch.linspace(max(low, -_FAR), min(high, _FAR), _POINTS).double()
        points = torch.cat([inner.clamp(low, high), torch.tensor([low, high]).double()])
    return points.view([-1 if axis == at else 1 for axis in range(axes)])


def _run(step: Step, layer: nn.Module | None, given: dict[str, Tensor]) -> Tensor:
    def fill(value: Any) -> Tensor:
        if not isinstance(value, Ref):
            raise TypeError("a number that depends on the batch")
        return given[value.name]

    args, kwargs = map_nested((step.args, step.kwargs), (Ref, Multiple, Repeated), fill)
    method = step.kind == "method"
    call: Callable[..., Any] = getattr(Tensor, step.target) if method else step.target
    value = (call if layer is None else layer.forward)(*args, **kwargs)
    if not isinstance(value, Tensor):
        raise TypeError("no tensor")
    return value


def _infinite(end: float) -> float:
    """Infinity where an end grew with the number that stands for it."""
    return math.copysign(math.inf, end) if abs(end) > math.sqrt(_HUGE) else end
