"""Lines around tanh or sigmoid that are closest at a point of every row, with their gradient.

See relaxations/nearest_lines.py. The functions are within 2 eps of their values (enclosing.py),
where those of torch are within 1, and intercepts are moved by twice as much: 8 eps of the sum of
the largest terms for a chord, 16 for a tangent, of which the slope is rounded too. Lines of both
differ by no more than the sum of both allowances, but where a point lies within rounding of the end
of a chord.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from popqorn_train.kernels.library import function, loop_for, wants_gradient
from popqorn_train.kernels.signatures import pointers


class _Closest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, curved: bool, lower: Tensor, upper: Tensor, point: Tensor) -> Tensor:
        ctx.curved = curved
        ctx.save_for_backward(lower, upper, point)
        loop = function("closest", lower, upper, point)
        return _lines(loop, curved, lower, upper, point)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, worth: Tensor) -> tuple[Tensor | None, ...]:
        lower, upper, point = (part.contiguous() for part in ctx.saved_tensors)
        loop, worth = function("closest_gradient", worth, lower, upper, point), worth.contiguous()
        found = worth.new_empty(2, *lower.shape)
        loop(
            ctx.curved, *_sizes(point), pointers(lower, upper), point.data_ptr(), worth.data_ptr(),
            found.data_ptr(),
        )  # fmt: skip
        return (None, *found.unbind(), None)


def _sizes(point: Tensor) -> tuple[int, int, int]:
    return len(point), point.shape[1], point.shape[2:].numel()


def _lines(loop: Any, curved: bool, lower: Tensor, upper: Tensor, point: Tensor) -> Tensor:
    lower, upper, point = (part.contiguous() for part in (lower, upper, point))
    found = point.new_empty(4, *point.shape)
    ends = pointers(lower, upper)
    loop(curved, *_sizes(point), ends, point.data_ptr(), found.data_ptr())
    return found


def closest(
    lower: Tensor, upper: Tensor, point: Tensor, *, curved: bool
) -> Sequence[Tensor] | None:
    """One line below and one above each unit, in every row.

    Args:
        lower: ``(B or 1, 1, *shape)``.
        upper: likewise.
        point: ``(B, K, *shape)``, without gradient; it may lie outside.
        curved: whether the function is tanh, else sigmoid.

    Returns:
        Slope and intercept below, then above, each ``(B, K, *shape)``; NaN where an end is, or is
        beyond 1e37 (float32) or 1e307. None without kernels.
    """
    loop, shape = loop_for("closest", (lower, upper, point)), (len(point), 1, *point.shape[2:])
    fits = [x.shape[1:] == shape[1:] and x.shape[0] in (1, shape[0]) for x in (lower, upper)]
    if loop is None or not all(fits) or wants_gradient(point):
        return None
    lower, upper = (x if x.shape == shape else x.expand(shape) for x in (lower, upper))
    if not wants_gradient(lower, upper):
        return _lines(loop, curved, lower, upper, point).unbind()
    found: Tensor = _Closest.apply(curved, lower, upper, point)  # type: ignore[no-untyped-call]
    return found.unbind()
