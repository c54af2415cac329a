"""The gradient of a weighted sum of affine forms, term by term; see form_sums.py.

B: batch, n: symbols of a block.
"""

from collections.abc import Iterator
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


def of_term(term: Term, wanted: Any, worth: Worth) -> Iterator[Tensor | None]:
    """Gradients of the fields of a term, by what center, error and coefficients are worth."""
    if term.scale is not None:
        return _of_scaled(term, worth)
    if term.weight is not None:
        return _of_product(term, wanted, worth)
    center, own, inputs, noise = worth
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


def _of_product(term: Term, wanted: Any, worth: Worth) -> Iterator[Tensor | None]:
    weight, values = term.weight, (term.center, term.own, term.inputs, term.noise)
    assert weight is not None
    factors = (weight, weight.abs(), weight, weight)
    needed = (wanted.center, wanted.own, wanted.inputs, wanted.noise)
    of, of_weight = list[Tensor | None](), torch.zeros_like(weight)
    for value, own, factor, want in zip(values, worth, factors, needed, strict=True):
        there = value is not None and own is not None
        of.append(own @ factor if there and want else None)  # type: ignore[operator]
        if there and wanted.weight:
            part = own.flatten(0, -2).T @ value.flatten(0, -2)  # type: ignore[union-attr]
            of_weight += part if factor is weight else part.mul_(weight.sign())
    return iter((of[0], None, *of[1:], None, of_weight if wanted.weight else None))


def diagonal(of: Tensor, place: int, like: Tensor) -> Tensor:
    """What the error of every unit is worth, ``(B, *shape)``."""
    units = like[0].numel()
    flat = of[place : place + units].reshape(units, len(like), units)
    return flat.diagonal(dim1=0, dim2=2).reshape(like.shape)
