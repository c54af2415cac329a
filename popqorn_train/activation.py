"""Nonlinear nodes: an activation of one argument and the products of gated cells.

    Activation        f(a)                                  tanh, sigmoid, relu
    SigmoidTanh       sigmoid(a) tanh(b)                    LSTM: i g and o tanh(c)
    SigmoidIdentity   sigmoid(a) b                          LSTM: f c; GRU: r q
    Blend             sigmoid(-a) tanh(b) + sigmoid(a) h    GRU: the next state

B: batch, K: bounded rows, H: units.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.graph import Node, Nonlinear, Tape, dot
from popqorn_train.lines import Lines, relu_lines, sigmoid_lines, tanh_lines
from popqorn_train.perturbation import Bounds
from popqorn_train.planes import (
    Box,
    Plane,
    Planes,
    sigmoid_identity_planes,
    sigmoid_tanh_planes,
)

_CURVES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Lines]]] = {
    "tanh": (torch.tanh, tanh_lines),
    "sigmoid": (torch.sigmoid, sigmoid_lines),
    "relu": (torch.relu, relu_lines),
}


def _signs(slope: Tensor) -> tuple[Tensor, Tensor]:
    """Positive and negative part: one needs the function from below, the other from above."""
    return slope.clamp(min=0), slope.clamp(max=0)


class Activation(Nonlinear):
    """``f(x)`` unit by unit.

    Args:
        name: ``"tanh"``, ``"sigmoid"`` or ``"relu"``.
        x: node of any shape.
    """

    def __init__(self, name: str, x: Node) -> None:
        super().__init__([x], x.shape, x.batch_axis)
        self.value, self.lines = _CURVES[name]

    def range(self, *inputs: Bounds) -> Bounds:
        """All three functions rise."""
        return Bounds(self.value(inputs[0].lower), self.value(inputs[0].upper))

    def relax(self, *inputs: Bounds) -> Lines:
        """A line below and one above."""
        return self.lines(*inputs[0])

    def backward(self, slope: Tensor, tape: Tape, relaxation: Lines) -> Tensor:
        """Replace the function by the line on the side that matters."""
        if len(self.shape) > 1:
            relaxation = Lines(*[field[:, : slope.shape[2]] for field in relaxation])
        positive, negative = _signs(slope)
        tape.add(
            self.inputs[0],
            positive * relaxation.lower_slope[:, None] + negative * relaxation.upper_slope[:, None],
        )
        return dot(positive, relaxation.lower_intercept) + dot(negative, relaxation.upper_intercept)


def _corners(one: Bounds, two: Bounds) -> Bounds:
    """Range of a product: exact on the corners of the box."""
    products = torch.stack([x * y for x in one for y in two])
    return Bounds(products.amin(0), products.amax(0))


def _image(function: Callable[[Tensor], Tensor], bounds: Bounds) -> Bounds:
    return Bounds(function(bounds.lower), function(bounds.upper))


def _apply(positive: Tensor, negative: Tensor, planes: Planes) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes on both arguments ``(B, K, H)``, and the constant ``(B, K)``."""
    lower, upper = planes
    return (
        positive * lower.x[:, None] + negative * upper.x[:, None],
        positive * lower.y[:, None] + negative * upper.y[:, None],
        dot(positive, lower.intercept) + dot(negative, upper.intercept),
    )


class SigmoidTanh(Nonlinear):
    """``sigmoid(a) tanh(b)``, unit by unit."""

    def __init__(self, a: Node, b: Node) -> None:
        super().__init__([a, b], b.shape)

    def range(self, *inputs: Bounds) -> Bounds:
        """Product of two rising functions."""
        return _corners(_image(torch.sigmoid, inputs[0]), _image(torch.tanh, inputs[1]))

    def relax(self, *inputs: Bounds) -> Planes:
        """A plane below and one above."""
        return sigmoid_tanh_planes(Box(*inputs[0], *inputs[1]))

    def backward(self, slope: Tensor, tape: Tape, relaxation: Planes) -> Tensor:
        """Replace the product by the plane on the side that matters."""
        on_a, on_b, constant = _apply(*_signs(slope), relaxation)
        tape.add(self.inputs[0], on_a)
        tape.add(self.inputs[1], on_b)
        return constant


class SigmoidIdentity(SigmoidTanh):
    """``sigmoid(a) b``, unit by unit."""

    def range(self, *inputs: Bounds) -> Bounds:
        """Product with a rising function."""
        return _corners(_image(torch.sigmoid, inputs[0]), inputs[1])

    def relax(self, *inputs: Bounds) -> Planes:
        """A plane below and one above."""
        return sigmoid_identity_planes(Box(*inputs[0], *inputs[1]))


class BlendPlanes(NamedTuple):
    """Planes over ``(-a, b)`` for the candidate, and over ``(a, h)`` for the state."""

    candidate: Planes
    state: Planes


class Blend(Nonlinear):
    """``(1 - sigmoid(a)) tanh(b) + sigmoid(a) h``: the next state of a GRU.

    Its range is the exact hull of a convex combination, which two products bounded apart exceed.
    Its linear bounds are those of the two products, with 1 - sigmoid(a) = sigmoid(-a).
    """

    def __init__(self, a: Node, b: Node, h: Node) -> None:
        super().__init__([a, b, h], b.shape)

    def range(self, *inputs: Bounds) -> Bounds:
        """Rising in b and h, linear in sigmoid(a): the hull is attained at the ends of a."""
        gate, b, h = inputs
        lower, upper = (
            torch.stack([torch.lerp(b_end.tanh(), h_end, g.sigmoid()) for g in gate])
            for b_end, h_end in zip(b, h, strict=True)
        )
        return Bounds(lower.amin(0), upper.amax(0))

    def relax(self, *inputs: Bounds) -> BlendPlanes:
        """Two planes below and two above."""
        gate, b, h = inputs
        candidate = sigmoid_tanh_planes(Box(-gate.upper, -gate.lower, *b), share=0.1)
        return BlendPlanes(candidate, sigmoid_identity_planes(Box(*gate, *h)))

    def backward(self, slope: Tensor, tape: Tape, relaxation: BlendPlanes) -> Tensor:
        """Both products carry the same slope, so the same sides."""
        parts = _signs(slope)
        minus_a, on_b, one = _apply(*parts, relaxation.candidate)
        on_a, on_h, two = _apply(*parts, relaxation.state)
        tape.add(self.inputs[0], on_a - minus_a)
        tape.add(self.inputs[1], on_b)
        tape.add(self.inputs[2], on_h)
        return one + two


class Constant(Node):
    """A value that does not move, where a product needs a node.

    Args:
        value: ``(B or 1, H)``.
    """

    exact = True

    def __init__(self, value: Tensor) -> None:
        super().__init__((), value.shape[1:])
        self.value = value

    def range(self, *inputs: Bounds) -> Bounds:
        """A point."""
        return Bounds(self.value, self.value)

    def backward(self, slope: Tensor, tape: Tape, relaxation: None) -> Tensor:
        """It leaves a constant only."""
        return dot(slope, self.value)


__all__ = ["Activation", "Blend", "Constant", "Plane", "SigmoidIdentity", "SigmoidTanh"]
