"""Convolutions and mean pools over time, and over both axes of images, as nodes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from popqorn_train.bounds.linear_map import LinearMap
from popqorn_train.bounds.node import Node
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.registry import module, operation, unsupported
from popqorn_train.tracing.steps import Step, called_name

_CONVOLUTIONS = {"conv1d": functional.conv1d, "conv2d": functional.conv2d}
KINDS = {1: "(B, C, T)", 2: "(B, C, H, W)"}  # what layers of so many axes read


@module(nn.Conv1d, nn.Conv2d)
def _conv_module(lifter: Lifter, step: Step, layer: nn.Conv1d | nn.Conv2d, x: Node) -> Node:
    if layer.padding_mode != "zeros":
        way_out = "Pad by torch.nn.functional.pad before it."
        raise unsupported(step, f"a convolution with padding_mode={layer.padding_mode!r}", way_out)
    weight, bias = (lifter.weight(step.target, name) for name in ("weight", "bias"))
    rest = layer.stride, layer.padding, layer.dilation, layer.groups
    return _convolve(step, len(layer.kernel_size), x, weight, bias, *rest)


@operation("conv1d", "conv2d")
def _conv(lifter: Lifter, step: Step, *args: Any, **named: Any) -> Node:
    return _convolve(step, 1 if called_name(step.target) == "conv1d" else 2, *args, **named)


def _convolve(
    step: Step, axes: int, input: Any, weight: Any, bias: Any = None, *rest: Any, **named: Any
) -> Node:
    if isinstance(weight, Node) or not is_apart(step, input, axes):
        raise unsupported(step, f"a convolution of anything but {KINDS[axes]}")
    function = _CONVOLUTIONS[f"conv{axes}d"]

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = function(x.flatten(0, -axes - 2), weight, bias, *rest, **named)
        return rows.view(*x.shape[: -axes - 1], *rows.shape[1:])

    return _mapped(step, apply, input, weight, bias)


def is_apart(step: Step, x: Any, axes: int) -> bool:
    """Whether a node is ``(B, C, *)`` with so many axes after the channels, batch first."""
    apart = isinstance(x, Node) and len(x.shape) == axes + 1 + step.merged
    return apart and (step.merged or x.batch_axis == 0)


def _mapped(
    step: Step,
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Node,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Node:
    axis, shape = x.batch_axis, step.shape or ()
    shape = (*shape[:axis], *shape[axis + 1 :])
    return LinearMap(apply, x, weight, bias, shape=shape, batch_axis=axis)


@operation("avg_pool1d", "adaptive_avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d")
def _average(lifter: Lifter, step: Step, input: Node, *args: Any, **kwargs: Any) -> Node:
    axes = 1 if called_name(step.target).endswith("1d") else 2
    return _averaged(lifter, step, input, partial(_call, step.target, args, kwargs), axes)


def _call(function: Any, args: Any, kwargs: Any, x: Tensor) -> Tensor:
    found: Tensor = function(x, *args, **kwargs)
    return found


@module(nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
def _average_module(lifter: Lifter, step: Step, layer: nn.Module, x: Node) -> Node:
    axes = 1 if isinstance(layer, nn.AvgPool1d | nn.AdaptiveAvgPool1d) else 2
    return _averaged(lifter, step, x, layer.forward, axes)


def _averaged(
    lifter: Lifter, step: Step, x: Node, pool: Callable[[Tensor], Tensor], axes: int
) -> Node:
    """A linear map of the last axes, with coefficients that are not negative."""
    if x.batch_axis > len(x.shape) - axes:
        raise unsupported(step, "a pool over the batch")

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = pool(x.flatten(0, -axes - 1)[:, None])[:, 0]
        return weight * rows.view(*x.shape[:-axes], *rows.shape[1:])

    own = x.shape[:-axes]
    one = torch.ones((), dtype=lifter.dtype, device=lifter.device)
    size = pool(one.expand(1, 1, *x.shape[-axes:])).shape[2:]
    return LinearMap(apply, x, one, None, shape=(*own, *size), batch_axis=x.batch_axis)
