"""Closed-form planes on boxes, and their gradient, for training.

The gradient is that of torch for the same planes: the point that decides an intercept is held, but
follows an end on which it lies. It is found again instead of kept, since that is cheap.

Where a bound is recorded to be compiled (training/compiled.py), both are single operations.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from popqorn_train.kernels.enclosing import planes
from popqorn_train.kernels.library import function, is_recorded, loop
from popqorn_train.kernels.signatures import pointers

_NAME = "popqorn_train::closed_form"  # of the operations that programs are made of


def _planes(lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor, curved: bool, share: float) -> Tensor:
    found = planes((lx, ux, ly, uy), curved=curved, share=share)
    assert found is not None
    return found


def _gradient(
    worth: Tensor, lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor, curved: bool, share: float
) -> Tensor:
    worth, *ends = (part.contiguous() for part in (worth, lx, ux, ly, uy))
    run, found = function("gradient", *ends), worth.new_empty(4, *lx.shape)
    run(lx.numel(), curved, share, pointers(*ends), worth.data_ptr(), found.data_ptr())
    return found


_planes_as_one = torch.library.custom_op(_NAME, _planes, mutates_args=())
_gradient_as_one = torch.library.custom_op(f"{_NAME}_gradient", _gradient, mutates_args=())


@_planes_as_one.register_fake
def _(lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor, curved: bool, share: float) -> Tensor:
    return lx.new_empty(6, *lx.shape)


@_gradient_as_one.register_fake
def _(
    worth: Tensor, lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor, curved: bool, share: float
) -> Tensor:
    return worth.new_empty(4, *lx.shape)


class _ClosedForm(torch.autograd.Function):
    """See ``planes_with_gradient``."""

    @staticmethod
    def forward(ctx: Any, curved: bool, share: float, *ends: Tensor) -> Tensor:
        ctx.settings = curved, share
        ctx.save_for_backward(*ends)
        run: Callable[..., Tensor] = _planes_as_one if is_recorded(ends[0]) else _planes
        return run(*ends, curved, share)

    @staticmethod
    @once_differentiable  # as for the planes of torch, which overwrite what they would need
    def backward(ctx: Any, worth: Tensor) -> tuple[Tensor | None, ...]:
        run: Callable[..., Tensor] = _gradient_as_one if is_recorded(worth) else _gradient
        found = run(worth, *ctx.saved_tensors, *ctx.settings)
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
    if is_recorded(ends[0]):
        fits = loop("planes", ends[0]) is not None
    if not fits or any(end.shape != ends[0].shape for end in ends):
        return None
    found: Tensor = _ClosedForm.apply(curved, share, *ends)  # type: ignore[no-untyped-call]
    return found
