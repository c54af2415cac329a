"""The least value of slopes on what a matrix makes of the input, without slopes on the input.

These would be the largest of all arrays: to write and read them takes as long as to work them out.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from popqorn_train.kernels.library import function, wants_gradient

FEWEST = 16  # rows; slopes of fewer fit a cache
_MOST, _VECTOR = 1024, 16  # inputs; numbers that vectors of any processor and precision divide


class Filled(NamedTuple):
    """A weight ``(O, N)``, and both ways of it with rows filled up by zeros to whole vectors."""

    weight: Tensor
    wide: Tensor
    turned: Tensor


class Box(NamedTuple):
    """Where the input lies ``(B, T, N)``, with rows filled up likewise."""

    center: Tensor
    half: Tensor


class _Least(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slope: Tensor, by: Filled, box: Box, first: int) -> Tensor:
        value, image = _carried(slope, by, box, first, placed=True)
        ctx.shape = slope.shape
        ctx.save_for_backward(image)
        return value

    @staticmethod
    def backward(ctx: Any, worth: Tensor) -> tuple[Tensor | None, ...]:
        (image,) = ctx.saved_tensors
        return (worth[..., None, None] * image).sum_to_size(ctx.shape), None, None, None


def filled(weight: Tensor) -> Filled:
    """A weight, ready for ``least_through``."""
    own = weight.detach()
    return Filled(weight, _padded(own), _padded(own.T))


def filled_box(center: Tensor, half: Tensor) -> Box:
    """A box, ready for it too."""
    return Box(_padded(center), _padded(half))


def _padded(x: Tensor) -> Tensor:
    missing = -x.shape[-1] % _VECTOR
    return (pad(x, (0, missing)) if missing else x).contiguous()


def _carried(
    slope: Tensor, by: Filled, box: Box, first: int, *, placed: bool
) -> tuple[Tensor, Tensor]:
    """The least values; and what the weight makes of the input there, or an empty array."""
    loop, slope = function("carry", slope, by.wide, *box), slope.contiguous()
    (rows, frames, outputs), (batch, _, padded) = slope.shape[1:], box.center.shape
    value = slope.new_empty(batch, rows)
    image = slope.new_empty(batch, rows, frames, outputs) if placed else slope.new_empty(0)
    start = first * padded * slope.element_size()
    loop(
        batch, rows, frames, outputs, by.weight.shape[1], padded,
        slope.data_ptr(), rows * frames * outputs if len(slope) > 1 else 0,
        by.wide.data_ptr(), by.turned.data_ptr(),
        box.center.data_ptr() + start, box.half.data_ptr() + start, box.center[0].numel(),
        value.data_ptr(), image.data_ptr() if placed else None,
    )  # fmt: skip
    return value, image


def least_through(slope: Tensor, by: Filled, box: Box, first: int = 0) -> Tensor | None:
    """The least value of ``sum(slope * (x @ weight.T))`` with x in a box.

    Its gradient is in the slope alone.

    Args:
        slope: ``(B or 1, K, t, O)`` on t frames, for 16 rows or more.
        by: the weight, of up to 1024 columns, and half as many as rows or more: slopes on fewer
            inputs are soon written.
        box: of all frames.
        first: of the frames that are meant.

    Returns:
        ``(B, K)``; None without kernels, or where they do not fit.
    """
    with torch.no_grad():
        fits = function("carry", slope, by.wide, *box) is not None
    batch, _, padded = box.center.shape
    outputs, inputs = by.weight.shape
    sizes = slope.shape[1] >= FEWEST and outputs / 2 <= inputs <= _MOST and batch > 0
    alike = len(slope) in (1, batch) and padded == by.wide.shape[1]
    if not (fits and alike and sizes) or wants_gradient(*box):
        return None
    if not wants_gradient(slope):
        return _carried(slope, by, box, first, placed=False)[0]
    found: Tensor = _Least.apply(slope, by, box, first)  # type: ignore[no-untyped-call]
    return found
