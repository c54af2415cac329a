"""What a weighted sum of affine forms is made of, and its value; see form_sums.py.

B: batch, n: symbols of a block.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

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
        spans: into how many the units are cut; those of coefficients then lie apart in memory,
            ``(n, B, spans, width)``.
    """

    inputs: Column
    noise: Column
    rounding: float
    spans: int

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


def added(
    run: Any, plan: Plan, terms: Sequence[Term], constant: Tensor | None, gap: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Center, size, error and both coefficients; ``run`` is the loop over values."""
    scales, rest = [term.scale for term in terms], (constant, gap)
    center, size, *owns = _values(run, [_through(term) for term in terms], scales, rest, plan)
    named = owns[0] if plan.noise.errors is not None else None
    inputs = _coefficients(plan, 0, terms, [term.inputs for term in terms], center, None)
    noise = _coefficients(plan, 1, terms, [term.noise for term in terms], center, named)
    values = [center, size, owns[0] if owns and named is None else None]
    if plan.spans > 1:
        values = [x if x is None else x.view(len(x), plan.spans, -1) for x in values]
    return *values, inputs, noise


def _through(term: Term) -> tuple[Tensor, Tensor, Tensor | None]:
    """Center, size and error of a term, times its weight."""
    weight = term.weight
    if weight is None:
        return term.center, term.size, term.own
    steep = weight.abs()
    own = None if term.own is None else linear(term.own, steep)
    return linear(term.center, weight), linear(term.size, steep), own


def _values(
    run: Any,
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
    run(size, len(values), plan.rounding, pointers(*flat), found.data_ptr())
    return found.unbind()


def _coefficients(
    plan: Plan,
    place: int,
    terms: Sequence[Term],
    blocks: Sequence[Tensor | None],
    like: Tensor,
    errors: Tensor | None,
) -> Tensor | None:
    """Blocks added up."""
    column = plan.columns[place]
    if not column.symbols:
        return None
    batch, *shape = like.shape
    shape[-1:] = [shape[-1] // plan.spans] if plan.spans > 1 else shape[-1:]
    out, done = like.new_empty(plan.spans, column.symbols, batch, *shape), (0, 0)
    left, products = list[_Left](), list[tuple[int, Tensor, Tensor]]()
    for term, start, data in zip(terms, column.starts, blocks, strict=True):
        if start is not None and data is not None:
            if term.weight is None:
                left.append(_Left(start, rows(data), term.scale))
            else:
                products.append((start, data, term.weight))
    if products:  # the largest one is written, all others are added
        start, data, weight = products.pop(_largest(products))
        done = start, start + data.shape[0]
        for to, own in zip(out, weight.chunk(plan.spans), strict=True):
            torch.matmul(data, own.T, out=to[start : done[1]])
        left[:0] = [_Left(start, rows(data @ weight.T), None) for start, data, weight in products]
    if left or errors is not None or done != (0, column.symbols):
        for k, to in enumerate(out):
            _add(left, k, done, errors, column.errors, to)
    return out[0] if plan.spans == 1 else out.permute(1, 2, 0, 3)


class _Left(NamedTuple):
    """What is added by the loop: ``(n, B, units)`` through a scale, from a symbol on."""

    start: int
    data: Tensor
    scale: Tensor | None


def _add(
    left: Sequence[_Left],
    span: int,
    done: tuple[int, int],
    errors: Tensor | None,
    first: int | None,
    out: Tensor,
) -> None:
    """Add to one span ``(n, B, *shape)``, of which some symbols are written."""
    batch, units = out.shape[1], out.shape[2:].numel()
    parts = [(part.start, part.data[..., span * units :][..., :units]) for part in left]
    scales = [part.scale if part.scale is None else part.scale.contiguous() for part in left]
    places = [number for part in parts for number in layout(*part)]
    sizes = whole_numbers(batch, units, len(out), len(left), *done, first or 0, *places)
    ends = pointers(*[data for _, data in parts], *scales, errors)
    loop("blocks", out)(sizes, ends, out.data_ptr())


def _largest(products: Sequence[tuple[int, Tensor, Tensor]]) -> int:
    """Which one has the most symbols."""
    return max(range(len(products)), key=lambda k: products[k][1].shape[0])
