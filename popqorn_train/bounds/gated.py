"""The products of gated cells, unit by unit.

    Gated    sigmoid(a) tanh(b), sigmoid(a) b      LSTM: i g and o c, f c; GRU: r q
    Blend    sigmoid(-a) tanh(b) + sigmoid(a) h    GRU: the next state

B: batch, K: bounded rows, H: units.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.back_substitution import back_substitute
from popqorn_train.bounds.node import Node, Nonlinear
from popqorn_train.bounds.relaxer import Argument, Relaxer
from popqorn_train.bounds.tape import Tape
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.planes import Plane, Planes
from popqorn_train.relaxations.products import CANDIDATE, STATE, Product

_ROUNDING = 4.0  # units in the last place of a candidate, more than a state is off by


def _scaled(gate: Bounds, other: Bounds) -> Bounds:
    """Range of ``gate * other`` for a positive gate: which end counts is told by the sign.

    The sign is taken by relu, whose gradient costs a tenth of that of a choice.
    """
    above, below = other.upper.relu(), other.lower.relu()
    return Bounds(
        gate.lower * below - gate.upper * (below - other.lower),
        gate.upper * above - gate.lower * (above - other.upper),
    )


def _image(function: Callable[[Tensor], Tensor], bounds: Bounds) -> Bounds:
    return Bounds(function(bounds.lower), function(bounds.upper))


def _relaxed(
    node: Node, slope: Tensor, tape: Tape, lower: Sequence[Tensor], upper: Sequence[Tensor]
) -> Tensor:
    """Replace a product by a linear function of its arguments, on the side that matters.

    Args:
        node: the product.
        slope: ``(B, K, H)`` on it.
        tape: gets the slopes on its arguments.
        lower: coefficients of every argument, then the intercept, ``(B, H)`` each.
        upper: likewise.

    Returns:
        The constant ``(B, K)``.
    """
    slopes, constant = back_substitute(slope, lower, upper)
    for argument, on_argument in zip(node.inputs, slopes, strict=True):
        tape.add(argument, on_argument)
    return constant


class Factors(NamedTuple):
    """A product and the arguments it reads."""

    product: Product
    x: Argument
    y: Argument


class Gated(Nonlinear):
    """``sigmoid(a) g(b)`` with g = tanh or the identity, unit by unit."""

    def __init__(self, product: Product, a: Node, b: Node) -> None:
        super().__init__([a, b], b.shape)
        self.product = product

    @property
    def kind(self) -> Hashable:
        """The product."""
        return self.product

    def range(self, *inputs: Bounds) -> Bounds:
        """Product of two rising functions."""
        return _scaled(_image(torch.sigmoid, inputs[0]), _image(self.product.g, inputs[1]))

    def factors(self, *inputs: Bounds) -> list[Factors]:
        """The product and its arguments."""
        a, b = (Argument(*pair) for pair in zip(self.inputs, inputs, strict=True))
        return [Factors(self.product, a, b)]

    def relax(self, relaxer: Relaxer, *inputs: Bounds) -> Planes:
        """A plane below and one above."""
        return relaxer.planes(*self.factors(*inputs)[0])

    def backward(self, slope: Tensor, tape: Tape, relaxation: Planes) -> Tensor:
        """Replace the product by the plane on the side that matters."""
        return _relaxed(self, slope, tape, *relaxation)


class Sides(NamedTuple):
    """Coefficients of a linear function on three arguments; every field is ``(B, H)``."""

    a: Tensor
    b: Tensor
    h: Tensor
    intercept: Tensor


def blended(candidate: Plane, state: Plane) -> Sides:
    """Sum of a plane over ``(-a, b)`` and one over ``(a, h)``."""
    return Sides(state.x - candidate.x, candidate.y, state.y, candidate.intercept + state.intercept)


class Blend(Nonlinear):
    """``(1 - sigmoid(a)) tanh(b) + sigmoid(a) h``: the next state of a GRU.

    Its range is the exact hull of a convex combination, which two products bounded apart exceed.
    Its linear bounds are those of the two products, with 1 - sigmoid(a) = sigmoid(-a).
    """

    kept = True

    def __init__(self, a: Node, b: Node, h: Node) -> None:
        super().__init__([a, b, h], b.shape)

    @property
    def kind(self) -> Hashable:
        """All are alike."""
        return Blend

    def range(self, *inputs: Bounds) -> Bounds:
        """Rising in b and h, so ``n + sigmoid(a) (h - n)`` with n = tanh(b) at like ends."""
        gate, h = _image(torch.sigmoid, inputs[0]), inputs[2]
        n = _image(torch.tanh, inputs[1])
        step = _scaled(gate, Bounds(h.lower - n.lower, h.upper - n.upper))
        # Where nearly all of n is taken away, what is left is no larger than its rounding.
        below, above = (_ROUNDING * torch.finfo(end.dtype).eps * end.abs() for end in n)
        return Bounds(n.lower + step.lower - below, n.upper + step.upper + above)

    def factors(self, *inputs: Bounds) -> list[Factors]:
        """Both products, with 1 - sigmoid(a) = sigmoid(-a)."""
        a, b, h = (Argument(*pair) for pair in zip(self.inputs, inputs, strict=True))
        return [Factors(CANDIDATE, a.mirrored(), b), Factors(STATE, a, h)]

    def relax(self, relaxer: Relaxer, *inputs: Bounds) -> tuple[Sides, Sides]:
        """The sum of two planes below, and of two above."""
        candidate, state = (relaxer.planes(*factors) for factors in self.factors(*inputs))
        return blended(candidate.lower, state.lower), blended(candidate.upper, state.upper)

    def size(self, relaxation: tuple[Sides, Sides], *inputs: Tensor) -> Tensor:
        """The range adds up both states themselves, however small the share of one is."""
        _, b, h = inputs
        return super().size(relaxation, *inputs) + b.tanh() + h

    def backward(self, slope: Tensor, tape: Tape, relaxation: tuple[Sides, Sides]) -> Tensor:
        """Both products carry the same slope, so the same sides."""
        return _relaxed(self, slope, tape, *relaxation)


PRODUCTS = Gated, Blend  # for isinstance, which takes longer for a union made at every call
