"""How far one operation in floating point may lie from the same operation over the real numbers.

The arithmetic is IEEE with unit roundoff u, rounding to nearest, with or without fused products. A
sum of n products, added up in any order, lies within ``gamma(n) = n u / (1 - n u)`` times the sum
of the absolute values of its terms (Higham, "Accuracy and Stability of Numerical Algorithms", SIAM
2002, chapter 3). tanh, sigmoid and exp are off by at most ``ULPS`` units in the last place, that is
by 2 ULPS u of their value. Numbers below the least normal one may be replaced by 0.

Every rule answers for inputs that are known exactly; computed.py adds what comes from before.

B: batch.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.activation import Activation, is_curve
from popqorn_train.bounds.affine import Linear, Scale, Sum
from popqorn_train.bounds.bilinear import Bilinear, Quotient
from popqorn_train.bounds.constant import Constant
from popqorn_train.bounds.contraction import Contraction
from popqorn_train.bounds.gated import Blend, Gated
from popqorn_train.bounds.matrix_product import MatrixProduct
from popqorn_train.bounds.maximum import Maximum
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.single_reads import Affine
from popqorn_train.bounds.softmax import Pooling, Softmax
from popqorn_train.bounds.total import Total
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.curves import Curve
from popqorn_train.relaxations.extremum import largest

ULPS = 4
_FAR = 128.0  # exp(-x) beyond that is below every normal number


class Arithmetic(NamedTuple):
    """A floating-point arithmetic.

    Attributes:
        unit: unit roundoff.
        tiny: the least normal number.
    """

    unit: float
    tiny: float

    def gamma(self, terms: int) -> float:
        """Relative error of a sum of so many products; infinite where nothing is known."""
        share = terms * self.unit
        return share / (1 - share) if share < 0.5 else math.inf


FLOAT32 = Arithmetic(2.0**-24, 2.0**-126)


class Seen(NamedTuple):
    """What is known of a node when its error is bounded.

    Attributes:
        node: the node.
        inputs: ranges of what it reads, rounding included.
        range: of the node itself.
        arithmetic: that it is computed in.
    """

    node: Node
    inputs: Sequence[Bounds]
    range: Bounds
    arithmetic: Arithmetic

    @property
    def sizes(self) -> list[Tensor]:
        """Greatest absolute values of what it reads."""
        return [largest(*bounds) for bounds in self.inputs]

    def relative(self, units: float) -> Tensor:
        """So many units of the value, and what is lost where numbers are not normal."""
        read = [size.amax().expand(()) for size in self.sizes]
        most = torch.stack([*read, self.range.lower.new_ones(())]).amax()
        return units * self.arithmetic.unit * largest(*self.range) + self.lost(most, 64)

    def lost(self, size: Tensor | float, terms: int) -> Tensor | float:
        """What is lost of so many terms where a factor or a product is not normal."""
        return 2 * terms * self.arithmetic.tiny * (1 + size)


Rule = Callable[[Seen], Tensor]


def linear_error(seen: Seen, terms: int, more: Tensor | float = 0.0) -> Tensor:
    """Error of a sum of products with constants.

    Args:
        seen: an affine node.
        terms: how many it adds up for an entry, constants included.
        more: absolute values of terms that the node knows only the sum of.
    """
    sizes = seen.sizes
    ones = [torch.ones_like(size) for size in sizes]
    size = seen.node.size(None, *sizes) + more
    weights = seen.node.size(None, *ones) + more
    return seen.arithmetic.gamma(terms) * size + seen.lost(weights, terms)


def _of_linear(seen: Seen) -> Tensor:
    node = seen.node
    assert isinstance(node, Linear)
    more: Tensor | float = 0.0
    if node.summands and node.bias is not None:
        more = sum(part.abs() for part in node.summands) - node.bias.abs()
    return linear_error(seen, node.weight.shape[1] + 2 + len(node.summands), more)


def _of_affine(seen: Seen) -> Tensor:
    """Up to four operations on every entry; none where entries are only moved or replaced."""
    node = seen.node
    assert isinstance(node, Affine)
    zero, one, far = (
        node.range(
            *[Bounds(x, x) for x in (torch.full_like(size, at) for size in seen.sizes)]
        ).lower
        for at in (0.0, 1.0, 1e300)
    )
    moved = (zero == 0) & ((one == 1) | (one == 0))
    rounded = (zero.float() - zero).abs()  # of a number in its place; infinite for a mask
    replaced = torch.where(rounded.isfinite(), rounded, 0.0)
    error = torch.where(zero == far, replaced, linear_error(seen, 4))
    return torch.where(moved, 0.0, error)


def _of_total(seen: Seen) -> Tensor:
    node = seen.node
    assert isinstance(node, Total)
    terms = math.prod(node.inputs[0].shape) // max(1, math.prod(node.shape))
    return linear_error(seen, terms + 2)


def _of_contraction(seen: Seen) -> Tensor:
    """No entry adds up more products than a sample and its weights have."""
    node = seen.node
    assert isinstance(node, Contraction)
    weights = sum(weight.numel() for weight in node.weights[1:])
    return linear_error(seen, math.prod(node.inputs[0].shape) + weights + 2)


def _of_activation(seen: Seen) -> Tensor:
    node = seen.node
    if is_curve(node, "relu"):
        return torch.zeros_like(seen.range.lower)
    if is_curve(node, "tanh") or is_curve(node, "sigmoid"):
        return seen.relative(2 * ULPS)
    assert isinstance(node, Activation)
    # Functions made of straight pieces: a sum, a product, and a cut between two ends.
    (size,) = seen.sizes
    return 8 * seen.arithmetic.unit * (size + largest(*seen.range) + 4) + seen.lost(1.0, 8)


def _of_gated(seen: Seen) -> Tensor:
    """Two functions and a product."""
    return seen.relative(4 * ULPS + 2)


def _of_blend(seen: Seen) -> Tensor:
    """``(1 - z) n + z h`` or ``n + z (h - n)``: each adds up both states."""
    _, b, h = seen.sizes
    return (4 * ULPS + 16) * seen.arithmetic.unit * (b.tanh() + h) + seen.lost(1 + h, 8)


def _share_units(seen: Seen) -> Tensor:
    """Relative error of a softmax, in units: differences of scores, exponentials, their sum."""
    lower, upper = seen.inputs[0]
    spread = upper.amax(-1, keepdim=True) - lower
    # A share that much below the greatest is 0 but for what is lost.
    return 4 * spread.clamp(min=0, max=_FAR) + 4 * lower.shape[-1] + 16 * ULPS


def _of_softmax(seen: Seen) -> Tensor:
    units = _share_units(seen)
    count = seen.range.lower.shape[-1]
    return units * seen.arithmetic.unit * seen.range.upper + seen.lost(1.0, 64 * count)


def _of_pooling(seen: Seen) -> Tensor:
    units = _share_units(seen).amax(-1, keepdim=True) + 2 * seen.inputs[0].lower.shape[-1]
    most = largest(*seen.inputs[1]).amax(-2, keepdim=True)
    count = seen.inputs[0].lower.shape[-1]
    return units * seen.arithmetic.unit * most + seen.lost(most, 64 * count)


def _of_matrix_product(seen: Seen) -> Tensor:
    x, y = seen.sizes
    terms = x.shape[-1] + 4
    product, counted = x @ y, x.sum(-1, keepdim=True) + y.sum(-2, keepdim=True)
    return seen.arithmetic.gamma(terms) * product + seen.lost(counted, terms)


def _none(seen: Seen) -> Tensor:
    return torch.zeros_like(seen.range.lower)


RULES: dict[type[Node], Rule] = {
    Activation: _of_activation,
    Affine: _of_affine,
    Bilinear: lambda seen: seen.relative(2),
    Blend: _of_blend,
    Constant: _none,
    Contraction: _of_contraction,
    Gated: _of_gated,
    Linear: _of_linear,
    MatrixProduct: _of_matrix_product,
    Maximum: _none,
    Pooling: _of_pooling,
    Quotient: lambda seen: seen.relative(2 * ULPS),
    Scale: lambda seen: linear_error(seen, 4),
    Softmax: _of_softmax,
    Sum: lambda seen: linear_error(seen, len(seen.inputs) + 2),
    Total: _of_total,
}


def rule_of(node: Node) -> Rule | None:
    """How far a node may be off; None where nothing is known."""
    if isinstance(node, Activation):
        straight = isinstance(node.curve, Curve) and node.curve.bend == 0
        known = any(is_curve(node, name) for name in ("tanh", "sigmoid", "relu"))
        return _of_activation if known or straight else None
    return RULES.get(type(node))


def inexact(node: Node) -> bool:
    """Whether a node holds constants that forward works out, or that float32 has not."""
    found: list[Tensor | None] = []
    if isinstance(node, Constant) and node.worked_out:
        return True
    if isinstance(node, Sum) and node.constant is not None and bool(node.constant.any()):
        return True  # what a layer makes of a state that does not move
    if isinstance(node, Linear):
        found = [node.weight, *(node.summands or [node.bias])]
    elif isinstance(node, Constant):
        found = [node.value]
    elif isinstance(node, Contraction):
        found = [*node.weights]
    return any(part is not None and bool((part.float() != part).any()) for part in found)
