"""Sums of absolute values over all symbols of a block, a few symbols at a time.

What is worked on at once fits a cache: these sums read as much memory as everything else together.

B: batch, n: symbols of a block.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from popqorn_train.bounds.block_sums import Block
from popqorn_train.kernels import sums as compiled

_BYTES, _DEVICE_BYTES = 2**18, 2**28  # of coefficients at once


def _parts(data: Tensor) -> int:
    """Symbols at once."""
    return max(
        1,
        (_BYTES if data.is_cpu else _DEVICE_BYTES) // max(1, data[0].numel() * data.element_size()),
    )


def absolute_sum(data: Tensor) -> Tensor:
    """Sum of ``|data|`` over the first axis."""
    found: Tensor = _Absolute.apply(data)  # type: ignore[no-untyped-call]
    return found


class _Absolute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, data: Tensor) -> Tensor:
        ctx.save_for_backward(data)
        total = data.new_zeros(data.shape[1:])
        if not compiled.add_absolute(data, total):
            for part in torch.split(data, _parts(data)):
                total = total + part.abs().sum(0)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (data,) = ctx.saved_tensors
        return data.sign().mul_(gradient)


def absolute_sums(
    x: Block | None, y: Block | None, on_x: Tensor, on_y: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums over all symbols of ``|on_x x + on_y y|`` and of ``|on_x x - on_y y|``.

    Args:
        x: coefficients of one form; None for none.
        y: of another one.
        on_x: ``(B, *shape)`` scale of the first.
        on_y: of the second.
    """
    start, stop = _overlap(x, y)
    plus, minus = _of_both(x, y, (on_x, on_y), (start, stop))
    for block, scale in ((x, on_x), (y, on_y)):
        if block is None:
            continue
        before = block.data[: max(0, min(start, block.stop) - block.start)]
        after = block.data[max(0, stop - block.start) :]
        for rest in (before, after):
            if len(rest):
                alone = absolute_sum(rest) * scale.abs()
                plus, minus = plus + alone, minus + alone
    return plus, minus


def _of_both(
    x: Block | None, y: Block | None, scales: tuple[Tensor, Tensor], overlap: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The same over the symbols that both have."""
    (on_x, on_y), (start, stop) = scales, overlap
    plus, minus = (torch.zeros_like(on_x, memory_format=torch.contiguous_format) for _ in range(2))
    if x is None or y is None or start == stop:
        return plus, minus
    one, other = (block.data[start - block.start : stop - block.start] for block in (x, y))
    found: tuple[Tensor, Tensor] = _Pairs.apply(one, other, on_x, on_y)  # type: ignore[no-untyped-call]
    return found


class _Pairs(torch.autograd.Function):
    """Sums of ``|u + v|`` and of ``|u - v|`` over the first axis, with u = on_x x, v = on_y y."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, y: Tensor, on_x: Tensor, on_y: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, y, on_x, on_y)
        plus, minus = (x.new_zeros(x.shape[1:]) for _ in range(2))
        if not compiled.add_pairs(x, y, on_x, on_y, plus, minus):
            size = _parts(x)
            for part, beside in zip(torch.split(x, size), torch.split(y, size), strict=True):
                u, v = part * on_x, beside * on_y
                plus, minus = plus + (u + v).abs().sum(0), minus + (u - v).abs().sum(0)
        return plus, minus

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_plus: Tensor, of_minus: Tensor) -> tuple[Tensor, ...]:
        x, y, on_x, on_y = ctx.saved_tensors
        u, v = x * on_x, y * on_y
        one, other = (u + v).sign_().mul_(of_plus), (u - v).sign_().mul_(of_minus)
        of_u, of_v = one + other, one.sub_(other)
        of_scales = (u.copy_(of_u).mul_(x).sum(0), v.copy_(of_v).mul_(y).sum(0))
        return (of_u.mul_(on_x), of_v.mul_(on_y), *of_scales)


def _overlap(x: Block | None, y: Block | None) -> tuple[int, int]:
    """The symbols that both have; of no width behind all if there are none."""
    stop = max([block.stop for block in (x, y) if block is not None], default=0)
    if x is None or y is None:
        return stop, stop
    start, end = max(x.start, y.start), min(x.stop, y.stop)
    return (start, end) if start < end else (stop, stop)
