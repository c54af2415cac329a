"""How arithmetic and linear layers act on nodes; the other tables are in the files beside it."""

from typing import Any

import torch
from torch import Tensor, nn

from popqorn_train.bounds.activation import Activation, is_curve
from popqorn_train.bounds.affine import Linear, Negative, Sum
from popqorn_train.bounds.bilinear import Bilinear, Quotient
from popqorn_train.bounds.coordinates import picks_input
from popqorn_train.bounds.gated import Gated
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.quadratic import Quadratic
from popqorn_train.operations.lift import Lifter, has_node
from popqorn_train.operations.powers import scaled_powers, square, sum_of_squares
from popqorn_train.operations.registry import module, operation, unsupported
from popqorn_train.operations.shapes import (
    affine_of,
    broadcast,
    function_of,
    lifted,
    without_infinity,
)
from popqorn_train.operations.spectrum import Powers
from popqorn_train.operations.ways_out import way_out_of
from popqorn_train.relaxations.curves import CURVES
from popqorn_train.relaxations.products import MEMORY, SIGMOID_TANH
from popqorn_train.tracing.steps import IDENTITIES, Step, called_name


@operation("add")
def add(lifter: Lifter, step: Step, x: Any, y: Any, **kwargs: Any) -> Node:
    """``x + alpha y``."""
    if isinstance(x, Node) and isinstance(y, Node):
        powers = None if kwargs else sum_of_squares(x, y)
        return powers or _sum(lifter, step, x, y, **kwargs)
    return lifted(lifter, step, torch.add, without_infinity((x, y), lifter), kwargs)


def _sum(lifter: Lifter, step: Step, x: Node, y: Node, *, sign: int = 1, alpha: Any = 1) -> Node:
    """``x + sign alpha y``: every term is a node of its own, so that its sign is its own."""
    if alpha != 1:
        y = affine_of(torch.mul, (y, alpha), {}, shape=y.shape, axis=y.batch_axis)
    x, y = (broadcast(lifter, step, term) for term in (x, y))
    return Sum([x, y if sign > 0 else Negative(y)])


@operation("sub", "subtract")
def subtract(lifter: Lifter, step: Step, x: Any, y: Any, **kwargs: Any) -> Node:
    """``x - alpha y``."""
    if isinstance(x, Node) and isinstance(y, Node):
        return _sum(lifter, step, x, y, sign=-1, **kwargs)
    return lifted(lifter, step, torch.sub, without_infinity((x, y), lifter), kwargs)


@operation("rsub")
def _subtract_from(lifter: Lifter, step: Step, x: Any, y: Any, alpha: Any = 1) -> Node:
    """``y - alpha x``."""
    return subtract(lifter, step, y, x, alpha=alpha)


@operation("mul", "multiply", "div", "divide", "true_divide", "truediv")
def _scale(lifter: Lifter, step: Step, x: Any, y: Any, **kwargs: Any) -> Node:
    if kwargs:
        raise unsupported(step, f"a scaling with {sorted(kwargs)}")
    if isinstance(y, Node) and "div" in called_name(step.target):
        return quotient(lifter, step, x, y)
    if isinstance(x, Node) and isinstance(y, Node):
        return product(lifter, step, x, y)
    if (powers := _scaled_powers(step, x, y)) is not None:
        return powers
    return lifted(lifter, step, function_of(step), (x, y), kwargs)


def _scaled_powers(step: Step, x: Any, y: Any) -> Node | None:
    """Powers of a spectrum times a number, or over one."""
    if "div" in called_name(step.target):
        return scaled_powers(x, 1 / y) if isinstance(y, int | float) and y else None
    return scaled_powers(x, y) or scaled_powers(y, x)


def product(lifter: Lifter, step: Step, x: Node, y: Node) -> Node:
    """Gates as in a cell get the planes of the cell, other products a strip."""
    if x is y:
        return square(x)
    x, y = (_broadcast(lifter, step, part) for part in (x, y))
    for gate, other in ((x, y), (y, x)):
        if is_curve(gate, "sigmoid") and (len(gate.shape), gate.batch_axis) == (1, 0):
            if is_curve(other, "tanh"):
                return Gated(SIGMOID_TANH, gate.inputs[0], other.inputs[0])
            return Gated(MEMORY, gate.inputs[0], other)
    return Bilinear(x, y)


def quotient(lifter: Lifter, step: Step, x: Any, y: Node) -> Node:
    """``x / y``, where y stays away from 0."""
    if isinstance(x, Node):
        return Quotient(*(broadcast(lifter, step, part) for part in (x, y)))
    return lifted(lifter, step, torch.mul, (x, Activation(CURVES["reciprocal"](), y)), {})


def _broadcast(lifter: Lifter, step: Step, x: Node) -> Node:
    """In the shape of the result; a gate stays a gate."""
    for name in ("sigmoid", "tanh"):
        if is_curve(x, name):
            before = broadcast(lifter, step, x.inputs[0])
            return x if before is x.inputs[0] else Activation(name, before)
    return broadcast(lifter, step, x)


@operation("neg")
def _negate(lifter: Lifter, step: Step, x: Node) -> Node:
    return Negative(x)


@operation(*IDENTITIES)
def _same(lifter: Lifter, step: Step, x: Node | Tensor, *args: Any, **kwargs: Any) -> Node | Tensor:
    """Nothing in eval mode, and nothing to real numbers."""
    if not step.floating:
        kinds = [kind for kind in (*args, *kwargs.values()) if isinstance(kind, torch.dtype)]
        if any(kind.is_complex for kind in kinds):
            raise unsupported(step, "a cast to complex numbers", way_out_of("complex"))
        raise unsupported(step, "a cast to whole numbers")
    if isinstance(x, Tensor):  # only what it is cast like moves
        return x.to(lifter.device, lifter.dtype)
    return x


@module(
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity
)
def _identity_module(lifter: Lifter, step: Step, layer: nn.Module, x: Node) -> Node:
    return x


@operation("linear")
def linear(lifter: Lifter, step: Step, x: Node, weight: Any, bias: Any = None) -> Node:
    """A linear layer."""
    if has_node((weight, bias)):
        raise unsupported(step, "a linear map whose weight is perturbed")
    if x.batch_axis > len(x.shape) - 1:
        raise unsupported(step, "a linear layer across samples", "Keep the features last.")
    return _energies(x, weight, bias) or Linear(x, weight, bias)


def _energies(x: Node, weight: Tensor, bias: Tensor | None) -> Node | None:
    """Weighted sums of squares of linear functions of the input, as filters are."""
    if isinstance(x, Powers):
        return _plus(x.filtered(weight), bias)
    inner = x.inputs[0] if isinstance(x, Activation) and x.curve is CURVES["square"]() else None
    if type(inner) is not Linear or bool((weight < 0).any()):
        return None
    (windows,) = inner.inputs
    if len(windows.shape) != 2 or not picks_input(windows):
        return None
    return _plus(Quadratic(windows, inner.weight, inner.bias, weight), bias)


def _plus(x: Node | None, bias: Tensor | None) -> Node | None:
    """A node, if there is one, and a constant on its last axis."""
    if x is None or bias is None:
        return x
    return Sum([x], bias.expand(1, *x.shape))


@module(nn.Linear)
def _linear_module(lifter: Lifter, step: Step, layer: nn.Linear, x: Node) -> Node:
    weight, bias = (lifter.weight(step.target, name) for name in ("weight", "bias"))
    return linear(lifter, step, x, weight, bias)
