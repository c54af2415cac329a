"""The gradient of a weighted sum of affine forms, term by term; see form_sums.py.

B: batch, n: symbols of a block.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from popqorn_train.kernels.library import function
from popqorn_train.kernels.operands import layout, rows, whole_numbers
from popqorn_train.kernels.sum_parts import Term


def slice_of(of: Tensor | None, start: int | None, data: Tensor | None) -> Tensor | None:
    """What the coefficients of a term are worth."""
    there = of is not None and start is not None and data is not None
    return of[start : start + len(data)] if there else None  # type: ignore[index, operator, arg-type]


Worth = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def of_term(term: Term, wanted: Any, worth: Worth, spans: int) -> Iterator[Tensor | None]:
    """Gradients of the fields of a term.

    Args:
        term: what they are of.
        wanted: which ones are asked for.
        worth: what center, error and coefficients are worth.
        spans: see ``Plan``.
    """
    if term.scale is not None:
        return _of_scaled(term, worth)
    if term.weight is not None:
        return _of_product(term, term.weight, wanted, worth, spans)
    center, own, *blocks = worth
    inputs, noise = (of if of is None or spans == 1 else of.flatten(2) for of in blocks)
    return iter((center, None, None if term.own is None else own, inputs, noise, None, None))


def _of_scaled(term: Term, worth: Worth) -> Iterator[Tensor | None]:
    center, own, *blocks = worth
    scale = term.scale
    assert scale is not None
    of_scale, of_own, found = center * term.center, None, list[Tensor | None]()
    if term.own is not None and own is not None:
        of_scale, of_own = of_scale.addcmul_(own * term.own, scale.sign()), own * scale.abs()
    of_scale = of_scale.contiguous()
    for data, of in zip((term.inputs, term.noise), blocks, strict=True):
        found.append(None if data is None or of is None else _scaled(data, of, scale, of_scale))
    return iter((center * scale, None, of_own, *found, of_scale, None))


def _scaled(data: Tensor, worth: Tensor, scale: Tensor, of_scale: Tensor) -> Tensor:
    """The gradient of coefficients; that of their scale is added up."""
    flat, found = rows(data), torch.empty(data.shape, dtype=data.dtype)
    loop = function("scaled_gradient", data, worth, scale)
    worth, scale = worth.contiguous(), scale.contiguous()
    sizes = whole_numbers(*flat.shape[1:], *layout(0, flat))
    ends = [x.data_ptr() for x in (worth, flat, scale, found, of_scale)]
    loop(sizes, *ends)
    return found


def _of_product(
    term: Term, weight: Tensor, wanted: Any, worth: Worth, spans: int
) -> Iterator[Tensor | None]:
    values = (term.center, term.own, term.inputs, term.noise)
    factors = (weight, weight.abs(), weight, weight)
    needed = (wanted.center, wanted.own, wanted.inputs, wanted.noise)
    of_weight, of_steep = torch.zeros_like(weight), torch.zeros_like(weight)
    sums, of = (of_weight, of_steep, of_weight, of_weight), list[Tensor | None]()
    for place, (value, own) in enumerate(zip(values, worth, strict=True)):
        if value is None or own is None:
            of.append(None)
            continue
        parts = own.unbind(2) if place > 1 and spans > 1 else (own,)
        of.append(_through(parts, factors[place]) if needed[place] else None)
        if wanted.weight:
            for part, to in zip(parts, sums[place].chunk(len(parts)), strict=True):
                to.addmm_(part.flatten(0, -2).T, value.flatten(0, -2))
    of_weight.addcmul_(of_steep, weight.sign())
    return iter((of[0], None, *of[1:], None, of_weight if wanted.weight else None))


def _through(spans: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Spans times their rows of a matrix."""
    first, *others = weight.chunk(len(spans))
    found = spans[0] @ first
    for own, rows_of in zip(spans[1:], others, strict=True):
        found.flatten(0, -2).addmm_(own.flatten(0, -2), rows_of)
    return found


def diagonal(of: Tensor, place: int, like: Tensor) -> Tensor:
    """What the error of every unit is worth, ``(B, *shape)``."""
    units = like[0].numel()
    flat = of[place : place + units].reshape(units, len(like), units)
    return flat.diagonal(dim1=0, dim2=2).reshape(like.shape)
