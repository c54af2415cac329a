"""Ranges of affine forms where the input moves in a box.

One pass over the coefficients of every symbol, and one for the gradient. Every unit is summed on
its own, symbol after symbol, so that it has the same bits in any batch.

B: batch.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from popqorn_train.kernels.library import loop, wants_gradient
from popqorn_train.kernels.operands import (
    Operand,
    contiguous,
    known,
    layout,
    loop_of_forms,
    rows,
    whole_numbers,
)
from popqorn_train.kernels.signatures import pointers


class _Range(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rounding: float, *parts: Tensor | None) -> tuple[Tensor, Tensor]:
        found = _range(loop("range", _first(parts)), rounding, parts)
        ctx.save_for_backward(*parts)
        size = found[2]
        ctx.mark_non_differentiable(size)
        return found[:2], size

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, worth: Tensor, _: None) -> tuple[Tensor | None, ...]:
        parts, reach = ctx.saved_tensors, worth[1] - worth[0]
        own = None if parts[1] is None else reach
        blocks = [None if x is None else _of_coefficients(x, reach) for x in parts[2:]]
        return (None, worth[0] + worth[1], own, *blocks)


def _first(parts: Sequence[Tensor | None]) -> Tensor:
    """The center."""
    center = parts[0]
    assert center is not None
    return center


def _range(run: Any, rounding: float, parts: Sequence[Tensor | None]) -> Tensor:
    """Lower end, upper end and size, ``(3, B, *shape)``."""
    center = _first(parts)
    values = contiguous(parts[:2])
    blocks = [None if x is None else rows(x) for x in parts[2:]]
    found = torch.empty(3, *center.shape, dtype=center.dtype)
    batch, *shape = center.shape
    sizes = (batch, math.prod(shape), *layout(0, blocks[0]), *layout(0, blocks[1]))
    run(whole_numbers(*sizes), rounding, pointers(*values, *blocks), found.data_ptr())
    return found


def _of_coefficients(data: Tensor, worth: Tensor) -> Tensor:
    """``sign(data) worth``."""
    run, flat, worth = loop("range_gradient", data), rows(data), worth.contiguous()
    found = torch.empty(data.shape, dtype=data.dtype)
    sizes = whole_numbers(*flat.shape[1:], *layout(0, flat))
    run(sizes, flat.data_ptr(), worth.data_ptr(), found.data_ptr())
    return found


def form_range(form: Operand, rounding: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """Range of a form, and its size, without gradient.

    Args:
        form: to be ranged.
        rounding: of the sum over all symbols, in units of it.

    Returns:
        Lower end, upper end and greatest absolute value; None without kernels.
    """
    parts = form.tensors()
    tensors = known(parts)
    run = loop_of_forms("range", tensors, form)
    if run is None:
        return None
    if not wants_gradient(*tensors):
        lower, upper, size = _range(run, rounding, parts).unbind()
        return lower, upper, size
    ends, size = _Range.apply(rounding, *parts)  # type: ignore[no-untyped-call]
    lower, upper = ends.unbind()
    return lower, upper, size
