"""Activations of one argument: tanh, sigmoid, relu, and functions that operations bring along.

B: batch, K: bounded rows, H: units.
"""

from collections.abc import Callable, Hashable, Sequence
from math import inf
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from popqorn_train.bounds.back_substitution import back_substitute
from popqorn_train.bounds.node import Node, Nonlinear
from popqorn_train.bounds.relaxer import Relaxer
from popqorn_train.bounds.tape import Tape
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.lines import Lines, relu_lines, sigmoid_lines, tanh_lines
from popqorn_train.relaxations.nearest_lines import closest_relu, closest_sigmoid, closest_tanh
from popqorn_train.relaxations.products import SIGMOID_BEND, TANH_BEND
from popqorn_train.relaxations.strips import (
    LineStrip,
    relu_strip,
    sigmoid_strip,
    strip_of_lines,
    tanh_strip,
)


class Function(Protocol):
    """What an activation is made of; it may look along the last axis."""

    def range(self, bounds: Bounds) -> Bounds:
        """Range of the function."""

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """A line below and one above."""

    def __hash__(self) -> int:
        """Equal functions are enclosed together."""


class Bent(Function, Protocol):
    """One with lines for every row, and a strip of its own."""

    @property
    def closest(self) -> Callable[[Tensor, Tensor, Tensor], Lines]:
        """Lines that are close at a point."""

    @property
    def strip(self) -> Callable[[Tensor, Tensor], LineStrip]:
        """One line between both sides."""


class _Rising(NamedTuple):
    """A function that rises, with lines of its own."""

    value: Callable[[Tensor], Tensor]
    lines: Callable[[Tensor, Tensor], Lines]
    closest: Callable[[Tensor, Tensor, Tensor], Lines]
    strip: Callable[[Tensor, Tensor], LineStrip]
    bend: float
    breaks: tuple[float, ...] = ()

    def range(self, bounds: Bounds) -> Bounds:
        """Images of the ends."""
        return Bounds(self.value(bounds.lower), self.value(bounds.upper))


_CURVES = {
    "tanh": _Rising(torch.tanh, tanh_lines, closest_tanh, tanh_strip, TANH_BEND),
    "sigmoid": _Rising(torch.sigmoid, sigmoid_lines, closest_sigmoid, sigmoid_strip, SIGMOID_BEND),
    "relu": _Rising(torch.relu, relu_lines, closest_relu, relu_strip, 0.0, (0.0,)),
}


class Activation(Nonlinear):
    """``f(x)`` unit by unit.

    Args:
        curve: ``"tanh"``, ``"sigmoid"``, ``"relu"``, or any other function.
        x: node of any shape.
    """

    def __init__(self, curve: str | Function, x: Node) -> None:
        super().__init__([x], x.shape, x.batch_axis)
        self.curve: Function = _CURVES[curve] if isinstance(curve, str) else curve
        # Asked by name: to ask a protocol takes as long as an operation on tensors.
        bent = hasattr(self.curve, "closest") and hasattr(self.curve, "strip")
        self._bent = cast(Bent, self.curve) if bent else None
        self.has_choice = bent
        self.partial = getattr(self.curve, "edge", -inf) > -inf

    @property
    def kind(self) -> Hashable:
        """The curve."""
        return self.curve

    def range(self, *inputs: Bounds) -> Bounds:
        """Range of the function."""
        return self.curve.range(inputs[0])

    def relax(self, relaxer: Relaxer, *inputs: Bounds) -> Lines:
        """A line below and one above."""
        return self.curve.lines(*inputs[0])

    def closest(self, points: Sequence[Tensor], ranges: Sequence[Bounds]) -> Lines:
        """Lines that are close at a point of every row."""
        assert self._bent is not None
        (point,), (x,) = points, ranges
        lower, upper = (_of_rows(end, point) for end in x)
        return self._bent.closest(lower, upper, point)

    def strip(self, x: Bounds) -> LineStrip:
        """One line between both sides."""
        if self._bent is not None:
            return self._bent.strip(*x)
        return strip_of_lines(self.curve.lines(*x), *x)

    def sides(self, relaxation: Lines) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """See ``Nonlinear``."""
        return relaxation[:2], relaxation[2:]

    def backward(self, slope: Tensor, tape: Tape, relaxation: Lines) -> Tensor:
        """Replace the function by the line on the side that matters."""
        fields: Sequence[Tensor] = relaxation
        if slope.ndim > 3:
            fields = [_of_rows(field, slope) for field in fields]
        (on_input,), constant = back_substitute(slope, fields[:2], fields[2:])
        tape.add(self.inputs[0], on_input)
        return constant


def _of_rows(x: Tensor, slope: Tensor) -> Tensor:
    """What holds for all rows, or for each, cut to the frames of a slope ``(B, K, ...)``."""
    x = x.unsqueeze(1) if x.ndim < slope.ndim else x
    return x[:, :, : slope.shape[2]] if slope.ndim > 3 else x


def is_curve(node: Node, name: str) -> bool:
    """Whether a node is this activation."""
    return isinstance(node, Activation) and node.curve is _CURVES[name]
