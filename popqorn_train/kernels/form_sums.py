"""Weighted sums of affine forms: values in one pass, coefficients in another.

Products with matrices are those of torch; loops add what they leave.

B: batch, n: symbols of a block.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from popqorn_train.kernels.library import loop, loop_for, wants_gradient
from popqorn_train.kernels.operands import Coefficients, known
from popqorn_train.kernels.sum_gradients import diagonal, of_term, slice_of
from popqorn_train.kernels.sum_parts import Plan, Term, added, column, read

_MOST = 16  # parts of a sum


class Weighted(NamedTuple):
    """A form times a scale ``(B, *shape)``, or times a weight ``(O, F)`` on the last axis.

    Attributes:
        center: ``(B, *shape)``.
        size: likewise, without gradient.
        own: likewise; None for 0.
        inputs: coefficients on the input.
        noise: coefficients of errors.
        scale: None for 1.
        weight: likewise.
    """

    center: Tensor
    size: Tensor
    own: Tensor | None
    inputs: Coefficients
    noise: Coefficients
    scale: Tensor | None
    weight: Tensor | None


class Total(NamedTuple):
    """A weighted sum, as in ``Weighted``."""

    center: Tensor
    size: Tensor
    own: Tensor | None
    inputs: Coefficients
    noise: Coefficients


class _Sum(torch.autograd.Function):
    """Takes the fields of all terms, a constant and a gap."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *parts: Tensor | None) -> tuple[Tensor | None, ...]:
        found = added(loop("terms", known(parts)[0]), plan, *read(parts))
        ctx.plan = plan
        ctx.save_for_backward(*parts)
        ctx.mark_non_differentiable(found[1])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *worth: Tensor | None) -> tuple[Tensor | None, ...]:
        terms, constant, gap = read(ctx.saved_tensors)
        columns, blocks = ctx.plan.columns, worth[3:]
        center, own = worth[0], worth[2]
        assert center is not None
        if ctx.plan.spans > 1:
            center, own = center.flatten(1), None if own is None else own.flatten(1)
        if columns[1].errors is not None and blocks[1] is not None:
            own = diagonal(blocks[1], columns[1].errors, center)
        needed, found = iter(ctx.needs_input_grad[1:]), list[Tensor | None]()
        for k, term in enumerate(terms):
            wanted = Term(*(next(needed) for _ in Term._fields))
            starts = [column.starts[k] for column in columns]
            inputs, noise = map(slice_of, blocks, starts, (term.inputs, term.noise))
            found += of_term(term, wanted, (center, own, inputs, noise), ctx.plan.spans)
        return (None, *found, None if constant is None else center, None if gap is None else own)


def weighted_sum(
    terms: Sequence[Weighted],
    constant: Tensor | None,
    gap: Tensor | None,
    rounding: float,
    first: int | None,
    spans: int = 1,
) -> Total | None:
    """Weighted sum of forms.

    Args:
        terms: at least one.
        constant: broadcastable to the result.
        gap: error of what the sum stands for, of the shape of the result.
        rounding: of the sum, in units of its size; 0 for none.
        first: place of the first symbol that errors get; None for no names.
        spans: as many of one width are read later, and nothing else: they may lie apart.

    Returns:
        None without kernels; with values ``(B, spans, width)`` and coefficients of that shape
        where spans lie apart.
    """
    shape = _shape(terms[0])
    known_error = rounding > 0 or gap is not None or any(term.own is not None for term in terms)
    first = first if known_error else None
    kept, terms = _passed(terms, first is not None)
    if constant is not None and constant.shape != shape:
        constant = constant.expand(shape)
    inputs = column([term.inputs for term in terms], None, 0)
    noise = column([term.noise for term in terms], first, shape[1:].numel())
    spans = 1 if first is not None or any(t.scale is not None for t in terms) else spans
    plan, plain = Plan(inputs, noise, rounding, spans), [_plain(term) for term in terms]
    parts = *itertools.chain(*plain), constant, gap
    tensors = known(parts)
    run = loop_for("terms", tensors) if shape.numel() else None
    if run is None or len(terms) > _MOST or not _alike(terms, gap, shape):
        return None
    if wants_gradient(*tensors):
        found = _Sum.apply(plan, *parts)  # type: ignore[no-untyped-call]
    else:
        found = added(run, plan, plain, constant, gap)
    blocks = [
        _apart(whole, spans) or (None if data is None else (column.start, data))
        for whole, column, data in zip(kept, plan.columns, found[3:], strict=True)
    ]
    return Total(*found[:3], *blocks)


def _apart(block: Coefficients, spans: int) -> Coefficients:
    """Coefficients with an axis of spans."""
    if block is None or spans == 1:
        return block
    return block[0], block[1].view(*block[1].shape[:-1], spans, -1)


def _shape(term: Weighted) -> torch.Size:
    shape = term.center.shape
    return shape if term.weight is None else torch.Size((*shape[:-1], len(term.weight)))


def _passed(
    terms: Sequence[Weighted], named: bool
) -> tuple[list[Coefficients], Sequence[Weighted]]:
    """Coefficients that nothing is done with, and the terms without them."""
    kept: list[Coefficients] = [None, None]
    for place, name in enumerate(("inputs", "noise")):
        there = [term for term in terms if getattr(term, name) is not None]
        alone = len(there) == 1 and there[0].scale is None and there[0].weight is None
        if alone and not (named and place == 1):
            kept[place] = getattr(there[0], name)
            terms = [term._replace(**{name: None}) for term in terms]  # type: ignore[arg-type]
    return kept, terms


def _plain(term: Weighted) -> Term:
    """A term as tensors, its scale in the shape of the form."""
    center, size, own, inputs, noise, scale, weight = term
    if scale is not None and scale.shape != center.shape:
        scale = scale.expand(center.shape)
    return Term(center, size, own, inputs and inputs[1], noise and noise[1], scale, weight)


def _alike(terms: Sequence[Weighted], gap: Tensor | None, shape: torch.Size) -> bool:
    """Whether all parts have the shapes that they should have."""
    for term in terms:
        own = term.center.shape
        values = [x for x in (term.size, term.own) if x is not None]
        data = [block[1] for block in (term.inputs, term.noise) if block]
        if _shape(term) != shape or any(x.shape != own for x in values):
            return False
        if any(x.shape[1:] != own for x in data):
            return False
    return gap is None or gap.shape == shape
