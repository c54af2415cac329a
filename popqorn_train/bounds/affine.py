"""Affine nodes: linear layers, sums, scalings.

B: batch, K: bounded rows, F: features in, O: features out.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from popqorn_train.bounds.node import Node, Root
from popqorn_train.bounds.slices import Frame
from popqorn_train.bounds.tape import Tape, pad_frames
from popqorn_train.bounds.wanted import only_slopes
from popqorn_train.kernels.inputs import Filled, filled, least_through
from popqorn_train.kernels.library import wants_gradient
from popqorn_train.perturbations.region import Bounds, Region, around, dot


class Matrix:
    """A weight ``(O, F)``, with what ranges need of it worked out once for all frames.

    Args:
        value: the weight.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._halves: tuple[Tensor, Tensor] | None = None
        self._turned: Tensor | None = None
        self._filled: Filled | None = None
        # What must stay positive, as sums of powers before a logarithm, is not left to rounding.
        self.rises = not value.requires_grad and bool((value >= 0).all())

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        """Half of the weight, and half of its absolute value."""
        tracked = self.value.requires_grad and torch.is_grad_enabled()
        if self._halves is None or self._halves[0].requires_grad != tracked:
            half = self.value / 2
            self._halves = half, half.abs()
        return self._halves

    @property
    def turned(self) -> Tensor:
        """The weight by columns, ``(F, O)``, each without gaps."""
        tracked = self.value.requires_grad and torch.is_grad_enabled()
        if self._turned is None or self._turned.requires_grad != tracked:
            self._turned = self.value.T.contiguous()
        return self._turned

    @property
    def filled(self) -> Filled:
        """The weight, ready for a compiled loop."""
        self._filled = self._filled or filled(self.value)
        return self._filled


