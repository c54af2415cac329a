"""Compiled steps over nonlinearities, and least values over boxes, are those of torch."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from popqorn_train.bounds.back_substitution import back_substitute
from popqorn_train.kernels.least_values import least
from popqorn_train.kernels.library import SWITCH, kernels
from popqorn_train.kernels.rows import minimum, substitute, substitute_gradient
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.perturbations.region import dot
from tests.problems import F64

pytestmark = pytest.mark.skipif(kernels().library is None, reason="no compiled loops")

F32 = torch.float32
SHAPES = {
    "units": ((3, 5, 37), (3, 1, 37)),
    "one unit": ((3, 5, 1), (3, 1, 1)),
    "the same rows for all samples": ((1, 5, 37), (3, 1, 37)),
    "sides of every row": ((3, 5, 37), (3, 5, 37)),
    "frames": ((3, 5, 4, 33), (3, 1, 4, 33)),
    "the same sides for all samples": ((3, 5, 37), (1, 1, 37)),
    "single numbers": ((3, 5), (3, 1)),
}
shapes = pytest.mark.parametrize(("on", "of"), SHAPES.values(), ids=SHAPES)
dtypes = pytest.mark.parametrize("dtype", [F32, F64])


def problem(on, of, arguments, dtype):
    slope = torch.randn(on, dtype=dtype)
    slope.view(-1)[::7] = 0
    sides = torch.randn(2, arguments + 1, *of, dtype=dtype)
    return slope, [*sides[0]], [*sides[1]]


@shapes
@dtypes
@pytest.mark.parametrize("arguments", [0, 1, 3])
def test_steps_are_those_of_torch(on, of, arguments, dtype, monkeypatch):
    parts = problem(on, of, arguments, dtype)
    slopes, constant = substitute(*parts)
    monkeypatch.setenv(SWITCH, "0")
    assert substitute(*parts) is None
    known, sums = back_substitute(*parts)
    for one, other in zip(slopes, known, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(constant, sums, rtol=0, atol=200 * torch.finfo(dtype).eps)


@shapes
@dtypes
@pytest.mark.parametrize("arguments", [0, 2])
def test_gradients_are_those_of_torch(on, of, arguments, dtype, monkeypatch):
    parts = problem(on, of, arguments, dtype)
    live = [part.requires_grad_() for part in (parts[0], *parts[1], *parts[2])]
    found = []
    for switch in ("1", "0"):
        monkeypatch.setenv(SWITCH, switch)
        slopes, constant = back_substitute(*parts)
        loss = sum(slope.sin().sum() for slope in slopes) + constant.cos().sum()
        found.append(torch.autograd.grad(loss, live))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=500 * torch.finfo(dtype).eps)


@shapes
@dtypes
@pytest.mark.parametrize("arguments", [0, 2])
def test_gradients_in_slopes_alone_are_the_same(on, of, arguments, dtype):
    slope, lower, upper = problem(on, of, arguments, dtype)
    batch = max(on[0], of[0])
    worths = [torch.randn(batch, *on[1:], dtype=dtype) for _ in range(arguments)]
    worths.append(torch.randn(batch, on[1], dtype=dtype))
    whole = substitute_gradient(slope, lower, upper, worths)
    alone = substitute_gradient(slope, lower, upper, worths, sides=False)
    assert len(alone) == len(whole)
    assert alone[1:] == (None,) * (len(whole) - 1)
    torch.testing.assert_close(alone[0], whole[0], rtol=0, atol=50 * torch.finfo(dtype).eps)


@dtypes
def test_a_sample_has_the_same_bits_alone(dtype):
    slope, lower, upper = problem((5, 6, 37), (5, 1, 37), 2, dtype)
    found, constant = substitute(slope, lower, upper)
    for part in (slice(0, 1), slice(3, 5)):
        alone, own = substitute(
            slope[part, 1:4], [side[part] for side in lower], [side[part] for side in upper]
        )
        assert torch.equal(own, constant[part, 1:4])
        assert all(torch.equal(a, b[part, 1:4]) for a, b in zip(alone, found, strict=True))


@dtypes
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_stay(dtype, bad):
    slope, lower, upper = problem((2, 3, 37), (2, 1, 37), 1, dtype)
    for place in (*lower, *upper, slope):
        kept = place[0, 0, 5].item()
        place[0, 0, 5] = bad
        (on_x,), constant = substitute(slope, lower, upper)
        assert not torch.cat([on_x[0, 0], constant[0, :1]]).isfinite().all()
        assert on_x[1].isfinite().all()
        assert constant[1].isfinite().all()
        place[0, 0, 5] = kept


def test_what_does_not_fit_is_left_to_torch():
    slope, lower, upper = problem((2, 3, 4), (2, 1, 4), 1, F32)
    assert substitute(slope, lower, upper) is not None
    assert substitute(slope, lower, [upper[0][:1], upper[1]]) is None
    assert substitute(slope.double(), lower, upper) is None
    assert substitute(slope.requires_grad_(), lower, upper) is None
    with torch.no_grad():
        assert substitute(slope, lower, upper) is not None


@dtypes
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("time", [2, 4])
def test_least_values_are_those_of_torch(samples, time, dtype, monkeypatch):
    x = torch.rand(3, 4, 29, dtype=dtype)
    region = LpBall(0.3, low=0.0, high=1.0).around(x)
    slope = torch.randn(samples, 5, time, 29, dtype=dtype)
    found = region.minimum(slope)
    assert torch.equal(found, minimum(slope, *region.box))
    monkeypatch.setenv(SWITCH, "0")
    known = region.minimum(slope)
    torch.testing.assert_close(found, known, rtol=0, atol=200 * torch.finfo(dtype).eps)
    center, half = (part[:, :time] for part in region.box)
    exact = dot(slope.double(), center.double()) - dot(slope.double().abs(), half.double())
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=60 * torch.finfo(dtype).eps)


@dtypes
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("time", [2, 4])
def test_gradients_of_least_values_are_those_of_torch(samples, time, dtype, monkeypatch):
    region = LpBall(0.3, low=0.0, high=1.0).around(torch.rand(3, 4, 29, dtype=dtype))
    slope = torch.randn(samples, 5, time, 29, dtype=dtype)
    slope.view(-1)[::7] = 0
    slope, worth, found = slope.requires_grad_(), torch.randn(3, 5, dtype=dtype), []
    for switch in ("1", "0"):
        monkeypatch.setenv(SWITCH, switch)
        (gradient,) = torch.autograd.grad((region.minimum(slope) * worth).sum(), slope)
        found.append(gradient)
    torch.testing.assert_close(*found, rtol=0, atol=20 * torch.finfo(dtype).eps)


def test_the_place_of_the_least_value_can_be_differentiated_again():
    region = LpBall(0.3).around(torch.rand(2, 3, 5, dtype=F64))
    slope = torch.randn(2, 4, 3, 5, dtype=F64).requires_grad_()
    assert gradcheck(region.minimum, slope)
    assert gradgradcheck(region.minimum, slope)


def test_a_box_with_a_gradient_is_left_to_torch():
    slope = torch.randn(2, 4, 3, 5).requires_grad_()
    center, half = torch.rand(2, 2, 3, 5)
    assert least(slope, center, half).requires_grad
    assert least(slope, center.requires_grad_(), half) is None
    assert least(slope[:1], center.detach(), half.requires_grad_()) is None
    assert least(slope.half(), center.detach().half(), half.detach().half()) is None


def test_no_samples_leave_no_values():
    """Where rows are the same for all samples, of which there are none."""
    slope, none = torch.ones(1, 2, 3, 4), torch.ones(0, 3, 4)
    assert minimum(slope, none, none).shape == (0, 2)
    found, constant = substitute(slope, [none[:, None]] * 2, [none[:, None]] * 2)
    assert (found[0].shape, constant.shape) == ((0, 2, 3, 4), (0, 2))


@dtypes
def test_least_values_of_a_sample_have_the_same_bits_alone(dtype):
    slope = torch.randn(4, 6, 3, 29, dtype=dtype)
    center, half = torch.rand(2, 4, 5, 29, dtype=dtype)
    whole = minimum(slope, center, half)
    assert torch.equal(minimum(slope[2:3, 1:4], center[2:3], half[2:3]), whole[2:3, 1:4])
    half[0, 0, 0] = math.nan
    assert minimum(slope, center, half)[0].isnan().all()
    assert torch.equal(minimum(slope, center, half)[1:], whole[1:])


def test_gradients_need_torch():
    x = torch.rand(2, 3, 5)
    slope = torch.randn(2, 4, 3, 5, requires_grad=True)
    region = LpBall(0.1).around(x)
    assert minimum(slope, *region.box) is None
    assert region.minimum(slope).requires_grad
