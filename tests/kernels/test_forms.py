"""Compiled strips and sums over symbols are those of torch."""

import math

import pytest
import torch

from popqorn_train.bounds.block_sums import Block
from popqorn_train.bounds.symbol_sums import absolute_sum, absolute_sums
from popqorn_train.kernels.library import SWITCH, kernels
from popqorn_train.kernels.sums import add_absolute, add_pairs
from popqorn_train.relaxations.domain import Octagon, Rectangle
from popqorn_train.relaxations.gap_search import least_gap
from popqorn_train.relaxations.products import MEMORY, SIGMOID_TANH
from tests.problems import F64
from tests.relaxations.test_octagon import octagons

pytestmark = pytest.mark.skipif(kernels().library is None, reason="no compiled loops")

PRODUCTS = (SIGMOID_TANH, MEMORY)
products = pytest.mark.parametrize("product", PRODUCTS, ids=[p.name for p in PRODUCTS])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64])


@products
def test_strips_are_those_of_torch(product, monkeypatch):
    for width in (1e-3, 0.3, 2.0, 8.0, 60.0):
        domain = octagons(width, 3000, spread=1.5)
        found = least_gap(product, domain)
        monkeypatch.setenv(SWITCH, "0")
        known = least_gap(product, domain)
        monkeypatch.delenv(SWITCH)
        assert (found.half >= known.half).all()  # sigmoid and tanh may be off by more
        torch.testing.assert_close(found.half, known.half, rtol=1e-5, atol=1e-12)
        for one, other in zip(found, known, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@dtypes
@products
def test_a_unit_has_the_same_strip_alone(product, dtype):
    domain = octagons(1.0, 37, dtype=dtype)
    whole = least_gap(product, domain)
    for part in (slice(0, 1), slice(5, 20), slice(36, 37)):
        box, bands = (type(ends)(*(end[:, part] for end in ends)) for ends in domain)
        for one, other in zip(least_gap(product, Octagon(box, bands)), whole, strict=True):
            assert torch.equal(one, other[:, part])


@products
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_ends_that_are_no_numbers_give_no_strip(product, bad):
    domain = octagons(1.0, 9)
    for place in range(8):
        ends = [end.clone() for end in (*domain.box, *domain.bands)]
        ends[place][0, 4] = bad
        found = least_gap(product, Octagon(Rectangle(*ends[:4]), type(domain.bands)(*ends[4:])))
        for part in found:
            assert part[0, 4].isnan()
            assert part[0, [0, 8]].isfinite().all()


@dtypes
def test_a_sample_has_the_same_sums_alone_and_in_pieces_of_memory(dtype):
    x, y = torch.randn(2, 301, 5, 12, dtype=dtype)
    on_x, on_y = torch.randn(2, 5, 7, dtype=dtype)
    part, beside = x[..., 2:9], y[..., 5:]  # spans of a wider node
    sums = absolute_sum(part)
    pairs = absolute_sums(Block(0, part), Block(4, beside), on_x, on_y)
    assert torch.equal(absolute_sum(part[:, 3:4].contiguous()), sums[3:4])
    alone = absolute_sums(Block(0, part[:, 3:4]), Block(4, beside[:, 3:4]), on_x[3:4], on_y[3:4])
    for one, other in zip(alone, pairs, strict=True):
        assert torch.equal(one, other[3:4])


@dtypes
def test_sums_are_those_of_torch(dtype, monkeypatch):
    x, y = torch.randn(2, 500, 3, 4, 5, dtype=dtype)
    scales = torch.randn(2, 3, 4, 5, dtype=dtype)
    found = absolute_sum(x), *absolute_sums(Block(3, x), Block(0, y), *scales)
    monkeypatch.setenv(SWITCH, "0")
    known = absolute_sum(x), *absolute_sums(Block(3, x), Block(0, y), *scales)
    for one, other in zip(found, known, strict=True):
        torch.testing.assert_close(one, other, rtol=1e3 * torch.finfo(dtype).eps, atol=0)


def test_gradients_are_left_to_torch():
    x = torch.randn(4, 2, 3, requires_grad=True)
    zeros = torch.zeros(2, 3)
    assert not add_absolute(x, zeros)
    assert not add_pairs(x, x, zeros, zeros, zeros, zeros)
    absolute_sum(x).sum().backward()
    assert torch.equal(x.grad, x.detach().sign())
