"""One pass over rows of slopes: the step over a nonlinearity, and the least value over a box.

Each row is summed on its own, in an order that its length alone decides, so that it has the same
bits in any batch. B: batch, K: rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.kernels.library import function
from popqorn_train.kernels.signatures import pointers


def substitute(
    slope: Tensor, lower: Sequence[Tensor], upper: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor] | None:
    """``max(slope, 0) lower + min(slope, 0) upper``, see bounds/back_substitution.py.

    Args:
        slope: ``(B or 1, K, *shape)``.
        lower: for every argument, then the intercept: ``(B or 1, 1 or K, *shape)``, or
            ``(B or 1, *shape)`` for all rows.
        upper: likewise.

    Returns:
        ``(B, K, *shape)`` for every argument, and the sum for the intercept, ``(B, K)``; None
        without kernels.
    """
    loop = function("substitute", slope, *lower, *upper)
    layout = None if loop is None else _layout(slope, [*lower, *upper])
    if layout is None:
        return None
    slope, below, above = slope.contiguous(), _contiguous(lower), _contiguous(upper)
    found = [slope.new_empty(layout.batch, *slope.shape[1:]) for _ in lower[1:]]
    constant = slope.new_empty(layout.batch, layout.rows)
    loop(
        *layout[:3], len(found), slope.data_ptr(), layout.step, pointers(*below), pointers(*above),
        layout.sample, layout.row, pointers(*found), constant.data_ptr(),
    )  # fmt: skip
    return found, constant


class _Layout(NamedTuple):
    """Sizes, and numbers from one sample or row to the next; 0 where they share them."""

    batch: int
    rows: int
    size: int
    step: int  # of slopes, from sample to sample
    sample: int  # of sides
    row: int


def _layout(slope: Tensor, sides: Sequence[Tensor]) -> _Layout | None:
    """How slopes and sides lie, if they do as ``substitute`` says."""
    shape, first = slope.shape, sides[0].shape
    own, units = (first[1], first[2:]) if len(first) == len(shape) else (1, first[1:])
    fits = own in (1, shape[1]) and units == shape[2:] and _alike(shape[0], first[0])
    if not fits or any([side.shape != first for side in sides]):
        return None
    size = units.numel()
    step, sample = shape[1] * size if shape[0] > 1 else 0, own * size if first[0] > 1 else 0
    row = size if own > 1 else 0
    return _Layout(_broadcast(shape[0], first[0]), shape[1], size, step, sample, row)


def _alike(one: int, other: int) -> bool:
    return one == other or 1 in (one, other)


def _broadcast(one: int, other: int) -> int:
    """Samples of both together, none where one has none."""
    return other if one == 1 else one


def _contiguous(sides: Sequence[Tensor]) -> list[Tensor]:
    return [side.contiguous() for side in sides]


def substitute_gradient(
    slope: Tensor,
    lower: Sequence[Tensor],
    upper: Sequence[Tensor],
    worths: Sequence[Tensor],
    *,
    sides: bool = True,
) -> tuple[Tensor | None, ...] | None:
    """The gradient of ``substitute``.

    Args:
        slope: as there.
        lower: likewise.
        upper: likewise.
        worths: of every result, in their order.
        sides: whether theirs is asked for.

    Returns:
        Of the slope, every lower side and every upper one; None without kernels.
    """
    name = "rows_gradient" if sides else "slopes_gradient"
    loop = function(name, slope, *lower, *upper, *worths)
    layout = _layout(slope, [*lower, *upper])
    if loop is None or layout is None:
        return None
    flat, below, above, own = slope.contiguous(), *map(_contiguous, (lower, upper, worths))
    of_slope = slope.new_zeros(layout.batch, *slope.shape[1:])
    count = len(below) + len(above)
    of_sides = below[0].new_zeros(count, *below[0].shape).unbind() if sides else ()
    loop(
        *layout[:3], len(worths) - 1, flat.data_ptr(), layout.step, pointers(*below),
        pointers(*above), layout.sample, layout.row, pointers(*own[:-1]), own[-1].data_ptr(),
        of_slope.data_ptr(), pointers(*of_sides),
    )  # fmt: skip
    missing = [None] * (0 if sides else count)
    return (of_slope.sum_to_size(slope.shape), *of_sides, *missing)


def minimum(slope: Tensor, center: Tensor, half: Tensor) -> Tensor | None:
    """The least value of ``sum(slope * x)`` with x within ``half`` of ``center``.

    Args:
        slope: ``(B or 1, K, t, N)``, over the first t frames.
        center: ``(B, T, N)``.
        half: ``(B, T, N)``, not negative.

    Returns:
        ``(B, K)``; None without kernels.
    """
    loop = function("minimum", slope, center, half)
    if loop is None or not _alike(len(slope), len(center)) or half.shape != center.shape:
        return None
    batch, (rows, *shape) = _broadcast(len(slope), len(center)), slope.shape[1:]
    size = torch.Size(shape).numel()
    slope, center, half = slope.contiguous(), center.contiguous(), half.contiguous()
    least = slope.new_empty(batch, rows)
    loop(
        batch, rows, size, slope.data_ptr(), rows * size if len(slope) > 1 else 0,
        center.data_ptr(), half.data_ptr(), center[0].numel() if len(center) > 1 else 0,
        least.data_ptr(),
    )  # fmt: skip
    return least