class Linear(Node):
    """``x @ weight.T + bias`` on the last axis.

    Args:
        x: node of shape ``(*, F)``.
        weight: ``(O, F)``.
        bias: ``(O,)`` or None.
        summands: what the bias is the sum of, where forward adds several.
    """

    def __init__(
        self,
        x: Node,
        weight: Matrix | Tensor,
        bias: Tensor | None = None,
        summands: Sequence[Tensor] = (),
    ) -> None:
        self.summands = tuple(summands)
        self.matrix = weight if isinstance(weight, Matrix) else Matrix(weight)
        self.weight, self.bias = self.matrix.value, bias
        super().__init__([x], (*x.shape[:-1], self.weight.shape[0]), x.batch_axis)

    def range(self, *inputs: Bounds) -> Bounds:
        """Centre and radius through the weight; the ends themselves if it has no negative entry."""
        (x,) = inputs
        if self.matrix.rises:
            return Bounds(*(torch.nn.functional.linear(end, self.weight, self.bias) for end in x))
        half, size = self.matrix.halves
        center = torch.nn.functional.linear(x.lower + x.upper, half, self.bias)
        return around(center, (x.upper - x.lower) @ size.T)

    def range_from_ball(self) -> Bounds | None:
        """Quick where this layer reads the perturbed input, or a frame of it."""
        (x,) = self.inputs
        if isinstance(x, Root):
            bounds = x.region.linear_bounds(self.weight)
        elif isinstance(x, Frame) and isinstance(x.inputs[0], Root):
            frame = x.inputs[0].region.frame(x.t)
            bounds = Bounds(*(end[:, 0] for end in frame.linear_bounds(self.weight)))
        else:
            return None
        if self.bias is None:
            return bounds
        return Bounds(bounds.lower + self.bias, bounds.upper + self.bias)

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """Absolute weights."""
        bias = None if self.bias is None else self.bias.abs()
        return torch.nn.functional.linear(inputs[0], self.weight.abs(), bias)

    def backward(self, slope: Tensor, tape: Tape, relaxation: Any) -> Tensor | None:
        """The chain rule."""
        on_x, constant = self.through(slope)
        tape.add(self.inputs[0], on_x)
        return constant

    def least(self, slope: Tensor, first: int = 0) -> Tensor | None:
        """The least value ``(B, K)`` where this layer reads a box, without slopes on the input.

        Its gradient is in the slope alone. None where a walk has to pass the input.

        Args:
            slope: ``(B, K, t, O)`` on t frames.
            first: of these frames.
        """
        (x,) = self.inputs
        region = x.region if isinstance(x, Root) else None
        if not isinstance(region, Region) or region.p < math.inf or slope.ndim != 4:
            return None
        if wants_gradient(self.weight) and not only_slopes():
            return None
        value = least_through(slope, self.matrix.filled, region.filled_box, first)
        if value is None or self.bias is None:
            return value
        return value + (slope @ self.bias).sum(2)

    def through(self, slope: Tensor) -> tuple[Tensor, Tensor | None]:
        """The slope on x, or on a frame of it, and the constant that the bias leaves."""
        if self.bias is None:
            return slope @ self.weight, None
        if not wants_gradient(slope, self.weight, self.bias):
            return _passed(slope, self.weight, self.bias)
        on_x, constant = _Through.apply(slope, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return on_x, constant


def _passed(slope: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    constant = slope @ bias
    return slope @ weight, constant if constant.ndim < 3 else constant.flatten(2).sum(-1)


class _Through(torch.autograd.Function):
    """A slope times a weight, and times a bias, of which the gradient is added in place."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, slope: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(slope, weight, bias)
        return _passed(slope, weight, bias)

    @staticmethod
    def backward(ctx: Any, on_x: Tensor, constant: Tensor) -> tuple[Tensor | None, ...]:
        slope, weight, bias = ctx.saved_tensors
        places = constant.reshape(*constant.shape, *[1] * (slope.ndim - 3)).expand(slope.shape[:-1])
        flat, places = slope.flatten(0, -2), places.flatten()
        of_slope = (on_x.flatten(0, -2) @ weight.T).addr_(places, bias).view_as(slope)
        if only_slopes() or not any(ctx.needs_input_grad[1:]):
            return of_slope, None, None
        return of_slope, flat.T @ on_x.flatten(0, -2), places @ flat


class Sum(Node):
    """Sum of nodes of one shape and a constant.

    Args:
        terms: nodes, all of one shape.
        constant: ``(B or 1, *shape)`` or None.
    """

    def __init__(self, terms: Sequence[Node], constant: Tensor | None = None) -> None:
        super().__init__(terms, terms[0].shape, terms[0].batch_axis)
        self.exact = len(terms) == 1
        self.constant = constant

    def range(self, *inputs: Bounds) -> Bounds:
        """Sum of the ends."""
        lower, upper = (sum(ends[1:], ends[0]) for ends in zip(*inputs, strict=True))
        if self.constant is None:
            return Bounds(lower, upper)
        return Bounds(lower + self.constant, upper + self.constant)

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """Sum of the terms."""
        total: Tensor = sum(inputs[1:], inputs[0])
        return total if self.constant is None else total + self.constant.abs()

    def backward(self, slope: Tensor, tape: Tape, relaxation: Any) -> Tensor | None:
        """Every term gets the slope."""
        for term in self.inputs:
            tape.add(term, slope)
        if self.constant is None:
            return None
        return dot(full(slope, self.shape), self.constant.expand(-1, *self.shape))


class Scale(Node):
    """``x * weight + bias``, entry by entry.

    Args:
        x: node.
        weight: ``(B or 1, *shape)``.
        bias: likewise.
    """

    exact = True

    def __init__(self, x: Node, weight: Tensor, bias: Tensor) -> None:
        super().__init__([x], x.shape, x.batch_axis)
        self.weight, self.bias = weight, bias

    def range(self, *inputs: Bounds) -> Bounds:
        """Images of the ends, in order."""
        one, two = (end * self.weight + self.bias for end in inputs[0])
        return Bounds(torch.minimum(one, two), torch.maximum(one, two))

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """Absolute weights."""
        return inputs[0] * self.weight.abs() + self.bias.abs()

    def backward(self, slope: Tensor, tape: Tape, relaxation: Any) -> Tensor:
        """The chain rule."""
        slope = full(slope, self.shape)
        tape.add(self.inputs[0], slope * self.weight[:, None])
        return dot(slope, self.bias.expand(-1, *self.shape))


class Negative(Node):
    """``-x``."""

    exact = True
    mirrors = True

    def __init__(self, x: Node) -> None:
        super().__init__([x], x.shape, x.batch_axis)

    def range(self, *inputs: Bounds) -> Bounds:
        """Swap the ends."""
        return Bounds(-inputs[0].upper, -inputs[0].lower)

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """The same."""
        return inputs[0]

    def backward(self, slope: Tensor, tape: Tape, relaxation: Any) -> None:
        """Swap the sign."""
        tape.add(self.inputs[0], -slope)


def full(slope: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A slope that covers every frame."""
    return pad_frames(slope, shape[0]) if len(shape) > 1 else slope
