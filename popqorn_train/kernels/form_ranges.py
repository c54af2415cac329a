"""Ranges of affine forms where the input moves in a box.

One pass over the coefficients of every symbol, and one for the gradient. Whoever reads the
coefficients later reads those that a range hands on, so that all that they are worth is written
once. Every unit is summed on its own, symbol after symbol, so that it has the same bits in any
batch.

B: batch.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from popqorn_train.kernels.library import loop, wants_gradient
from popqorn_train.kernels.operands import (
    Coefficients,
    Operand,
    contiguous,
    known,
    layout,
    loop_of_forms,
    rows,
    whole_numbers,
)
from popqorn_train.kernels.signatures import pointers


class Ranged(NamedTuple):
    """A range, and the coefficients that it was taken of.

    Attributes:
        lower: ``(B, *shape)``.
        upper: likewise.
        size: greatest absolute value, without gradient.
        spans: coefficients on the input, and of errors, of every span.
    """

    lower: Tensor
    upper: Tensor
    size: Tensor
    spans: list[tuple[Coefficients, Coefficients]]


class _Range(torch.autograd.Function):
    """Takes a rounding, widths of spans, and the fields of a form."""

    @staticmethod
    def forward(ctx: Any, rounding: float, widths: Sequence[int], *parts: Tensor | None) -> Any:
        found = _range(loop("range", _first(parts)), rounding, widths, parts)
        ctx.widths = widths
        ctx.save_for_backward(*parts)
        ctx.mark_non_differentiable(found[2])
        ctx.set_materialize_grads(False)
        return found[:2], found[2], *_cut(parts[2], widths), *_cut(parts[3], widths)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, worth: Tensor | None, _: None, *said: Tensor | None) -> Any:
        parts, widths = ctx.saved_tensors, ctx.widths
        if worth is None:  # nobody asked for the range itself
            worth = parts[0].new_zeros(2, *parts[0].shape)
        reach, found, count = worth[1] - worth[0], list[Tensor | None](), len(said) // 2
        for data, own in zip(parts[2:], (said[:count], said[count:]), strict=True):
            found.append(None if data is None else _of_coefficients(data, reach, widths, own))
        return (None, None, worth[0] + worth[1], None if parts[1] is None else reach, *found)


def _first(parts: Sequence[Tensor | None]) -> Tensor:
    """The center."""
    center = parts[0]
    assert center is not None
    return center


def _cut(data: Tensor | None, widths: Sequence[int]) -> Sequence[Tensor | None]:
    """Spans of coefficients; all of them where there are no widths."""
    if data is None:
        return [None] * max(1, len(widths))
    if _lie_apart(data, widths):
        return data.unbind(2)
    return data.split_with_sizes(widths, -1) if widths else [data]


def _lie_apart(data: Tensor, widths: Sequence[int]) -> bool:
    """Whether spans have an axis of their own: ``(n, B, spans, width)``."""
    return len(widths) > 0 and data.ndim == 4


def _places(start: int, data: Tensor | None, widths: Sequence[int]) -> tuple[int, ...]:
    """Where rows lie, and where spans begin."""
    if data is None:
        return *layout(start, data), *(0 for _ in widths)
    if _lie_apart(data, widths):
        step = data.stride(2)
        return *layout(start, data), *(step * k for k in range(len(widths)))
    return *layout(start, data), *itertools.accumulate(widths[:-1], initial=0)


def _range(
    run: Any, rounding: float, widths: Sequence[int], parts: Sequence[Tensor | None]
) -> Tensor:
    """Lower end, upper end and size, ``(3, B, *shape)``."""
    center = _first(parts)
    values = contiguous(parts[:2])
    blocks = [None if x is None else _rows(x, widths) for x in parts[2:]]
    found = torch.empty(3, *center.shape, dtype=center.dtype)
    units = center.shape[1:].numel()
    cut = widths or (units,)
    places = [number for x in blocks for number in _places(0, x, cut)]
    sizes = whole_numbers(len(center), units, len(cut), *cut, *places)
    run(sizes, rounding, pointers(*values, *blocks), found.data_ptr())
    return found


def _rows(data: Tensor, widths: Sequence[int]) -> Tensor:
    """Coefficients as loops take them."""
    if not _lie_apart(data, widths):
        return rows(data)
    return data if data.stride(3) == 1 else data.contiguous()


def _of_coefficients(
    data: Tensor, worth: Tensor, widths: Sequence[int], said: Sequence[Tensor | None]
) -> Tensor:
    """``sign(data) worth`` and what spans are worth beside."""
    run, flat, worth = loop("range_gradient", data), _rows(data, widths), worth.contiguous()
    found, said = _room(flat, widths), contiguous(said)
    units = flat.shape[2:].numel()
    cut = widths or (units,)
    places = *_places(0, flat, cut), *_places(0, found, cut)
    sizes = whole_numbers(flat.shape[1], units, len(cut), *cut, *places)
    run(sizes, flat.data_ptr(), worth.data_ptr(), pointers(*said), found.data_ptr())
    return found.view(data.shape)


def _room(data: Tensor, widths: Sequence[int]) -> Tensor:
    """What coefficients are worth is written here, spans apart where theirs lie apart."""
    if not _lie_apart(data, widths):
        return torch.empty(data.shape, dtype=data.dtype)
    n, batch, spans, width = data.shape
    return torch.empty(spans, n, batch, width, dtype=data.dtype).permute(1, 2, 0, 3)


def form_range(form: Operand, rounding: float, widths: Sequence[int] = ()) -> Ranged | None:
    """Range of a form, and its coefficients for whoever reads them later.

    Args:
        form: to be ranged.
        rounding: of the sum over all symbols, in units of it.
        widths: of neighbouring spans that ``(B, F)`` units are cut into; none for one of any shape.

    Returns:
        None without kernels.
    """
    parts = form.tensors()
    tensors = known(parts)
    run = loop_of_forms("range", tensors, form)
    if run is None:
        return None
    if wants_gradient(*tensors):
        ends, size, *data = _Range.apply(rounding, widths, *parts)  # type: ignore[no-untyped-call]
        lower, upper = ends.unbind()
    else:
        lower, upper, size = _range(run, rounding, widths, parts).unbind()
        data = [*_cut(parts[2], widths), *_cut(parts[3], widths)]
    return Ranged(lower, upper, size, _paired(form, data))


def _paired(form: Operand, data: Sequence[Tensor | None]) -> Any:
    """Coefficients of every span, from those on the input and then those of errors."""
    count = len(data) // 2
    inputs, noise = (
        [None if x is None or block is None else (block[0], x) for x in own]
        for block, own in zip(form[2:], (data[:count], data[count:]), strict=True)
    )
    return list(zip(inputs, noise, strict=True))
