"""Lines enclose their activation, touch it, and carry exact gradients."""

import pytest
import torch
from torch.autograd import gradcheck

from popqorn_train.relaxations.extremum import argmax_sigmoid, argmax_tanh, line_intercept
from popqorn_train.relaxations.lines import (
    relu_lines,
    sigmoid_lines,
    sigmoid_secant,
    sigmoid_slope,
    tanh_lines,
    tanh_secant,
    tanh_slope,
)
from tests.problems import F64

pytestmark = pytest.mark.usefixtures("loops")

CURVES = {
    "tanh": (torch.tanh, tanh_lines),
    "sigmoid": (torch.sigmoid, sigmoid_lines),
    "relu": (torch.relu, relu_lines),
}
SECANTS = {
    "tanh": (torch.tanh, tanh_secant, tanh_slope),
    "sigmoid": (torch.sigmoid, sigmoid_secant, sigmoid_slope),
}
curves = pytest.mark.parametrize(("f", "lines"), CURVES.values(), ids=CURVES)
smooth = pytest.mark.parametrize(("f", "secant", "slope"), SECANTS.values(), ids=SECANTS)


def intervals(width, count=400, *, spread=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    center = spread * torch.randn(1, count, generator=generator, dtype=F64)
    half = width * torch.rand(1, count, generator=generator, dtype=F64) / 2
    return center - half, center + half


def across(lower, upper, count=301):
    """Points from end to end, on a new first axis."""
    x = torch.lerp(lower, upper, torch.linspace(0, 1, count, dtype=lower.dtype)[:, None, None])
    return torch.minimum(torch.maximum(x, lower), upper)


def gaps(f, lines, x):
    """How far the lower line lies below f, and the upper one above."""
    below = f(x) - (lines.lower_slope * x + lines.lower_intercept)
    return below, lines.upper_slope * x + lines.upper_intercept - f(x)


@pytest.mark.parametrize("width", [0.0, 1e-12, 1e-6, 1e-2, 1.0, 10.0, 300.0])
@curves
def test_lines_enclose_the_activation(f, lines, width):
    ends = intervals(width)
    for gap in gaps(f, lines(*ends), across(*ends)):
        assert (gap >= -1e-15).all()


@pytest.mark.parametrize("center", [-1e4, -200.0, -40.0, -18.0, 0.0, 18.0, 40.0, 200.0, 1e4])
@pytest.mark.parametrize("width", [0.0, 1e-3, 1.0, 50.0])
@curves
def test_lines_enclose_saturated_units(f, lines, center, width):
    ends = (torch.full((1, 1), center - width, dtype=F64), torch.full((1, 1), center, dtype=F64))
    for gap in gaps(f, lines(*ends), across(*ends)):
        assert (gap >= -1e-12 * max(1, abs(center))).all()


@pytest.mark.parametrize("width", [0.0, 1e-6, 1e-3, 1.0, 20.0])
@curves
def test_float32_lines_enclose_the_real_activation(f, lines, width):
    ends = [end.float() for end in intervals(width, 2000)]
    found = type(lines(*ends))(*[field.double() for field in lines(*ends)])
    for gap in gaps(f, found, across(*[end.double() for end in ends])):
        assert (gap >= 0).all()


@curves
def test_lines_touch_the_activation(f, lines):
    ends = intervals(4.0)
    for gap in gaps(f, lines(*ends), across(*ends, count=2001)):
        assert (gap.amin(0) < 1e-5).all()


@curves
def test_a_point_is_bounded_exactly(f, lines):
    x, _ = intervals(0.0)
    for gap in gaps(f, lines(x, x), x):
        assert gap.abs().max() < 1e-13


@pytest.mark.parametrize("f", [torch.tanh, torch.sigmoid], ids=["tanh", "sigmoid"])
def test_no_other_line_leaves_less_area(f):
    lower, upper = intervals(6.0, 50)
    x, middle = across(lower, upper, 1001), (lower + upper) / 2
    slopes = torch.linspace(0, 1, 401, dtype=F64)[:, None, None]
    heights = torch.stack([k * middle + (f(x) - k * x).amax(0) for k in slopes])
    found = CURVES[f.__name__][1](lower, upper)
    height = found.upper_slope * middle + found.upper_intercept
    assert (height <= heights.amin(0) + 1e-5).all()


def test_the_triangle_of_relu_is_known():
    lower, upper = torch.tensor([[-1.0, -3.0, 1.0, -2.0]]), torch.tensor([[3.0, 1.0, 2.0, -1.0]])
    found = relu_lines(lower.double(), upper.double())
    expected = [[1, 0, 1, 0], [0, 0, 0, 0], [0.75, 0.25, 1, 0], [0.75, 0.75, 0, 0]]
    torch.testing.assert_close(torch.cat(list(found)), torch.tensor(expected, dtype=F64))


@smooth
def test_secants_are_chords(f, secant, slope):
    lower, upper = intervals(5.0)
    torch.testing.assert_close(secant(lower, upper), (f(upper) - f(lower)) / (upper - lower))


@pytest.mark.parametrize("width", [0.0, 1e-15, 1e-10, 1e-7])
@smooth
def test_secants_of_narrow_intervals_do_not_cancel(f, secant, slope, width):
    x, _ = intervals(0.0, spread=1.0)
    torch.testing.assert_close(secant(x, x + width), slope(x), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("f", "argmax"), [(torch.tanh, argmax_tanh), (torch.sigmoid, argmax_sigmoid)]
)
@pytest.mark.parametrize("slope", [-2.0, -0.1, 0.0, 1e-9, 0.1, 0.24, 0.5, 0.99, 3.0])
def test_intercepts_of_any_slope_are_exact(f, argmax, slope):
    lower, upper = intervals(5.0)
    k = torch.full_like(lower, slope)
    intercept = line_intercept(f, argmax, k, lower, upper)
    x = across(lower, upper, 3001)
    gap = intercept - (f(x) - k * x).amax(0)
    assert (gap >= 0).all()
    assert (gap < 1e-6).all()


@pytest.mark.parametrize("center", [-6.0, -1.0, -0.1, 0.3, 2.0, 7.0])
@curves
def test_gradients_of_lines_are_exact(f, lines, center):
    lower = torch.tensor([[center, center - 1, center - 3]], dtype=F64)
    upper = lower + torch.tensor([[0.5, 2.1, 7.3]], dtype=F64)
    assert gradcheck(lines, (lower.requires_grad_(), upper.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@curves
def test_gradients_are_finite_for_saturated_and_zero_width_intervals(f, lines, dtype):
    center = torch.tensor([[-1e4, -100, -20, -1, 0, 1, 20, 100, 1e4]], dtype=dtype)
    for width in (0.0, 1e-6, 1.0, 1e4):
        ends = (center - width).requires_grad_(), (center + width).requires_grad_()
        found = lines(*ends)
        assert all(field.isfinite().all() for field in found)
        for gradient in torch.autograd.grad(sum(field.sum() for field in found), ends):
            assert gradient.isfinite().all()
