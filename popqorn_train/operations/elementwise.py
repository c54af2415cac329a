"""How activations, as operations and as modules, act on nodes."""

import math
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.node import Node
from popqorn_train.operations.arithmetic import product
from popqorn_train.operations.lift import Lifter, has_node
from popqorn_train.operations.pairs import clamped
from popqorn_train.operations.powers import square
from popqorn_train.operations.registry import module, operation, unsupported
from popqorn_train.operations.shapes import lifted
from popqorn_train.relaxations.bows import power
from popqorn_train.relaxations.curves import CURVES, prelu
from popqorn_train.tracing.steps import Step, called_name

_SETTINGS: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.Hardtanh: ("hardtanh", ("min_val", "max_val")),
    nn.ELU: ("elu", ("alpha",)),
    nn.CELU: ("celu", ("alpha",)),
    nn.GELU: ("gelu", ("approximate",)),
    nn.Softplus: ("softplus", ("beta", "threshold")),
    nn.SELU: ("selu", ()),
    nn.SiLU: ("silu", ()),
    nn.Mish: ("mish", ()),
    nn.Hardswish: ("hardswish", ()),
    nn.Hardsigmoid: ("hardsigmoid", ()),
    nn.Softsign: ("softsign", ()),
    nn.LogSigmoid: ("log_sigmoid", ()),
    nn.Tanhshrink: ("tanhshrink", ()),
}  # which curve, and the settings it takes


@operation("tanh", "sigmoid", "relu")
def _activate(lifter: Lifter, step: Step, x: Node, *args: Any, **kwargs: Any) -> Node:
    return Activation(called_name(step.target), x)


def _activation_module(name: str, lifter: Lifter, step: Step, layer: nn.Module, x: Node) -> Node:
    return Activation(name, x)


for _name, _kind in {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}.items():
    module(_kind)(partial(_activation_module, _name))


@operation("clamp", "clip")
def _clamp(lifter: Lifter, step: Step, x: Any, min: Any = None, max: Any = None) -> Node:
    if all(end is None or isinstance(end, int | float) for end in (min, max)):
        return Activation(CURVES["clamp"](min, max), x)
    return cast(Node, clamped(lifter, step, x, min, max))


@operation("square")
def _square(lifter: Lifter, step: Step, x: Node) -> Node:
    return square(x)


@operation(*CURVES.keys() - {"clamp", "clip", "square"})
def _curve(lifter: Lifter, step: Step, x: Node, *args: Any, **kwargs: Any) -> Node:
    settings = [arg for arg in args if not isinstance(arg, bool)]
    named = {name: value for name, value in kwargs.items() if name != "inplace"}
    values = [*settings, *named.values()]
    if has_node(values) or not all(isinstance(value, int | float | str | None) for value in values):
        raise unsupported(step, f"{called_name(step.target)!r} with settings that are tensors")
    return Activation(CURVES[called_name(step.target)](*settings, **named), x)


@module(*_SETTINGS)
def _curve_module(lifter: Lifter, step: Step, layer: nn.Module, x: Node) -> Node:
    name, settings = next(_SETTINGS[kind] for kind in type(layer).__mro__ if kind in _SETTINGS)
    return Activation(CURVES[name](*[getattr(layer, setting) for setting in settings]), x)


@module(nn.PReLU)
def _prelu_module(lifter: Lifter, step: Step, layer: nn.PReLU, x: Node) -> Node:
    weight = lifter.weight(step.target, "weight")
    if weight is None or weight.numel() != 1:
        raise unsupported(step, "a PReLU with several weights", "Use num_parameters=1.")
    return Activation(prelu(weight), x)


@operation("pow")
def _power(lifter: Lifter, step: Step, x: Any, exponent: Any) -> Node:
    """A number as exponent, or as base."""
    if isinstance(exponent, Node) and isinstance(x, int | float) and x > 0:
        scaled = lifted(lifter, step, torch.mul, (exponent, math.log(x)), {})
        return Activation(CURVES["exp"](), scaled)
    if not isinstance(x, Node) or not isinstance(exponent, int | float) or exponent == 0:
        way_out = "Use a number other than 0 as the exponent, or a positive one as the base."
        raise unsupported(step, f"a power of {exponent}", way_out)
    if exponent == int(exponent):
        whole = _whole_power(lifter, step, x, abs(int(exponent)))
        return whole if exponent > 0 else Activation(CURVES["reciprocal"](), whole)
    return Activation(power(float(exponent)), x)


def _whole_power(lifter: Lifter, step: Step, x: Node, exponent: int) -> Node:
    """Squares of squares, times x where the exponent is odd."""
    if exponent == 1:
        return x
    if exponent % 2:
        return product(lifter, step, x, _whole_power(lifter, step, x, exponent - 1))
    return square(_whole_power(lifter, step, x, exponent // 2))
