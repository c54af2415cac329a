"""Compiled ranges, bands and sums of affine forms are those of torch, with their gradients."""

import pytest
import torch

from popqorn_train.bounds.block_sums import Block
from popqorn_train.bounds.forms import Error, Form, Term, weighted
from popqorn_train.bounds.symbols import Symbols
from popqorn_train.kernels.form_bands import octagon_bands
from popqorn_train.kernels.form_ranges import form_range
from popqorn_train.kernels.form_sums import Weighted, weighted_sum
from popqorn_train.kernels.library import SWITCH, kernels
from popqorn_train.kernels.operands import Operand
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.relaxations.domain import Rectangle
from tests.problems import F64

pytestmark = pytest.mark.skipif(kernels().library is None, reason="no compiled loops")

dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64])
BATCH, UNITS = 3, 7


def numbers(*shape, dtype, strided=False):
    """Leaves of a graph; every second column of something wider, if asked."""
    x = torch.randn(*shape[:-1], 2 * shape[-1] if strided else shape[-1], dtype=dtype)
    return x.requires_grad_()


def leaf_form(dtype, inputs=(0, 6), noise=(2, 5), own=True, strided=False):
    """A form, and the leaves that it is made of."""
    leaves = [numbers(BATCH, UNITS, dtype=dtype)]

    def block(place):
        if place is None:
            return None
        start, count = place
        data = numbers(count, BATCH, UNITS, dtype=dtype, strided=strided)
        leaves.append(data)
        return Block(start, data[..., UNITS:] if strided else data)

    blocks = block(inputs), block(noise)
    error = None
    if own:
        leaves.append(numbers(BATCH, UNITS, dtype=dtype))
        error = leaves[-1].square()
    size = 10 + torch.rand(BATCH, UNITS, dtype=dtype)
    return Form(leaves[0], *blocks, error, size), leaves


def both(monkeypatch, run, leaves):
    """Results and gradients, compiled and of torch."""
    found = []
    for switch in ("1", "0"):
        monkeypatch.setenv(SWITCH, switch)
        results = run()
        torch.manual_seed(1)
        live = [x for x in results if x.requires_grad]
        total = sum((x * torch.randn_like(x)).sum() for x in live)
        options = {"allow_unused": True, "retain_graph": True}
        gradients = torch.autograd.grad(total, leaves, **options)
        with torch.no_grad():
            still = run()
        found.append((results, still, [x for x in gradients if x is not None]))
    return found


def check(found, dtype):
    (ones, still, gradients), (others, _, wanted) = found
    close = {"rtol": 0, "atol": (3e-5 if dtype == torch.float32 else 1e-13)}
    assert len(ones) == len(others)
    for one, other, quiet in zip(ones, others, still, strict=True):
        torch.testing.assert_close(one, other, **close)
        assert torch.equal(one, quiet)
    assert len(gradients) == len(wanted)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=20 * close["atol"])


