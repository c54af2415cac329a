"""Chords of products, of tanh and of sigmoid, with their gradients: see relaxations/strips.py.

The lines of least area around tanh and sigmoid (relaxations/lines.py) come the same way.

The gradient is that of torch for the same formulas, worked out again instead of kept, by numbers
that carry their derivatives along.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from popqorn_train.kernels.library import function, loop_for, wants_gradient
from popqorn_train.kernels.signatures import pointers

MEMORY, CURVED, TANH, SIGMOID, TANH_LINES, SIGMOID_LINES = range(6)
_PARTS = {MEMORY: 4, CURVED: 4, TANH: 3, SIGMOID: 3, TANH_LINES: 4, SIGMOID_LINES: 4}


class _Chords(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: int, *ends: Tensor) -> Tensor:
        ctx.kind = kind
        ctx.save_for_backward(*ends)
        return _strips(function("chords", *ends), kind, ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, worth: Tensor) -> tuple[Tensor | None, ...]:
        ends = [end.contiguous() for end in ctx.saved_tensors]
        loop, worth = function("chords_gradient", worth, *ends), worth.contiguous()
        found = worth.new_empty(len(ends), *ends[0].shape)
        loop(ctx.kind, ends[0].numel(), pointers(*ends), worth.data_ptr(), found.data_ptr())
        return (None, *found.unbind())


def _strips(loop: Any, kind: int, ends: Sequence[Tensor]) -> Tensor:
    ends = [end.contiguous() for end in ends]
    found = torch.empty(_PARTS[kind], *ends[0].shape, dtype=ends[0].dtype)
    loop(kind, ends[0].numel(), pointers(*ends), found.data_ptr())
    return found


def strips_with_gradient(kind: int, ends: Sequence[Tensor]) -> Sequence[Tensor] | None:
    """One line or plane through each unit.

    Args:
        kind: ``MEMORY`` for sigmoid(x) y, ``CURVED`` for sigmoid(x) tanh(y), ``TANH``, ``SIGMOID``;
            ``TANH_LINES`` and ``SIGMOID_LINES`` give two lines.
        ends: lx, ux, ly, uy, sum_low, sum_high, diff_low, diff_high of a product; of a function
            lower and upper. All of one shape.

    Returns:
        Slopes, middle and half, NaN as of ``enclosing.planes``; of two lines, slope and intercept
        below, then above, NaN where an end is or is beyond 1e37 (float32) or 1e307. None without
        kernels.
    """
    loop = loop_for("chords", ends)
    if loop is None or any(end.shape != ends[0].shape for end in ends):
        return None
    if not wants_gradient(*ends):
        return _strips(loop, kind, ends).unbind()
    found: Tensor = _Chords.apply(kind, *ends)  # type: ignore[no-untyped-call]
    return found.unbind()
