"""Least values of slopes that a weight carries to the input are those of torch."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from popqorn_train.kernels.inputs import filled, filled_box, least_through
from popqorn_train.kernels.library import SWITCH, kernels
from tests.problems import F64

pytestmark = pytest.mark.skipif(kernels().library is None, reason="no compiled loops")
# Samples, rows, frames, outputs and inputs.
SIZES = [(3, 16, 1, 32, 112), (2, 17, 2, 7, 29), (1, 33, 1, 1, 1), (2, 21, 3, 130, 1000)]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64])
shared = pytest.mark.parametrize("same", [False, True], ids=["rows of each", "the same rows"])


def problem(size, dtype, *, same=False):
    batch, rows, frames, outputs, inputs = size
    slope = torch.randn(1 if same else batch, rows, frames, outputs, dtype=dtype)
    slope[:, ::5] = 0
    weight = torch.randn(outputs, inputs, dtype=dtype)
    center, half = torch.randn(2, batch, frames, inputs, dtype=dtype)
    return slope, weight, center, half.abs()


def exactly(slope, weight, center, half):
    on_x = slope.double() @ weight.double()
    center, half = (part[:, None].double() for part in (center, half))
    return (on_x * center - on_x.abs() * half).sum((2, 3))


def room(slope, weight, center, half):
    """Twice the rounding of both sums, at most."""
    terms = weight.shape[1] * slope.shape[2] + weight.shape[0]
    largest = slope.double().abs() @ weight.double().abs()
    total = (largest * (center.abs() + half)[:, None]).sum((2, 3))
    return 2 * terms**0.5 * torch.finfo(slope.dtype).eps * total + 1e-30


@dtypes
@sizes
@shared
@pytest.mark.every_combination
def test_least_values_are_those_of_torch(size, same, dtype):
    slope, weight, center, half = problem(size, dtype, same=same)
    found = least_through(slope, filled(weight), filled_box(center, half))
    known = exactly(slope, weight, center, half)
    assert ((found - known).abs() <= room(slope, weight, center, half)).all()


@dtypes
@sizes
@shared
@pytest.mark.every_combination
def test_the_gradient_is_what_the_weight_makes_of_the_worst_input(size, same, dtype):
    slope, weight, center, half = problem(size, dtype, same=same)
    worth = torch.randn(size[0], size[1], dtype=dtype)
    live = slope.clone().requires_grad_()
    value = least_through(live, filled(weight.requires_grad_()), filled_box(center, half))
    (found,) = torch.autograd.grad((value * worth).sum(), live)
    on_x = slope @ weight.detach()
    worst = center[:, None] - on_x.sign() * half[:, None]
    known = (worth[..., None, None] * (worst @ weight.detach().T)).sum_to_size(slope.shape)
    scale = known.abs().max() + 1
    assert (found - known).abs().max() <= 2e3 * torch.finfo(dtype).eps * scale
    assert torch.equal(value, least_through(slope, filled(weight), filled_box(center, half)))


def test_gradients_are_exact():
    slope, weight, center, half = problem((2, 16, 2, 3, 5), F64)
    slope = torch.randn_like(slope).requires_grad_()
    assert gradcheck(lambda x: least_through(x, filled(weight), filled_box(center, half)), slope)
    assert gradgradcheck(
        lambda x: least_through(x, filled(weight), filled_box(center, half)), slope
    )


@dtypes
@sizes
def test_a_row_has_the_same_bits_whatever_lies_beside_it(size, dtype):
    slope, weight, center, half = problem(size, dtype)
    by, live = filled(weight), slope.clone().requires_grad_()
    whole = least_through(live, by, filled_box(center, half))
    (gradient,) = torch.autograd.grad(whole.sum(), live)
    for rows in {16, size[1] - 1, size[1]} - {15}:
        some = slope[-1:, -rows:].clone().requires_grad_()
        found = least_through(some, by, filled_box(center[-1:], half[-1:]))
        assert torch.equal(found, whole[-1:, -rows:])
        (own,) = torch.autograd.grad(found.sum(), some)
        assert torch.equal(own, gradient[-1:, -rows:])


@dtypes
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_spoils_its_own_row(dtype, bad):
    slope, weight, center, half = problem((2, 20, 2, 7, 29), dtype)
    known = least_through(slope, filled(weight), filled_box(center, half))
    slope[1, 3, 1, 2] = bad
    found = least_through(slope, filled(weight), filled_box(center, half))
    assert not found[1, 3] > -math.inf
    found[1, 3] = known[1, 3]
    assert torch.equal(found, known)
    center[0, 1, 5] = math.nan
    assert least_through(slope, filled(weight), filled_box(center, half))[0].isnan().all()


@dtypes
def test_frames_are_those_that_are_meant(dtype):
    slope, weight, center, half = problem((2, 16, 5, 7, 29), dtype)
    box, by = filled_box(center, half), filled(weight)
    for first in range(4):
        some = slice(first, first + 2)
        alone = least_through(slope[:, :, some], by, filled_box(center[:, some], half[:, some]))
        assert torch.equal(least_through(slope[:, :, some], by, box, first), alone)


def test_what_does_not_fit_is_left_to_torch(monkeypatch):
    slope, weight, center, half = problem((2, 16, 2, 3, 5), F64)
    by, box = filled(weight), filled_box(center, half)
    assert least_through(slope, by, box) is not None
    assert least_through(slope[:, :15], by, box) is None
    assert least_through(slope.float(), by, box) is None
    assert least_through(slope, by, filled_box(center.clone().requires_grad_(), half)) is None
    assert least_through(slope[:0], by, filled_box(center[:0], half[:0])) is None
    tall = filled_box(*torch.rand(2, 2, 2, 1, dtype=F64))
    assert least_through(slope, filled(torch.randn(3, 1, dtype=F64)), tall) is None
    wide = torch.randn(3, 1025, dtype=F64)
    assert least_through(slope, filled(wide), box) is None
    assert (
        least_through(slope, filled(wide), filled_box(*torch.rand(2, 2, 2, 1025, dtype=F64)))
        is None
    )
    monkeypatch.setenv(SWITCH, "0")
    assert least_through(slope, by, box) is None
