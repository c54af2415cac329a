"""Arithmetic of affine forms: exact where it can be, and the rounding counted where it cannot."""

import pytest
import torch
from torch.autograd import gradcheck

from popqorn_train.bounds.block_sums import Block, Named, Part, added_blocks
from popqorn_train.bounds.forms import Error, Form, Term, constant_form, mapped, weighted
from popqorn_train.bounds.symbol_sums import absolute_sum, absolute_sums
from tests.problems import F64

pytestmark = pytest.mark.usefixtures("loops")


def form(start=0, symbols=3, units=2, *, seed=0, own=0.0, dtype=F64):
    """A form of random coefficients on two samples."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(2 * symbols + 1, 2, units, generator=generator, dtype=F64).to(dtype)
    inputs, noise, center = draw[:symbols], draw[symbols:-1], draw[-1]
    owns = torch.full_like(center, own) if own else None
    size = center.abs() + inputs.abs().sum(0) + noise.abs().sum(0) + own
    return Form(center, Block(start, inputs), Block(start, noise), owns, size, own > 0)


def at(form, symbols, errors):
    """The value of a form without its own error, in float64."""
    value = form.center.double()
    for block, x in ((form.inputs, symbols), (form.noise, errors)):
        if block is not None:
            part = x[block.start : block.stop].view(-1, *[1] * form.center.ndim)
            value = value + (block.data.double() * part).sum(0)
    return value


def points(count=20, symbols=12, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(count, 2, symbols, generator=generator, dtype=F64) - 1


@pytest.mark.parametrize("starts", [(0, 0), (0, 2), (4, 1), (0, 7)])
def test_a_weighted_sum_is_the_sum_of_the_values(starts):
    one, other = form(starts[0]), form(starts[1], seed=1)
    scale, weight = torch.tensor([-2.0, 0.5], dtype=F64).expand(2, 2), torch.eye(2, dtype=F64) - 3
    terms = [Term(one, scale), Term(other, weight=weight), Term(one)]
    found = weighted(terms, torch.ones(2, dtype=F64))
    for symbols, errors in points():
        x, y = at(one, symbols, errors), at(other, symbols, errors)
        expected = scale * x + y @ weight.T + x + 1
        torch.testing.assert_close(at(found, symbols, errors), expected, rtol=0, atol=1e-12)
    assert (found.own < 1e-12).all()
    assert not found.loose


def test_an_error_without_a_name_grows_by_the_absolute_scale():
    x, scale = form(own=0.5), torch.tensor([-2.0, 0.25], dtype=F64).expand(2, 2)
    torch.testing.assert_close(weighted([Term(x, scale)], None).own, 0.5 * scale.abs())
    weight = torch.tensor([[1.0, -3.0]], dtype=F64)
    torch.testing.assert_close(
        weighted([Term(x, weight=weight)], None).own, torch.full((2, 1), 2.0, dtype=F64)
    )
    assert weighted([Term(x, scale)], None).loose


def test_named_errors_are_new_symbols_one_for_every_unit():
    x, gap = form(own=0.5), torch.full((2, 2), 0.25, dtype=F64)
    found = weighted([Term(x)], None, Error(gap, first=5))
    assert found.own is None
    assert not found.loose
    assert (found.noise.start, found.noise.stop) == (0, 7)
    torch.testing.assert_close(
        found.noise.data[5:], torch.eye(2, dtype=F64)[:, None] * 0.75 + 0 * gap
    )
    assert (found.noise.data[3:5] == 0).all()


def test_sums_leave_their_terms_as_they_are():
    x, y = form(), form(2, seed=1)
    before = [part.clone() for part in (x.inputs.data, y.inputs.data, x.noise.data)]
    with torch.no_grad():
        weighted([Term(x), Term(y)], None, Error(torch.ones(2, 2, dtype=F64), first=8))
    for part, kept in zip((x.inputs.data, y.inputs.data, x.noise.data), before, strict=True):
        assert torch.equal(part, kept)


def test_gradients_do_not_change_values():
    terms = [Term(form(), torch.full((2, 2), 0.3, dtype=F64)), Term(form(2, seed=1))]
    error = Error(torch.ones(2, 2, dtype=F64), first=8)
    tracked = weighted(terms, None, error)
    with torch.no_grad():
        plain = weighted(terms, None, error)
    assert torch.equal(tracked.noise.data, plain.noise.data)
    assert torch.equal(tracked.inputs.data, plain.inputs.data)


def test_gradients_of_sums_are_exact():
    scale, weight, gap = (
        torch.rand(2, 2).double(),
        torch.randn(2, 2).double(),
        torch.rand(2, 2).double(),
    )
    data = torch.randn(3, 2, 2).double(), torch.randn(4, 2, 2).double()

    def run(one, other, scale, weight, gap):
        parts = [
            Part(Block(1, one), scale),
            Part(Block(0, other), None, weight),
            Part(Block(6, one)),
        ]
        return added_blocks(parts, Named(8, gap)).data

    assert gradcheck(run, [x.requires_grad_() for x in (*data, scale, weight, gap)])


def test_gradients_of_absolute_sums_are_exact():
    data = torch.randn(5, 2, 3).double(), torch.randn(4, 2, 3).double()
    scales = torch.rand(2, 3).double() + 0.5, torch.rand(2, 3).double() - 2

    def run(one, other, on_x, on_y):
        pairs = absolute_sums(Block(0, one), Block(2, other), on_x, on_y)
        return absolute_sum(one), *pairs

    assert gradcheck(run, [x.requires_grad_() for x in (*data, *scales)])


def test_rounding_is_part_of_the_error():
    """In float32, with terms that cancel out."""
    seen = 0.0
    for seed in range(20):
        x, y = (form(seed=s, units=16, dtype=torch.float32) for s in (seed, seed + 100))
        weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed)) * 1e4
        scale = torch.full((2, 4), -1.0)
        first = weighted([Term(x, weight=weight)], None)
        second = weighted([Term(x, weight=weight), Term(y, weight=weight * 1e-4)], None)
        found = weighted([Term(first, scale), Term(second)], None)
        for symbols, errors in points(5):
            exact = at(y, symbols, errors) @ (weight * 1e-4).double().T
            off = (at(found, symbols, errors) - exact).abs()
            assert (off <= found.own).all()
            seen = max(seen, (off / exact.abs()).max().item())
    assert seen > 1e-4  # what cancels out is far larger than what is left


def test_what_does_not_move_has_no_coefficients():
    found = weighted(
        [Term(constant_form(torch.ones(2, 3))), Term(constant_form(torch.ones(2, 3)))], None
    )
    assert found.inputs is found.noise is None
    assert added_blocks([]) is None


def test_moved_numbers_keep_their_errors():
    x = form(own=0.5, units=3)
    found = mapped(x, lambda data: data[..., [2, 0]])
    assert torch.equal(found.center, x.center[:, [2, 0]])
    assert torch.equal(found.noise.data, x.noise.data[..., [2, 0]])
    assert torch.equal(found.own, x.own[:, [2, 0]])


@pytest.mark.parametrize("starts", [(0, 0), (0, 2), (4, 1), (0, 7), (None, 1), (2, None)])
@pytest.mark.parametrize("symbols", [3, 3000])
def test_sums_of_absolute_values_are_those_over_all_symbols(starts, symbols):
    one, other = (
        None if start is None else form(start, symbols, seed=seed).noise
        for start, seed in zip(starts, (0, 1), strict=True)
    )
    scales = torch.tensor([[0.5, -2.0]], dtype=F64).expand(2, 2), torch.full((2, 2), 3.0, dtype=F64)
    whole = [torch.zeros(symbols + 8, 2, 2, dtype=F64) for _ in range(2)]
    for block, place in ((one, whole[0]), (other, whole[1])):
        if block is not None:
            place[block.start : block.stop] = block.data
    x, y = (part * scale for part, scale in zip(whole, scales, strict=True))
    plus, minus = absolute_sums(one, other, *scales)
    torch.testing.assert_close(plus, (x + y).abs().sum(0))
    torch.testing.assert_close(minus, (x - y).abs().sum(0))
    torch.testing.assert_close(absolute_sum(whole[0]), whole[0].abs().sum(0))