KINDS = {
    "whole": {},
    "strided": {"strided": True},
    "no noise": {"noise": None},
    "no input": {"inputs": None},
    "no error": {"own": False},
    "long": {"inputs": (0, 13), "noise": (3, 9)},
    "behind": {"inputs": (12, 5), "noise": (9, 1)},
    "still": {"inputs": None, "noise": None, "own": False},
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def symbols(dtype):
    x = torch.rand(BATCH, 2, 3, dtype=dtype)
    found = Symbols(LpBall(0.1).around(x, x))
    found.name(9)
    return found


@dtypes
@kinds
@pytest.mark.parametrize("signs", [(1.0, 1.0), (-1.0, 1.0)])
def test_bands_are_those_of_torch(kind, signs, dtype, monkeypatch):
    torch.manual_seed(0)
    form, leaves = leaf_form(dtype, **kind)
    other, more = leaf_form(dtype, inputs=(1, 9), noise=(4, 4))
    ends = [numbers(BATCH, UNITS, dtype=dtype) for _ in range(4)]
    wide = torch.full((BATCH, UNITS), 9.0, dtype=dtype)
    wide[0, :2] = 0  # a side that is no wider than rounding

    def run():
        x, y = ends[0].sin(), ends[1].sin()
        box = Rectangle(x - wide, x + wide + ends[2] ** 2, y - 8 - ends[3] ** 2, y + 8)
        return [*symbols(dtype).bands(form, other, signs, box)]

    check(both(monkeypatch, run, [*leaves, *more, *ends]), dtype)


@dtypes
def test_coefficients_that_cancel_out_have_no_gradient(dtype, monkeypatch):
    """|u + v| and |u - v| have a corner where u = -v, u = v, or both are 0."""
    torch.manual_seed(0)
    (form, leaves), (other, more) = (leaf_form(dtype, noise=None, own=False) for _ in range(2))
    wide = torch.full((BATCH, UNITS), 8.0, dtype=dtype)
    with torch.no_grad():
        for symbol, factor in enumerate((1, -1, 0)):
            other.inputs.data[symbol] = factor * form.inputs.data[symbol]
        for block in (form.inputs, other.inputs):
            block.data[3] = 0

    def run():
        box = Rectangle(-wide, wide, -wide, wide)
        return [*symbols(dtype).bands(form, other, (1.0, 1.0), box)]

    found = both(monkeypatch, run, [*leaves, *more])
    check(found, dtype)
    gradients = found[0][2]
    assert all((gradients[place][3] == 0).all() for place in (1, 3))


@dtypes
def test_sums_of_many_scaled_forms_are_those_of_torch(dtype, monkeypatch):
    """Rows are added up four at a time, and symbols of different blocks in one order."""
    torch.manual_seed(0)
    made = [leaf_form(dtype, inputs=(k, 5), noise=(2 * k, 4)) for k in range(6)]
    scales = [numbers(BATCH, UNITS, dtype=dtype) for _ in made]

    def run():
        pairs = zip(made, scales, strict=True)
        found = weighted([Term(form, scale) for (form, _), scale in pairs], None, Error(first=3))
        return [found.center, found.inputs.data, found.noise.data, found.size]

    check(both(monkeypatch, run, [*scales, *[x for _, leaves in made for x in leaves]]), dtype)


@dtypes
@kinds
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("factors", ["none", "scale", "weight", "scale and weight", "two weights"])
def test_sums_are_those_of_torch(factors, named, kind, dtype, monkeypatch):
    torch.manual_seed(0)
    form, leaves = leaf_form(dtype, **kind)
    other, more = leaf_form(dtype, inputs=(1, 9), noise=(1, 2))
    scale, gap, constant = (numbers(BATCH, UNITS, dtype=dtype) for _ in range(3))
    weights = [numbers(UNITS, UNITS, dtype=dtype) for _ in range(2)]
    scales = [scale if "scale" in factors else None, None]
    matrices = {"two weights": weights, "weight": [None, weights[0]]}.get(factors, [None, None])
    if factors == "scale and weight":
        matrices = [None, weights[1]]
    pairs = zip((form, other), scales, matrices, strict=True)
    terms = [Term(*parts) for parts in pairs]

    def run():
        error = Error(gap.square(), 11 if named else None)
        total = weighted(terms, constant[:1], error)
        blocks = [block.data for block in (total.inputs, total.noise) if block]
        owns = [] if total.own is None else [total.own]
        return [total.center, total.size, *owns, *blocks]

    check(both(monkeypatch, run, [*leaves, *more, scale, gap, constant, *weights]), dtype)


@dtypes
def test_what_nothing_is_done_with_is_not_copied(dtype):
    form, _ = leaf_form(dtype)
    constant = torch.ones(BATCH, UNITS, dtype=dtype)
    total = weighted([Term(form)], constant)
    assert total.inputs.data is form.inputs.data
    assert total.noise.data is form.noise.data


@dtypes
def test_a_sample_has_the_same_bits_alone(dtype):
    torch.manual_seed(0)
    form, _ = leaf_form(dtype)
    other, _ = leaf_form(dtype)
    scale = torch.randn(BATCH, UNITS, dtype=dtype)

    def found(some):
        def part(form):
            def cut(block):
                return block.start, block.data[:, some]

            return Operand(form.center[some], form.own[some], cut(form.inputs), cut(form.noise))

        x, y = part(form), part(other)
        one = torch.ones_like(x.center)
        terms = [
            Weighted(x.center, one, x.own, x.inputs, x.noise, scale[some], None),
            Weighted(y.center, one, y.own, y.inputs, y.noise, None, None),
        ]
        total = weighted_sum(terms, None, one, 1e-6, 9)
        bands = octagon_bands([x, y], (1.0, 1.0), [-9 * one, 9 * one, -9 * one, 9 * one], 1e-6)
        return [*form_range(x, 1e-6)[:3], *bands, total.center, total.size, total.noise[1]]

    with torch.no_grad():
        for one, other_one in zip(found(slice(0, 3)), found(slice(1, 2)), strict=True):
            cut = one[:, 1:2] if one.ndim > 2 else one[1:2]
            assert torch.equal(cut, other_one)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_none_leave_the_square_uncut(bad):
    form, _ = leaf_form(F64)
    with torch.no_grad():
        form.noise.data[0, 1, 2] = bad
        one = torch.ones(BATCH, UNITS, dtype=F64)
        parts = [Operand(form.center, form.own, form.inputs, form.noise)] * 2
        bands = octagon_bands(parts, (1.0, 1.0), [-9 * one, 9 * one, -9 * one, 9 * one], 1e-6)
        assert [band[1, 2].item() for band in bands] == [-2, 2, -2, 2]
        assert not form_range(parts[0], 1e-6)[0][1, 2].isfinite()
