"""Compiled ranges of affine forms, and the spans that they are cut into, are those of torch."""

import pytest
import torch

from popqorn_train.bounds.block_sums import Block
from popqorn_train.bounds.forms import Error, Form, Term, mapped, weighted
from popqorn_train.kernels.library import kernels
from popqorn_train.relaxations.domain import Rectangle
from tests.kernels.test_form_kernels import (
    BATCH,
    UNITS,
    both,
    check,
    dtypes,
    kinds,
    leaf_form,
    numbers,
    symbols,
)

pytestmark = pytest.mark.skipif(kernels().library is None, reason="no compiled loops")


@dtypes
@kinds
def test_ranges_are_those_of_torch(kind, dtype, monkeypatch):
    torch.manual_seed(0)
    form, leaves = leaf_form(dtype, **kind)

    def run():
        bounds, sized = symbols(dtype).measured(form)
        return [*bounds, sized.size]

    check(both(monkeypatch, run, leaves), dtype)


READ = {  # by which parts the range and two spans of units are read
    "all": ("range", 0, 1),
    "one span": ("range", 1),
    "spans alone": (0, 1),
    "range alone": ("range",),
}


@dtypes
@kinds
@pytest.mark.parametrize("read", READ.values(), ids=READ)
@pytest.mark.parametrize("widths", [(), (3, 4)], ids=["uncut", "cut"])
def test_what_is_read_after_a_range_is_that_of_torch(widths, read, kind, dtype, monkeypatch):
    """Coefficients are worth what the range and all later readers say."""
    torch.manual_seed(0)
    form, leaves = leaf_form(dtype, **kind)

    def run():
        bounds, spans = symbols(dtype).measured_spans(form, widths)
        found = list(bounds) if "range" in read else []
        for place, span in enumerate(spans):
            assert span.size.shape == span.center.shape
            if place in read:
                blocks = [block.data for block in (span.inputs, span.noise) if block]
                own = [] if span.own is None else [span.own]
                found += [x * x for x in (span.center, *own, *blocks)]
        return found

    check(both(monkeypatch, run, leaves), dtype)


@dtypes
def test_a_sample_has_the_same_gradients_alone(dtype):
    """Of a range that is cut into spans, and of bands."""
    torch.manual_seed(0)
    form, leaves = leaf_form(dtype, inputs=(0, 9))
    other, more = leaf_form(dtype, inputs=(2, 9))
    leaves = [*leaves, *more]
    worth = torch.randn(6, BATCH, UNITS, dtype=dtype)

    def found(some):
        def part(form):
            blocks = [Block(b.start, b.data[:, some]) for b in (form.inputs, form.noise)]
            return Form(form.center[some], *blocks, form.own[some], form.size[some])

        bounds, spans = symbols(dtype).measured_spans(part(form), (3, 4))
        nine = torch.full_like(part(form).center, 9.0)
        box = Rectangle(-nine, nine, -nine, nine)
        bands = symbols(dtype).bands(part(form), part(other), (1.0, 1.0), box)
        results = zip([*bounds, *bands], worth[:, some], strict=True)
        total = sum((x * factor).sum() for x, factor in results)
        return torch.autograd.grad(
            total + sum((s.noise.data**2).sum() for s in spans), leaves, retain_graph=True
        )

    for one, alone in zip(found(slice(0, 3)), found(slice(1, 2)), strict=True):
        samples = 1 if one.ndim > 2 else 0
        assert torch.equal(one.select(samples, 1), alone.select(samples, 1))


@dtypes
@kinds
def test_a_product_of_spans_has_the_gradients_of_torch(kind, dtype, monkeypatch):
    """As in a cell: ranges of a form, bands of two spans of it, and their weighted sum."""
    torch.manual_seed(0)
    form, leaves = leaf_form(dtype, **kind)

    def run():
        bounds, (x, y, _) = symbols(dtype).measured_spans(form, (3, 3, 1))
        ends = [end[:, place : place + 3] for place in (0, 3) for end in bounds]
        bands = symbols(dtype).bands(x, y, (1.0, -1.0), Rectangle(*ends))
        scales = bands.sum_low.sin(), bands.diff_high.cos()
        total = weighted([Term(x, scales[0]), Term(y, scales[1])], None, Error(first=20))
        ends, total = symbols(dtype).measured(total)
        return [*bounds, *bands, *ends, total.center]

    check(both(monkeypatch, run, leaves), dtype)


APART = {  # forms of 7 units through matrices, or of 6 as they are
    "one product": ("product",),
    "two products": ("product", "product"),
    "a product and a form": ("product", "as it is"),
    "as it is": ("as it is",),
}


@dtypes
@kinds
@pytest.mark.parametrize("read", READ.values(), ids=READ)
@pytest.mark.parametrize("made", APART.values(), ids=APART)
def test_a_sum_whose_spans_lie_apart_is_that_of_torch(made, read, kind, dtype, monkeypatch):
    torch.manual_seed(0)
    parts = [leaf_form(dtype, **kind), leaf_form(dtype, inputs=(1, 9), noise=(4, 4))][: len(made)]
    weights = [numbers(6, UNITS, dtype=dtype) for _ in made]
    constant = numbers(BATCH, 6, dtype=dtype)
    terms = [
        Term(form, weight=weight) if how == "product" else Term(mapped(form, lambda x: x[..., :6]))
        for how, weight, (form, _) in zip(made, weights, parts, strict=True)
    ]

    def run():
        total = weighted(terms, constant, Error(), spans=2)
        bounds, spans = symbols(dtype).measured_spans(total, (3, 3))
        found = list(bounds) if "range" in read else []
        for place, span in enumerate(spans):
            assert span.center.shape == span.size.shape == (BATCH, 3)
            blocks = [block.data for block in (span.inputs, span.noise) if block]
            if place in read:
                own = span.own + 0 * span.center  # has a gradient with loops and without
                found += [x.sin() for x in (span.center, own, *blocks)]
        return found

    leaves = [*weights, constant, *[x for _, own in parts for x in own]]
    check(both(monkeypatch, run, leaves), dtype)


@dtypes
def test_spans_of_a_sum_lie_apart_where_nothing_is_scaled(dtype):
    (form, _), weight = leaf_form(dtype), numbers(6, UNITS, dtype=dtype)
    total = weighted([Term(form, weight=weight)], None, spans=3)
    assert total.center.shape == (BATCH, 3, 2)
    _, spans = symbols(dtype).measured_spans(total, (2, 2, 2))
    assert all(span.inputs.data.is_contiguous() for span in spans)
    named = weighted([Term(form, weight=weight)], None, Error(first=20), spans=3)
    scaled = weighted([Term(form, torch.ones_like(form.center))], None, spans=7)
    assert named.center.ndim == scaled.center.ndim == 2
