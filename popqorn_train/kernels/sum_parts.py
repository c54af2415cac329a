"""What a weighted sum of affine forms is made of, and its value; see form_sums.py.

B: batch, n: symbols of a block.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from popqorn_train.kernels.library import loop
from popqorn_train.kernels.operands import (
    Coefficients,
    contiguous,
    layout,
    rows,
    whole_numbers,
)
from popqorn_train.kernels.signatures import pointers


class Term(NamedTuple):
    """A term as tensors."""

    center: Tensor
    size: Tensor
    own: Tensor | None
    inputs: Tensor | None
    noise: Tensor | None
    scale: Tensor | None
    weight: Tensor | None


class Column(NamedTuple):
    """Where the inputs of a sum, or its noise, come from.

    Attributes:
        starts: first symbol of every term in the sum, or None where it has no such part.
        start: first symbol of the sum.
        symbols: how many it has; 0 for none.
        errors: place of the symbols of errors in it; None for none.
    """

    starts: tuple[int | None, ...]
    start: int
    symbols: int
    errors: int | None


def column(blocks: Sequence[Coefficients], first: int | None, units: int) -> Column:
    """Places of blocks beside as many new symbols, if any, from the first one on."""
    ends = [(block[0], block[0] + block[1].shape[0]) for block in blocks if block is not None]
    if first is not None:
        ends.append((first, first + units))
    if not ends:
        return Column((None,) * len(blocks), 0, 0, None)
    start, stop = min(at for at, _ in ends), max(at for _, at in ends)
    starts = tuple(None if block is None else block[0] - start for block in blocks)
    return Column(starts, start, stop - start, None if first is None else first - start)


class Plan(NamedTuple):
    """What a sum depends on beside tensors.

    Attributes:
        inputs: where they come from.
        noise: likewise.
        rounding: of the sum, in units of its size.
    """

    inputs: Column
    noise: Column
    rounding: float

    @property
    def columns(self) -> tuple[Column, Column]:
        """Both."""
        return self.inputs, self.noise


def read(parts: Sequence[Tensor | None]) -> tuple[list[Term], Tensor | None, Tensor | None]:
    """All terms, the constant and the gap."""
    *fields, constant, gap = parts
    size = len(Term._fields)
    terms = [Term(*fields[at : at + size]) for at in range(0, len(fields), size)]  # type: ignore[arg-type]
    return terms, constant, gap


def added(plan: Plan, parts: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Center, size, error and both coefficients."""
    terms, constant, gap = read(parts)
    values = [_through(term) for term in terms]
    center, size, *owns = _values(values, [term.scale for term in terms], (constant, gap), plan)
    named = owns[0] if plan.noise.errors is not None else None
    inputs, noise = (
        _coefficients(column, list(zip(terms, column.starts, data, strict=True)), center, errors)
        for column, data, errors in (
            (plan.inputs, [term.inputs for term in terms], None),
            (plan.noise, [term.noise for term in terms], named),
        )
    )
    return center, size, owns[0] if owns and named is None else None, inputs, noise


def _through(term: Term) -> tuple[Tensor, Tensor, Tensor | None]:
    """Center, size and error of a term, times its weight."""
    weight = term.weight
    if weight is None:
        return term.center, term.size, term.own
    steep = weight.abs()
    own = None if term.own is None else linear(term.own, steep)
    return linear(term.center, weight), linear(term.size, steep), own


def _values(
    values: Sequence[tuple[Tensor, Tensor, Tensor | None]],
    scales: Sequence[Tensor | None],
    rest: tuple[Tensor | None, Tensor | None],
    plan: Plan,
) -> Sequence[Tensor]:
    """Center, size and, where there is one, error."""
    columns = [list(column) for column in zip(*values, strict=True)]
    flat = contiguous([x for column in (*columns, scales, rest) for x in column])
    first = values[0][0]
    errs = plan.rounding > 0 or rest[1] is not None or any(own is not None for own in columns[2])
    found = torch.empty(2 + errs, *first.shape, dtype=first.dtype)
    size = first.numel()
    loop("terms", first)(size, len(values), plan.rounding, pointers(*flat), found.data_ptr())
    return found.unbind()


_Blocks = list[tuple[Term, int | None, Tensor | None]]  # with the place of the first symbol


def _coefficients(
    column: Column, blocks: _Blocks, like: Tensor, errors: Tensor | None
) -> Tensor | None:
    """Blocks added up."""
    if not column.symbols:
        return None
    there = [(term, at, data) for term, at, data in blocks if at is not None and data is not None]
    out, done = like.new_empty(column.symbols, *like.shape), (0, 0)
    left: list[tuple[int, Tensor, Tensor | None]] = []
    products = [part for part in there if part[0].weight is not None]
    for term, start, data in sorted(products, key=lambda part: -part[2].shape[0]):
        assert term.weight is not None
        if done == (0, 0):  # the largest product is written, all others are added
            done = start, start + data.shape[0]
            torch.matmul(data, term.weight.T, out=out[slice(*done)])
        else:
            left.append((start, data @ term.weight.T, None))
    left += [(start, data, term.scale) for term, start, data in there if term.weight is None]
    flat, scales = [rows(data) for _, data, _ in left], contiguous([part[2] for part in left])
    places = [n for (start, *_), data in zip(left, flat, strict=True) for n in layout(start, data)]
    sizes = (*_sizes(like), column.symbols, len(left), *done, column.errors or 0, *places)
    ends = pointers(*flat, *scales, errors)
    loop("blocks", out)(whole_numbers(*sizes), ends, out.data_ptr())
    return out


def _sizes(like: Tensor) -> tuple[int, int]:
    return like.shape[0], like.shape[1:].numel()
