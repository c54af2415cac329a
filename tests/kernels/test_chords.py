"""Compiled chords are those of torch, with their gradients."""

import math

import pytest
import torch

from popqorn_train.kernels.library import SWITCH, kernels
from popqorn_train.relaxations.domain import Bands, Octagon, Rectangle
from popqorn_train.relaxations.products import MEMORY, SIGMOID_TANH
from popqorn_train.relaxations.strips import chords, sigmoid_strip, tanh_strip
from tests.problems import F64
from tests.relaxations.test_octagon import octagons

pytestmark = pytest.mark.skipif(kernels().library is None, reason="no compiled loops")

STRIPS = {
    "memory": lambda ends: chords(MEMORY, _octagon(ends)),
    "curved": lambda ends: chords(SIGMOID_TANH, _octagon(ends)),
    "a box": lambda ends: chords(SIGMOID_TANH, Rectangle(*ends[:4])),
    "tanh": lambda ends: tanh_strip(*ends[2:4]),
    "sigmoid": lambda ends: sigmoid_strip(*ends[:2]),
}
strips = pytest.mark.parametrize("strip", STRIPS.values(), ids=STRIPS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64])


def _octagon(ends):
    return Octagon(Rectangle(*ends[:4]), Bands(*ends[4:]))


def ends_of(width, count, dtype):
    box, bands = octagons(width, count, dtype=dtype, spread=1.5)
    return [end.clone().requires_grad_() for end in (*box, *bands)]


@dtypes
@strips
@pytest.mark.parametrize("width", [0.3, 2.0, 8.0, 60.0])
def test_strips_and_their_gradients_are_those_of_torch(strip, width, dtype, monkeypatch):
    ends, found = ends_of(width, 3000, dtype), []
    for switch in ("1", "0"):
        monkeypatch.setenv(SWITCH, switch)
        parts = strip(ends)
        torch.manual_seed(0)
        total = sum((part * torch.randn_like(part)).sum() for part in parts)
        gradients = torch.autograd.grad(total, ends, allow_unused=True)
        found.append((parts, [x for x in gradients if x is not None]))
    (parts, gradients), (known, wanted) = found
    exact = dtype == F64
    assert (parts.half >= known.half).all()  # sigmoid and tanh may be off by more
    for one, other in zip(parts, known, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12 if exact else 2e-4)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 if exact else 3e-3)


@strips
def test_a_box_of_no_width_has_a_finite_gradient(strip):
    ends = [torch.zeros(1, 5, dtype=F64, requires_grad=True) for _ in range(4)]
    ends += [torch.full((1, 5), band, dtype=F64, requires_grad=True) for band in (-2, 2, -2, 2)]
    total = sum(part.sum() for part in strip(ends))
    for gradient in torch.autograd.grad(total, ends, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@dtypes
@strips
def test_a_unit_has_the_same_strip_alone(strip, dtype):
    with torch.no_grad():
        ends = ends_of(1.0, 37, dtype)
        whole = strip(ends)
        for part in (slice(0, 1), slice(5, 20), slice(36, 37)):
            alone = strip([end[:, part] for end in ends])
            for one, other in zip(alone, whole, strict=True):
                assert torch.equal(one, other[:, part])


@strips
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_ends_that_are_no_numbers_give_no_strip(strip, bad):
    with torch.no_grad():
        ends = ends_of(1.0, 9, F64)
        ends[1][0, 4] = ends[3][0, 4] = bad
        for part in strip(ends):
            assert part[0, 4].isnan()
            assert part[0, [0, 8]].isfinite().all()
