"""Compiled ranges of affine forms, and the spans that they are cut into, are those of torch."""

import pytest
import torch

from popqorn_train.bounds.block_sums import Block
from popqorn_train.bounds.forms import Error, Form, Term, weighted
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
