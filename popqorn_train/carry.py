"""The step of a backward bound over a nonlinearity, and over a box.

Where f lies between two linear functions of its arguments, a positive weight on f needs the one
below, a negative one that above:

    slope . f(x)  >=  max(slope, 0) . lower(x) + min(slope, 0) . upper(x)

Nearly all the time of a backward bound is spent here, so the gradient is written out: it keeps
nothing but the inputs, and takes signs by relu, since choosing by a mask costs ten times as much.

B: batch, K: bounded rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class _Carry(torch.autograd.Function):
    """Slopes and intercepts of the sides, all lower ones first; see ``carry``."""

    @staticmethod
    def forward(ctx: FunctionCtx, slope: Tensor, *sides: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(slope, *sides)
        positive, negative = _signs(slope)
        pairs = zip(*_halves(sides), strict=True)
        *slopes, constant = [(positive * low).addcmul_(negative, high) for low, high in pairs]
        return (*slopes, constant.reshape(*constant.shape[:2], -1).sum(-1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slope, *sides = ctx.saved_tensors
        positive, negative = _signs(slope)
        *worths, constant = gradients
        worths.append(constant.view(*constant.shape, *[1] * (slope.ndim - 2)))
        lower, upper = _halves(sides)
        above = _sum_of_products(worths, upper)
        # Below and above differ where the slope is positive.
        gap = _sum_of_products(worths, [low - high for low, high in zip(lower, upper, strict=True)])
        of_slope = above.addcmul_(positive.sign(), gap).sum_to_size(slope.shape)
        of_sides = [
            _reduced(part, worth, side.shape) if needed else None
            for (part, worth), side, needed in zip(
                [(part, worth) for part in (positive, negative) for worth in worths],
                sides,
                ctx.needs_input_grad[1:],
                strict=True,
            )
        ]
        return (of_slope, *of_sides)


def _signs(slope: Tensor) -> tuple[Tensor, Tensor]:
    """Positive and negative part."""
    positive = slope.relu()
    return positive, slope - positive


def _halves(sides: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    middle = len(sides) // 2
    return sides[:middle], sides[middle:]


def _sum_of_products(ones: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    total = ones[0] * others[0]
    for one, other in zip(ones[1:], others[1:], strict=True):
        total = total.addcmul_(one, other)
    return total


def _reduced(part: Tensor, worth: Tensor, shape: torch.Size) -> Tensor:
    return (part * worth).sum_to_size(shape)


def carry(
    slope: Tensor, lower: Sequence[Tensor], upper: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Tensor]:
    """Turn a lower bound on ``slope . f`` into one on the arguments of f.

    Args:
        slope: ``(B or 1, K, *shape)``.
        lower: below f, the slope on every argument, then the intercept; ``(B, 1 or K, *shape)``.
        upper: above f, likewise.

    Returns:
        The slope ``(B, K, *shape)`` on every argument, and the constant ``(B, K)``.
    """
    *slopes, constant = _Carry.apply(slope, *lower, *upper)  # type: ignore[no-untyped-call]
    return slopes, constant
