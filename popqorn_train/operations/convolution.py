"""Convolutions and pooling over time, and over both axes of images, as nodes."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from popqorn_train.bounds.linear_map import LinearMap
from popqorn_train.bounds.node import Node
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.reductions import largest_over
from popqorn_train.operations.registry import module, operation, unsupported
from popqorn_train.operations.shapes import affine_of
from popqorn_train.tracing.steps import Step, called_name

_CONVOLUTIONS = {"conv1d": functional.conv1d, "conv2d": functional.conv2d}
_KINDS = {1: "(B, C, T)", 2: "(B, C, H, W)"}  # what layers of so many axes read


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
    if isinstance(weight, Node) or not _is_apart(step, input, axes):
        raise unsupported(step, f"a convolution of anything but {_KINDS[axes]}")
    function = _CONVOLUTIONS[f"conv{axes}d"]

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = function(x.flatten(0, -axes - 2), weight, bias, *rest, **named)
        return rows.view(*x.shape[: -axes - 1], *rows.shape[1:])

    return _mapped(step, apply, input, weight, bias)


def _is_apart(step: Step, x: Any, axes: int) -> bool:
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


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """A number for every axis."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return tuple(int(number) for number in (values if len(values) == axes else values * axes))


@operation("max_pool1d", "max_pool2d")
def _max_pool(
    lifter: Lifter,
    step: Step,
    input: Node,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Node:
    axes = 1 if called_name(step.target).endswith("1d") else 2
    if ceil_mode or return_indices:
        raise unsupported(step, "a max pool with ceil_mode or indices", "Leave these out.")
    paces = kernel_size if stride in (None, (), []) else stride
    settings = (_each(value, axes) for value in (kernel_size, paces, padding, dilation))
    return _pooled(lifter, step, input, *settings)


def _pooled(
    lifter: Lifter,
    step: Step,
    x: Node,
    sizes: Sequence[int],
    paces: Sequence[int],
    margins: Sequence[int],
    gaps: Sequence[int],
) -> Node:
    """Windows along the last axes, and the greatest entry of each."""
    axes, far = len(sizes), torch.finfo(lifter.dtype).max / 4
    if not _is_apart(step, x, axes) or x.batch_axis:
        raise unsupported(step, f"a max pool of anything but {_KINDS[axes]}")
    lengths = [n + 2 * margin for n, margin in zip(x.shape[-axes:], margins, strict=True)]
    reach = zip(lengths, sizes, gaps, paces, strict=True)
    counts = [(n - gap * (size - 1) - 1) // pace + 1 for n, size, gap, pace in reach]

    def unfold(x: Tensor) -> Tensor:
        wide = functional.pad(x, [m for m in reversed(margins) for _ in range(2)], value=-far)
        columns: list[list[Any]] = [
            [slice(gap * at, gap * at + pace * (count - 1) + 1, pace) for at in range(size)]
            for size, pace, gap, count in zip(sizes, paces, gaps, counts, strict=True)
        ]
        return torch.stack([wide[(..., *place)] for place in itertools.product(*columns)], -1)

    shape = (*x.shape[:-axes], *counts, len([*itertools.product(*map(range, sizes))]))
    unfolded = affine_of(unfold, (x,), {}, shape=shape, axis=0)
    return largest_over(step, unfolded, len(shape), keepdim=False)


@module(nn.MaxPool1d, nn.MaxPool2d)
def _max_pool_module(
    lifter: Lifter, step: Step, layer: nn.MaxPool1d | nn.MaxPool2d, x: Node
) -> Node:
    if layer.ceil_mode or layer.return_indices:
        raise unsupported(step, "a max pool with ceil_mode or indices", "Leave these out.")
    axes = 1 if isinstance(layer, nn.MaxPool1d) else 2
    values = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    return _pooled(lifter, step, x, *(_each(value, axes) for value in values))


@operation("adaptive_max_pool1d", "adaptive_max_pool2d")
def _adaptive_max_pool(
    lifter: Lifter, step: Step, input: Node, output_size: Any, return_indices: bool = False
) -> Node:
    axes = 1 if called_name(step.target).endswith("1d") else 2
    return _adaptive(lifter, step, input, output_size, axes, indices=return_indices)


@module(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
def _adaptive_max_pool_module(lifter: Lifter, step: Step, layer: Any, x: Node) -> Node:
    axes = 1 if isinstance(layer, nn.AdaptiveMaxPool1d) else 2
    return _adaptive(lifter, step, x, layer.output_size, axes, indices=layer.return_indices)


def _adaptive(
    lifter: Lifter, step: Step, x: Node, output_size: Any, axes: int, *, indices: bool
) -> Node:
    """A max pool to sizes of which the lengths are multiples."""
    given = output_size if isinstance(output_size, tuple | list) else (output_size,) * axes
    lengths = x.shape[-axes:]
    wanted = [n if size is None else int(size) for n, size in zip(lengths, given, strict=True)]
    if indices or any(n % size for n, size in zip(lengths, wanted, strict=True)):
        way_out = "Choose a size that divides the length, for example 1."
        raise unsupported(step, "an adaptive max pool to other sizes, or with indices", way_out)
    sizes = [n // size for n, size in zip(lengths, wanted, strict=True)]
    return _pooled(lifter, step, x, sizes, sizes, [0] * axes, [1] * axes)


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
