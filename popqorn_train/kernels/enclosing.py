"""Planes over the products of gated cells, all units of a node in one loop.

The loops choose slopes and find intercepts as relaxations/ does, with sigmoid and tanh within 2 eps
of their values, relatively (measured: 1.7 and 1.8), where those of torch are within 1. A product is
so within 4 eps; the difference from the plane adds less than 2 eps of the largest term. Intercepts
are raised by 8 eps of the sum of the largest terms (of octagons: 16, and of what the place of a
corner adds), those of torch by 4 (8): both are bounds, and differ by no more than the sum of both
allowances for the same slopes.

Slopes differ by rounding too, but for those of tilted planes where two are equally good.
"""

from collections.abc import Sequence

from torch import Tensor

from popqorn_train.kernels.library import function
from popqorn_train.kernels.signatures import pointers


def planes(
    ends: Sequence[Tensor],
    *,
    curved: bool,
    share: float,
    shift: tuple[float, float] | None = None,
    steps: int = 0,
) -> Tensor | None:
    """One plane below and one above each unit.

    Args:
        ends: lx, ux, ly, uy of boxes, and of octagons the bands (sum_low, sum_high, diff_low,
            diff_high) too; all of one shape.
        curved: whether the product is sigmoid(x) tanh(y), else sigmoid(x) y.
        share: weight of the lower end in slopes of the closed form.
        shift: the reference at which the plane is lowest; None for the closed form.
        steps: of the search for it.

    Returns:
        ``(6, *shape)``: slope in x, slope in y and intercept of the lower plane, then of the upper
        one; NaN where an end is NaN or beyond 1e15 (float32) or 1e100. None without kernels.
    """
    loop = function("planes", *ends)
    if loop is None or any(end.shape != ends[0].shape for end in ends):
        return None
    parts = [end.contiguous() for end in ends]
    found = parts[0].new_empty(6, *ends[0].shape)
    octagon, tilted = len(ends) > 4, shift is not None
    loop(
        ends[0].numel(), curved, octagon, tilted, steps, share, *(shift or (0.0, 0.0)),
        pointers(*parts), found.data_ptr(),
    )  # fmt: skip
    return found


def strips(ends: Sequence[Tensor], *, curved: bool) -> Tensor | None:
    """One plane through each unit, see relaxations/gap_search.py.

    Args:
        ends: of boxes and bands, as of ``planes``.
        curved: likewise.

    Returns:
        ``(4, *shape)``: slope in x, slope in y, middle and half; NaN as of ``planes``. None without
        kernels.
    """
    loop = function("strips", *ends)
    if loop is None or any(end.shape != ends[0].shape for end in ends):
        return None
    parts = [end.contiguous() for end in ends]
    found = parts[0].new_empty(4, *ends[0].shape)
    loop(ends[0].numel(), curved, pointers(*parts), found.data_ptr())
    return found
