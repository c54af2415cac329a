"""The bands of the octagon of two affine forms where the input moves in a box.

As in form_ranges.py, every unit is summed on its own.

B: batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from popqorn_train.kernels.library import loop, wants_gradient
from popqorn_train.kernels.operands import (
    Operand,
    contiguous,
    known,
    layout,
    loop_of_forms,
    real_numbers,
    rows,
    whole_numbers,
)
from popqorn_train.kernels.signatures import pointers


class _Settings(NamedTuple):
    """What the bands depend on beside tensors.

    Attributes:
        starts: first symbols of the inputs and the noise of both forms.
        numbers: rounding, and the signs of both.
    """

    starts: tuple[int, ...]
    numbers: tuple[float, float, float]


class _Bands(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: _Settings, *parts: Tensor | None) -> Tensor:
        found = _bands(loop("bands", known(parts)[0]), settings, parts)
        ctx.settings = settings
        ctx.save_for_backward(*parts, found)
        return found[:4]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, worth: Tensor) -> tuple[Tensor | None, ...]:
        *parts, found = ctx.saved_tensors
        run = loop("bands_gradient", found)
        sizes, numbers, values = _arguments(ctx.settings, parts)
        worth, of_ends = worth.contiguous(), found.new_empty(14, *found.shape[1:])
        of_blocks = [None if x is None else torch.empty(x.shape, dtype=x.dtype) for x in parts[8:]]
        run(
            sizes, numbers, pointers(*values), worth.data_ptr(), found.data_ptr(),
            of_ends.data_ptr(), pointers(*of_blocks),
        )  # fmt: skip
        pairs = zip(of_ends[:8].unbind(), parts[:8], strict=True)
        return (None, *[None if part is None else of for of, part in pairs], *of_blocks)


def _arguments(settings: _Settings, parts: Sequence[Tensor | None]) -> tuple[Any, Any, Any]:
    """Sizes, numbers and tensors as the loops take them."""
    blocks = [None if x is None else rows(x) for x in parts[8:]]
    values = [*contiguous(parts[:8]), *blocks]
    first = parts[0]
    assert first is not None
    places = [
        number for pair in zip(settings.starts, blocks, strict=True) for number in layout(*pair)
    ]
    sizes = whole_numbers(first.shape[0], first.shape[1:].numel(), *places)
    return sizes, real_numbers(*settings.numbers), values


def _bands(run: Any, settings: _Settings, parts: Sequence[Tensor | None]) -> Tensor:
    """The four bands, and what scales both forms, ``(6, B, *shape)``."""
    first = parts[0]
    assert first is not None
    sizes, numbers, values = _arguments(settings, parts)
    found = torch.empty(6, *first.shape, dtype=first.dtype)
    run(sizes, numbers, pointers(*values), found.data_ptr())
    return found


def octagon_bands(
    forms: Sequence[Operand], signs: Sequence[float], ends: Sequence[Tensor], rounding: float
) -> Sequence[Tensor] | None:
    """Bands of the octagon of two forms.

    Args:
        forms: of both arguments of a product.
        signs: -1 where the product reads minus the form.
        ends: lx, ux, ly, uy, ``(B or 1, *shape)``.
        rounding: see ``form_range``.

    Returns:
        Ends of the sum, then of the difference; None without kernels.
    """
    x, y = forms
    shape = x.center.shape
    ends = [end if end.shape == shape else end.expand(shape) for end in ends]
    parts = [*ends, x.center, y.center, x.own, y.own, *x.tensors()[2:], *y.tensors()[2:]]
    tensors = known(parts)
    run = loop_of_forms("bands", tensors, x, y)
    if run is None:
        return None
    starts = tuple(block[0] if block else 0 for form in forms for block in form[2:])
    settings = _Settings(starts, (rounding, signs[0], signs[1]))
    if not wants_gradient(*tensors):
        return _bands(run, settings, parts)[:4].unbind()
    found: Tensor = _Bands.apply(settings, *parts)  # type: ignore[no-untyped-call]
    return found.unbind()
