"""The least value of rows of slopes over a box, with its gradient in the slopes.

That is the place of the least value, which tells where the worst input of a row lies.
"""

from typing import Any

import torch
from torch import Tensor

from popqorn_train.kernels import rows
from popqorn_train.kernels.library import function, wants_gradient


class _Least(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slope: Tensor, center: Tensor, half: Tensor) -> Tensor:
        ctx.save_for_backward(slope, center, half)
        found = rows.minimum(slope, center, half)
        assert found is not None
        return found

    @staticmethod
    def backward(ctx: Any, worth: Tensor) -> tuple[Tensor | None, ...]:
        slope, center, half = ctx.saved_tensors
        place = _place(slope, center, half, worth)
        if place is None:
            center, half = (part[:, None, : slope.shape[2]] for part in (center, half))
            place = worth[..., None, None] * (center - slope.sign() * half)
        return place.sum_to_size(slope.shape), None, None


def _place(slope: Tensor, center: Tensor, half: Tensor, worth: Tensor) -> Tensor | None:
    """The place of the least value ``(B, K, t, N)``, times what every row is worth ``(B, K)``."""
    loop = function("least_gradient", slope, center, half, worth)
    if loop is None:
        return None
    slope, center, half, worth = (part.contiguous() for part in (slope, center, half, worth))
    size, found = slope[0, 0].numel(), slope.new_empty(*worth.shape, *slope.shape[2:])
    loop(
        *worth.shape, size, slope.data_ptr(), slope[0].numel() if len(slope) > 1 else 0,
        center.data_ptr(), half.data_ptr(), center[0].numel() if len(center) > 1 else 0,
        worth.data_ptr(), found.data_ptr(),
    )  # fmt: skip
    return found


def least(slope: Tensor, center: Tensor, half: Tensor) -> Tensor | None:
    """The least value of ``sum(slope * x)`` with x within ``half`` of ``center``.

    Args:
        slope: as of ``rows.minimum``.
        center: likewise, without gradient.
        half: likewise.

    Returns:
        ``(B, K)``; None without kernels.
    """
    if not wants_gradient(slope):
        return rows.minimum(slope, center, half)
    with torch.no_grad():
        fits = function("least_gradient", slope, center, half) is not None
    if not fits or wants_gradient(center, half) or half.shape != center.shape:
        return None
    if 1 not in (len(slope), len(center)) and len(slope) != len(center):
        return None
    found: Tensor = _Least.apply(slope, center, half)  # type: ignore[no-untyped-call]
    return found
