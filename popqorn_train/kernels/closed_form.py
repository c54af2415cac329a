"""Closed-form planes on boxes, and their gradient, for training.

The gradient is that of torch for the same planes: the point that decides an intercept is held, but
follows an end on which it lies. It is found again instead of kept, since that is cheap.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from popqorn_train.kernels.enclosing import planes
from popqorn_train.kernels.library import function
from popqorn_train.kernels.signatures import pointers


class _ClosedForm(torch.autograd.Function):
    """See ``planes_with_gradient``."""

    @staticmethod
    def forward(ctx: Any, curved: bool, share: float, *ends: Tensor) -> Tensor | None:
        ctx.settings, ctx.loop = (curved, share), function("gradient", *ends)
        ctx.save_for_backward(*ends)
        return planes(ends, curved=curved, share=share)

    @staticmethod
    @once_differentiable  # as for the planes of torch, which overwrite what they would need
    def backward(ctx: Any, worth: Tensor) -> tuple[Tensor | None, ...]:
        ends = [end.contiguous() for end in ctx.saved_tensors]
        worth, found = worth.contiguous(), worth.new_empty(4, *ends[0].shape)
        count = ends[0].numel()
        ctx.loop(count, *ctx.settings, pointers(*ends), worth.data_ptr(), found.data_ptr())
        return (None, None, *found.unbind())


def planes_with_gradient(ends: Sequence[Tensor], *, curved: bool, share: float) -> Tensor | None:
    """Planes of the closed form on boxes.

    Args:
        ends: lx, ux, ly, uy, all of one shape.
        curved: whether the product is sigmoid(x) tanh(y), else sigmoid(x) y.
        share: weight of the lower end in slopes.

    Returns:
        As ``planes``, with a gradient that has none itself.
    """
    with torch.no_grad():
        fits = function("planes", *ends) is not None
    if not fits or any(end.shape != ends[0].shape for end in ends):
        return None
    found: Tensor = _ClosedForm.apply(curved, share, *ends)  # type: ignore[no-untyped-call]
    return found
