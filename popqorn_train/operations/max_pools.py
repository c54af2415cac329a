"""Max pools over time, and over both axes of images, as nodes.

A window is a list of places on each axis; places outside, as of padding, hold minus a large number.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from popqorn_train.bounds.node import Node
from popqorn_train.operations.convolution import KINDS, is_apart
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.reductions import largest_over
from popqorn_train.operations.registry import module, operation, unsupported
from popqorn_train.operations.shapes import affine_of
from popqorn_train.tracing.steps import Step, called_name

_WAY_OUT = "Leave return_indices out."


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
    settings = kernel_size, stride, padding, dilation
    return _strided(lifter, step, input, axes, settings, (ceil_mode, return_indices))


@module(nn.MaxPool1d, nn.MaxPool2d)
def _max_pool_module(
    lifter: Lifter, step: Step, layer: nn.MaxPool1d | nn.MaxPool2d, x: Node
) -> Node:
    axes = 1 if isinstance(layer, nn.MaxPool1d) else 2
    settings = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    return _strided(lifter, step, x, axes, settings, (layer.ceil_mode, layer.return_indices))


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


def _strided(
    lifter: Lifter,
    step: Step,
    x: Node,
    axes: int,
    settings: Sequence[Any],
    flags: tuple[bool, bool],
) -> Node:
    """A pool of windows at equal distances; the flags are ``ceil_mode`` and ``return_indices``."""
    sizes, paces, margins, gaps = settings
    paces = sizes if paces in (None, (), []) else paces
    ceil, indices = flags
    if indices:
        raise unsupported(step, "a max pool with indices", _WAY_OUT)
    each = zip(*(_each(value, axes) for value in (sizes, paces, margins, gaps)), strict=True)
    windows = [
        _windows(length, *setting, ceil=ceil)
        for length, setting in zip(x.shape[-axes:], each, strict=True)
    ]
    return _pooled(lifter, step, x, windows)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """A number for every axis."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return tuple(int(number) for number in (values if len(values) == axes else values * axes))


def _windows(
    length: int, size: int, pace: int, margin: int, gap: int, *, ceil: bool
) -> list[list[int]]:
    """Places of every window on an axis; with ``ceil``, also of those that end behind it.

    None starts in the padding behind, as torch has it.
    """
    room = length + 2 * margin - gap * (size - 1) - 1
    count = -(-room // pace) + 1 if ceil else room // pace + 1
    if ceil and (count - 1) * pace >= length + margin:
        count -= 1
    starts = [pace * number - margin for number in range(count)]
    return [[start + gap * at for at in range(size)] for start in starts]


def _adaptive(
    lifter: Lifter, step: Step, x: Node, output_size: Any, axes: int, *, indices: bool
) -> Node:
    """A pool to given sizes, of windows that may overlap."""
    if indices:
        raise unsupported(step, "an adaptive max pool with indices", _WAY_OUT)
    given = output_size if isinstance(output_size, tuple | list) else (output_size,) * axes
    lengths = x.shape[-axes:]
    wanted = [n if size is None else int(size) for n, size in zip(lengths, given, strict=True)]
    windows = [
        [[*range(at * n // size, -(-(at + 1) * n // size))] for at in range(size)]
        for n, size in zip(lengths, wanted, strict=True)
    ]
    return _pooled(lifter, step, x, windows)


def _pooled(lifter: Lifter, step: Step, x: Node, windows: Sequence[list[list[int]]]) -> Node:
    """The greatest entry of every window, which has places on each of the last axes."""
    axes, far = len(windows), torch.finfo(lifter.dtype).max / 4
    if not is_apart(step, x, axes) or x.batch_axis:
        raise unsupported(step, f"a max pool of anything but {KINDS[axes]}")
    places = [
        _filled(own, length, lifter.device)
        for own, length in zip(windows, x.shape[-axes:], strict=True)
    ]
    columns = [*itertools.product(*[part.unbind(1) for part in places])]

    def unfold(x: Tensor) -> Tensor:
        wide = functional.pad(x, [0, 1] * axes, value=-far)
        return torch.stack([wide[_crossed(column)] for column in columns], -1)

    shape = (*x.shape[:-axes], *[len(part) for part in places], len(columns))
    unfolded = affine_of(unfold, (x,), {}, shape=shape, axis=0)
    return largest_over(step, unfolded, len(shape), keepdim=False)


def _filled(windows: list[list[int]], length: int, device: torch.device) -> Tensor:
    """Windows ``(count, size)`` of one size, whose places outside are the one behind the axis."""
    size = max(map(len, windows))
    inside = [[at if 0 <= at < length else length for at in window] for window in windows]
    rows = [window + [length] * (size - len(window)) for window in inside]
    return torch.tensor(rows, device=device)


def _crossed(places: Sequence[Tensor]) -> tuple[Any, ...]:
    """One place for every one of the last axes, of all pairs where there are two."""
    return (..., *torch.meshgrid(*places, indexing="ij"))
