"""Whether the loops over affine forms reckon right on this machine; see check.py."""

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from popqorn_train.kernels.check import close, rows_of_numbers
from popqorn_train.kernels.signatures import pointers

_Whole, _Real = ctypes.c_int64, ctypes.c_double


def forms_are_right(loops: Mapping[str, Any], dtype: torch.dtype) -> bool:
    """Compare ranges, bands and sums of forms with what torch says."""
    slope, side = rows_of_numbers(torch.empty(0, dtype=dtype))
    # Three symbols of two samples of 37 units, and their values.
    data, value = slope.transpose(0, 1).contiguous(), side
    return (
        _ranges(loops["range"], data, value)
        and _cuts(loops["bands"], data, value)
        and _adds_values(loops["terms"], value)
        and _adds_blocks(loops["blocks"], data, value)
    )


def _ranges(loop: Any, data: Tensor, value: Tensor) -> bool:
    found, own = value.new_empty(3, *value.shape), value.abs()
    sizes = (_Whole * 14)(2, 37, 1, 37, 0, 3, 74, 37, 0, 0, 3, 74, 37, 0)
    loop(sizes, 0.25, pointers(value, own, data, data), found.data_ptr())
    reach = 1.25 * (2 * data.abs().sum(0) + own)
    return close(found[0], value - reach) and close(found[1], value + reach)


def _cuts(loop: Any, data: Tensor, value: Tensor) -> bool:
    """With x = data and y = data.cos() from the next symbol on, over a box of half width 9."""
    nine, other, found = torch.full_like(value, 9.0), data.cos(), value.new_empty(6, *value.shape)
    sizes = (_Whole * 18)(2, 37, 0, 3, 74, 37, 0, 0, 0, 0, 1, 3, 74, 37, 0, 0, 0, 0)
    parts = (-nine, nine, -nine, nine, value, value, None, None, data, None, other, None)
    loop(sizes, (_Real * 3)(0, 1, -1), pointers(*parts), found.data_ptr())
    x, y = (torch.cat(pair) for pair in ((data, 0 * data[:1]), (0 * data[:1], other)))
    plus, minus = (x - y).abs().sum(0) / 9, (x + y).abs().sum(0) / 9
    ends = (-plus, plus, 2 * value / 9 - minus, 2 * value / 9 + minus)
    return all(close(one, end.clamp(-2, 2)) for one, end in zip(found[:4], ends, strict=True))


def _adds_values(loop: Any, value: Tensor) -> bool:
    found, size, other = value.new_empty(3, *value.shape), value.abs(), value - 1
    parts = (value, other, size, size, size, None, None, other, value, size)
    loop(74, 2, 0.5, pointers(*parts), found.data_ptr())
    most = 3 * size + other.abs() * size
    right = close(found[0], 2 * value + other * other) and close(found[1], most)
    return right and close(found[2], 2 * size + most / 2)


def _adds_blocks(loop: Any, data: Tensor, value: Tensor) -> bool:
    """Symbols 0 to 2, the same times a value from symbol 1 on, and 37 errors from symbol 4 on."""
    found = torch.full((41, *value.shape), 7, dtype=value.dtype)
    sizes = (_Whole * 15)(2, 37, 41, 2, 0, 0, 4, 0, 3, 74, 37, 1, 3, 74, 37)
    loop(sizes, pointers(data, data, None, value, value), found.data_ptr())
    wanted = torch.zeros_like(found)
    wanted[:3] += data
    wanted[1:4] += data * value
    wanted[4:].diagonal(dim1=0, dim2=2).add_(value)
    return close(found, wanted)
