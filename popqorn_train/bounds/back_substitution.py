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

from popqorn_train.bounds.wanted import only_slopes
from popqorn_train.kernels import rows


class _BackSubstitution(torch.autograd.Function):
    """Slopes and intercepts of the sides, all lower ones first; see ``back_substitute``."""

    @staticmethod
    def forward(ctx: FunctionCtx, slope: Tensor, *sides: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(slope, *sides)
        known = rows.substitute(slope, *_halves(sides))
        if known is not None:
            return (*known[0], known[1])
        positive, negative = _signs(slope)
        pairs = zip(*_halves(_for_rows(sides, slope)), strict=True)
        *slopes, constant = [(positive * low).addcmul_(negative, high) for low, high in pairs]
        return (*slopes, constant.reshape(*constant.shape[:2], -1).sum(-1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slope, *sides = ctx.saved_tensors
        needed = any(ctx.needs_input_grad[1:]) and not only_slopes()
        known = rows.substitute_gradient(slope, *_halves(sides), gradients, sides=needed)
        if known is not None:
            return known
        lower, upper = _halves(_for_rows(sides, slope))
        positive, half = slope.relu(), len(lower)
        gaps = [low - high for low, high in zip(lower, upper, strict=True)]
        worths = [*gradients[:-1], _as_last(gradients[-1], slope)]
        of_sides: list[Tensor | None] = [None] * len(sides)
        if needed:
            for index, (worth, side) in enumerate(zip(worths, lower, strict=True)):
                below, both = (_summed(part, worth, side.shape) for part in (positive, slope))
                pair = below, both - below
                of_sides[index], of_sides[index + half] = (x.view_as(sides[index]) for x in pair)
        if not ctx.needs_input_grad[0]:
            return (None, *of_sides)
        # Below and above differ where the slope is positive.
        above, gap = _sum_of_products(worths, upper), _sum_of_products(worths, gaps)
        return (above.addcmul_(positive.sign(), gap).sum_to_size(slope.shape), *of_sides)


def _as_last(constant: Tensor, slope: Tensor) -> Tensor:
    """``(B, K)`` with an axis of 1 for every one of a slope's."""
    return constant.view(*constant.shape, *[1] * (slope.ndim - 2))


def _signs(slope: Tensor) -> tuple[Tensor, Tensor]:
    """Positive and negative part."""
    positive = slope.relu()
    return positive, slope - positive


def _for_rows(sides: Sequence[Tensor], slope: Tensor) -> list[Tensor]:
    """Sides with an axis of rows."""
    return [side if side.ndim == slope.ndim else side.unsqueeze(1) for side in sides]


def _halves(sides: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    middle = len(sides) // 2
    return sides[:middle], sides[middle:]


def _sum_of_products(ones: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    total = ones[0] * others[0]
    for one, other in zip(ones[1:], others[1:], strict=True):
        total = total.addcmul_(one, other)
    return total


def _summed(part: Tensor, worth: Tensor, shape: torch.Size) -> Tensor:
    """Sum of a product over what a side of this shape stands for."""
    if worth.shape[2:].numel() > 1 or shape[1] > 1:
        return (part * worth).sum_to_size(shape)
    # One number per row: the sum over rows is a product of matrices.
    found = worth.reshape(len(worth), 1, -1) @ part.reshape(*part.shape[:2], -1)
    return found.view(-1, *shape[1:]).sum_to_size(shape)


def back_substitute(
    slope: Tensor, lower: Sequence[Tensor], upper: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Tensor]:
    """Turn a lower bound on ``slope . f`` into one on the arguments of f.

    Args:
        slope: ``(B or 1, K, *shape)``.
        lower: below f, the slope on every argument, then the intercept; ``(B, 1 or K, *shape)``,
            or ``(B, *shape)`` for all rows.
        upper: above f, likewise.

    Returns:
        The slope ``(B, K, *shape)`` on every argument, and the constant ``(B, K)``.
    """
    known = rows.substitute(slope, lower, upper)
    if known is not None:  # no gradient is asked for
        return known
    *slopes, constant = _BackSubstitution.apply(slope, *lower, *upper)  # type: ignore[no-untyped-call]
    return slopes, constant
