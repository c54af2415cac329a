"""Compiled lines around tanh and sigmoid enclose them, and are those of torch."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from popqorn_train.kernels.library import SWITCH, kernels
from popqorn_train.kernels.nearest import closest
from popqorn_train.relaxations.lines import sigmoid_lines, tanh_lines
from popqorn_train.relaxations.nearest_lines import closest_sigmoid, closest_tanh
from tests.problems import F64

pytestmark = pytest.mark.skipif(kernels().library is None, reason="no compiled loops")

F32 = torch.float32
KINDS = {
    "least area, tanh": (lambda low, high, _: tanh_lines(low, high), True),
    "least area, sigmoid": (lambda low, high, _: sigmoid_lines(low, high), False),
    "closest, tanh": (closest_tanh, True),
    "closest, sigmoid": (closest_sigmoid, False),
}
# Spread of the middles, least and greatest half width.
ENDS = {
    "usual": (2, 1e-2, 4),
    "narrow": (3, 1e-12, 1e-3),
    "tiny": (1e-6, 1e-30, 1e-6),
    "wide": (4, 1, 100),
    "saturated": (50, 1e-3, 20),
    "huge": (1e12, 1e-3, 1e12),
}
kinds = pytest.mark.parametrize(("lines", "curved"), KINDS.values(), ids=KINDS)
sizes = pytest.mark.parametrize("sizes", ENDS.values(), ids=ENDS)
dtypes = pytest.mark.parametrize("dtype", [F32, F64])


def problem(sizes, units, dtype, *, rows=6, batch=1):
    """Ends ``(B, 1, H)``, and a point for each of some rows, some of them outside."""
    spread, least, most = sizes
    center = spread * torch.randn(batch, 1, units, dtype=F64)
    share = torch.rand(batch, 1, units, dtype=F64)
    half = least * (most / least) ** share
    point = center + 1.2 * half * (2 * torch.rand(batch, rows, units, dtype=F64) - 1)
    lower, upper, point = (part.to(dtype) for part in (center - half, center + half, point))
    return lower, torch.maximum(lower, upper), point


def exactly(curved, x):
    """The function in 64 bits of mantissa."""
    return np.tanh(x) if curved else 1 / (1 + np.exp(-np.clip(x, -11000, 11000)))


def least_gap(found, curved, lower, upper, count):
    """Of the function and both lines, at points from end to end and on the ends."""
    low, low_top, high, high_top = (field.numpy().astype(np.longdouble) for field in found)
    least = np.inf
    for share in (0.0, 1.0, *np.random.default_rng(0).random(count)):
        x = torch.lerp(lower, upper, torch.tensor(share, dtype=lower.dtype)).clamp(lower, upper)
        at = x.numpy().astype(np.longdouble)
        f = exactly(curved, at)
        least = min(least, (f - low * at - low_top).min(), (high * at + high_top - f).min())
    return least


@dtypes
@kinds
@sizes
@pytest.mark.every_combination
@pytest.mark.parametrize(
    ("units", "count"), [(500, 12), pytest.param(20_000, 90, marks=pytest.mark.slow)]
)
def test_lines_enclose_the_function(lines, curved, sizes, dtype, units, count):
    lower, upper, point = problem(sizes, units, dtype)
    assert least_gap(lines(lower, upper, point), curved, lower, upper, count) >= 0


@dtypes
@kinds
def test_lines_through_the_end_of_the_chord_enclose_the_function(lines, curved, dtype):
    """Where a slope that is off by its last bit would cut a far end off."""
    lower, upper = -torch.logspace(-3, 4, 3000, dtype=dtype), torch.full((3000,), 30.0, dtype=dtype)
    known = KINDS["closest, tanh" if curved else "closest, sigmoid"][0]
    meeting = known(lower[None, None], upper[None, None], lower[None, None])
    slope = meeting.upper_slope.double().clamp(1e-300, 1)
    ratio = (1 - slope if curved else 1 - 4 * slope).clamp(0, 1 - 1e-16)
    at = ratio.sqrt().atanh() * (1 if curved else 2)  # where the curve is as steep as the chord
    point = torch.cat([(at * (1 + k * 1e-7)).to(dtype) for k in range(-3, 4)], 1)
    for ends in ((lower, upper, point), (-upper, -lower, -point)):
        low, high, points = (part.view(1, -1, 3000) for part in ends)
        assert least_gap(lines(low, high, points), curved, low, high, 3) >= 0


@dtypes
@kinds
@sizes
@pytest.mark.every_combination
def test_lines_are_those_of_torch(lines, curved, sizes, dtype, monkeypatch):
    lower, upper, point = problem(sizes, 2000, dtype)
    found = lines(lower, upper, point)
    monkeypatch.setenv(SWITCH, "0")
    known, eps = lines(lower, upper, point), torch.finfo(dtype).eps
    for one, other in ((found[0], known[0]), (found[2], known[2])):
        near = (one - other).abs() <= 4 * eps
        assert near.double().mean() > 0.99  # a slope may jump where two are as good
    size = torch.maximum(lower.abs(), upper.abs())
    for slope, one, other in ((*found[:2], known[1]), (*found[2:], known[3])):
        room = 24 * eps * (2 + 2 * slope.abs() * size) + 2e-30
        assert ((one - other).abs() <= room).double().mean() > 0.99


def gradients(lines, ends, point, worth):
    ends = [end.clone().requires_grad_() for end in ends]
    found = lines(*ends, point)
    total = sum((part * own).sum() for part, own in zip(found, worth, strict=True))
    return torch.stack(torch.autograd.grad(total, ends))


@dtypes
@kinds
@pytest.mark.parametrize("sizes", [ENDS["usual"], ENDS["wide"]], ids=["usual", "wide"])
@pytest.mark.every_combination
def test_gradients_are_those_of_torch(lines, curved, sizes, dtype, monkeypatch):
    lower, upper, point = problem(sizes, 1000, dtype)
    worth = torch.randn(4, *lines(lower, upper, point)[0].shape, dtype=dtype)
    found = gradients(lines, (lower, upper), point, worth)
    monkeypatch.setenv(SWITCH, "0")
    known = gradients(lines, (lower, upper), point, worth)
    assert found.isfinite().all()
    near = (found - known).abs() <= (2e-3 if dtype == F32 else 1e-7) * (1 + known.abs())
    assert near.double().mean() > (0.98 if dtype == F32 else 0.999)


@kinds
def test_gradients_are_exact(lines, curved):
    lower, upper, point = problem((0.3, 1.5, 4), 40, F64)  # where d is found to the last digit
    ends = [end.requires_grad_() for end in (lower, upper)]
    assert gradcheck(lambda *pair: torch.stack([*lines(*pair, point)]), ends, atol=1e-5)


@dtypes
@kinds
def test_a_point_has_the_tangent(lines, curved, dtype):
    x = torch.linspace(-20, 20, 401, dtype=dtype)[None, None]
    found = [part.double() for part in lines(x, x, x)]
    at = x.double()
    f = at.tanh() if curved else at.sigmoid()
    slope = 1 - f.square() if curved else f * (1 - f)
    eps = torch.finfo(dtype).eps
    for steep, top in (found[:2], found[2:]):
        torch.testing.assert_close(steep, slope, rtol=0, atol=8 * eps)
        torch.testing.assert_close(steep * at + top, f, rtol=0, atol=100 * eps)


@dtypes
@kinds
def test_ends_that_are_no_numbers_give_none(lines, curved, dtype):
    lower = torch.tensor([math.nan, -1.0, -math.inf, 0.0, -math.inf, -1e38, 0.0], dtype=dtype)
    upper = torch.tensor([1.0, math.nan, math.inf, math.inf, -1.0, 1e38, 1.0], dtype=dtype)
    if dtype == F64:
        lower[5], upper[5] = -1e308, 1e308
    found = lines(lower[None, None], upper[None, None], torch.zeros(1, 1, 7, dtype=dtype))
    for part in found:
        assert part.flatten().isnan().tolist() == [True] * 6 + [False]


@dtypes
@pytest.mark.parametrize("lines", [closest_tanh, closest_sigmoid])
def test_a_point_that_is_no_number_gives_lines_that_enclose(lines, dtype):
    lower, upper, point = problem(ENDS["usual"], 50, dtype, rows=3)
    point[:, 0], point[:, 1], point[:, 2] = math.nan, math.inf, -math.inf
    found = lines(lower, upper, point)
    assert least_gap(found, lines is closest_tanh, lower, upper, 20) >= 0


@dtypes
@kinds
def test_a_unit_has_the_same_bits_whatever_lies_beside_it(lines, curved, dtype):
    lower, upper, point = problem(ENDS["usual"], 77, dtype, rows=5, batch=3)
    worth = [torch.ones_like(part) for part in lines(lower, upper, point)]
    found = torch.stack([*lines(lower, upper, point)])
    gradient = gradients(lines, (lower, upper), point, worth)
    for sample, units in ((slice(0, 1), slice(0, 1)), (slice(1, 3), slice(60, 77))):
        part = [x[sample, :, units] for x in (lower, upper, point)]
        assert torch.equal(torch.stack([*lines(*part)]), found[:, sample, :, units])
        some = gradients(lines, part[:2], part[2], [own[sample, :, units] for own in worth])
        assert torch.equal(some, gradient[:, sample, :, units])


@pytest.mark.parametrize("lines", [closest_tanh, closest_sigmoid])
def test_rows_and_frames_share_ends(lines):
    lower, upper, point = problem(ENDS["usual"], 30, F64, batch=2)
    whole = torch.stack([*lines(lower, upper, point)])
    for row in range(6):
        alone = torch.stack([*lines(lower, upper, point[:, row : row + 1])])
        assert torch.equal(alone, whole[:, :, row : row + 1])
    framed = [part.view(2, -1, 5, 6) for part in (lower, upper, point)]
    assert torch.equal(torch.stack([*lines(*framed)]), whole.view(4, 2, 6, 5, 6))
    shared = lines(lower[:1], upper[:1], point)
    repeated = lines(lower[:1].expand(2, 1, 30), upper[:1].expand(2, 1, 30), point)
    assert all(map(torch.equal, shared, repeated))


@kinds
def test_a_gradient_has_none_itself(lines, curved):
    """It is refused, not wrong."""
    lower, upper, point = problem((1, 0.5, 1), 10, F64)
    ends = [end.requires_grad_() for end in (lower, upper)]
    total = sum(part.square().sum() for part in lines(*ends, point))
    first = torch.autograd.grad(total, ends, create_graph=True)
    with pytest.raises(RuntimeError):
        sum(part.sum() for part in first).backward()


def test_what_does_not_fit_is_left_to_torch():
    lower, upper, point = problem(ENDS["usual"], 10, F64, batch=2)
    assert closest(lower, upper, point, curved=True) is not None
    assert closest(lower, upper, point.clone().requires_grad_(), curved=True) is None
    assert closest(lower, upper, point.float(), curved=True) is None
    assert closest(lower, upper[..., :1], point, curved=True) is None
    assert closest(lower.expand(2, 6, 10), upper.expand(2, 6, 10), point, curved=True) is None
    assert closest(lower, upper, point[:1], curved=True) is None
