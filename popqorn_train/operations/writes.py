"""Writes of slices, ``x[:, t] = v``: entries of v in the place of some of x.

B: batch, S: entries of a sample that are written.
"""

from typing import Any

import torch
from torch import Tensor

from popqorn_train.bounds.node import Node
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.registry import operation, unsupported
from popqorn_train.operations.shapes import affine_of, without_infinity
from popqorn_train.tracing.steps import Step

_ALL = slice(None)


@operation("written")
def _written(lifter: Lifter, step: Step, x: Any, index: tuple[Any, ...], value: Any) -> Node:
    shape, axis = step.shape or (), step.batch_axis
    parts = _every_axis(index, len(shape))
    if axis is None or parts[axis] != _ALL:
        raise unsupported(step, "a write to some samples of a batch", "Write x[:, t] = v to all.")
    sizes = (*shape[:axis], *shape[axis + 1 :])
    places, slot = _places(sizes, (*parts[:axis], *parts[axis + 1 :]), lifter.device)
    at = axis - sum(isinstance(part, int) for part in parts[:axis])  # of the batch, in the slot
    if isinstance(value, Node):
        missing = len(slot) - len(value.shape)
        if missing < 0 or value.batch_axis + missing != at:
            raise unsupported(
                step,
                "a write of what has its batch on another axis",
                "Give the value the shape of what it is written to.",
            )
    elif not isinstance(value, Tensor):
        value = torch.tensor(float(value), dtype=lifter.dtype, device=lifter.device)

    def write(x: Tensor, value: Tensor) -> Tensor:
        batch = x.shape[axis]
        entries = value.expand(*slot[:at], batch, *slot[at:]).movedim(at, 0).reshape(batch, -1)
        put = entries[:, places.clamp(min=0).flatten()].view(batch, *sizes)
        return torch.where(places >= 0, put, x.movedim(axis, 0)).movedim(0, axis)

    given = (
        without_infinity(part, lifter) if isinstance(part, Tensor) else part for part in (x, value)
    )
    return affine_of(write, tuple(given), {}, shape=sizes, axis=axis)


def _every_axis(index: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    """The index with a part for every axis."""
    missing = (_ALL,) * (ndim - sum(part is not ... for part in index))
    if ... not in index:
        return (*index, *missing)
    at = index.index(...)
    return (*index[:at], *missing, *index[at + 1 :])


def _places(
    sizes: tuple[int, ...], index: tuple[Any, ...], device: torch.device
) -> tuple[Tensor, tuple[int, ...]]:
    """Which entry of the value each entry of a sample gets, -1 for none; and the slot's shape."""
    places = torch.full(sizes, -1, device=device)
    slot = places[index]
    places[index] = torch.arange(slot.numel(), device=device).view(slot.shape)
    return places, tuple(slot.shape)
