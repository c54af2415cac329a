"""The least value on a ball is exact; the domain only helps."""

import math

import pytest
import torch

from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.perturbations.region import Bounds, dual_exponent, dual_norm
from tests.problems import F64, NORMS, sequences, steepest, steps_inside

norms = pytest.mark.parametrize("p", [*NORMS, 1.5, 3.0])
scopes = pytest.mark.parametrize("scope", ["frame", "sequence"])


def slopes(batch, rows, time, features, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, rows, time, features, generator=generator, dtype=F64)


def values(slope, x):
    """``slope . x`` of ``(B, K, T, N)`` slopes at points ``(P, B, T, N)``: ``(P, B, K)``."""
    return torch.einsum("bktn,pbtn->pbk", slope, x)


def drawn(x, epsilon, p, count=2000):
    steps = steps_inside((count * len(x), *x.shape[1:]), p).view(count, *x.shape)
    return x + epsilon * steps


@pytest.mark.parametrize(
    ("p", "q"), [(1, math.inf), (1.25, 5), (2, 2), (3, 1.5), (math.inf, 1), (101, 1.01)]
)
def test_dual_exponents_are_known(p, q):
    assert dual_exponent(p) == pytest.approx(q)


@pytest.mark.parametrize(("p", "norm"), [(1, 4), (1.5, 91 ** (1 / 3)), (2, 5), (math.inf, 7)])
def test_dual_norms_are_known(p, norm):
    assert dual_norm(torch.tensor([3.0, -4.0], dtype=F64), p).item() == pytest.approx(norm)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("size", [1e-30, 1e-4, 1.0, 1e30])
def test_dual_norms_neither_underflow_nor_overflow(size, dtype):
    slope = torch.full((2,), size, dtype=dtype)
    assert dual_norm(slope, 1.01).item() == pytest.approx(size * 2 ** (1 / 101), rel=1e-5)


@norms
def test_gradients_of_dual_norms_are_finite_at_0(p):
    slope = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(dual_norm(slope, p).sum(), slope)
    assert gradient.isfinite().all()


@norms
def test_the_minimum_over_frame_balls_is_attained(p):
    x, slope = sequences(2, 4), slopes(2, 5, 4, 3)
    epsilon = torch.tensor([[0.1, 0.2, 0.0, 0.4], [1.0, 0.3, 0.2, 0.1]], dtype=F64)
    found = LpBall(epsilon, p).around(x).minimum(slope)
    for k in range(5):
        point = x - epsilon[..., None] * steepest(slope[:, k], p)
        assert torch.linalg.vector_norm(point - x, p, dim=-1).le(epsilon + 1e-12).all()
        torch.testing.assert_close(found[:, k], (slope[:, k] * point).sum((1, 2)))


@norms
def test_the_minimum_over_a_sequence_ball_is_attained(p):
    x, slope = sequences(2, 4), slopes(2, 5, 4, 3)
    found = LpBall(0.3, p, scope="sequence").around(x).minimum(slope)
    for k in range(5):
        point = x - 0.3 * steepest(slope[:, k].flatten(1), p).view_as(x)
        torch.testing.assert_close(found[:, k], (slope[:, k] * point).sum((1, 2)))


@scopes
@norms
def test_no_point_of_ball_and_domain_lies_below_the_minimum(p, scope):
    x, slope = sequences(2, 4).clamp(-0.8, 0.8), slopes(2, 5, 4, 3)
    ball = LpBall(0.5, p, scope=scope, low=-0.8, high=0.8)
    points = drawn(x, 0.5 if scope == "frame" else 0.125, p).clamp(-0.8, 0.8)
    assert (values(slope, points) >= ball.around(x).minimum(slope) - 1e-12).all()


def test_a_domain_takes_the_larger_minimum_of_ball_and_box_frame_by_frame():
    x = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]], dtype=F64)
    slope = torch.tensor([[[[3.0, 4.0], [3.0, 4.0]]]], dtype=F64)
    low = torch.tensor([[-9.0, -9.0], [-0.1, -0.2]], dtype=F64)
    found = LpBall(1.0, 2, low=low, high=9.0).around(x).minimum(slope)
    assert found.item() == pytest.approx(-5 - 0.3 - 0.8)


def test_a_domain_cuts_the_ball_and_not_its_minimiser():
    # The minimiser (-.6, -.8) cut to low would give -0.1 * 3 - .8 * 4 = -3.5, which is no bound:
    # (-0.1, -0.99...) lies in the ball and in the domain and gives less.
    x, slope = torch.zeros(1, 1, 2, dtype=F64), torch.tensor([[[[3.0, 4.0]]]], dtype=F64)
    low = torch.tensor([-0.1, -9.0], dtype=F64)
    found = LpBall(1.0, 2, low=low, high=9.0).around(x).minimum(slope).item()
    assert found <= 3 * -0.1 + 4 * -(0.99**0.5)


@scopes
@norms
def test_frames_that_stay_do_not_count(p, scope):
    x, slope = sequences(2, 4), slopes(2, 5, 4, 3)
    mask = torch.tensor([[True, False, True, False], [False, False, False, True]])
    found = LpBall(0.3, p, scope=scope, frames=mask).around(x).minimum(slope)
    moving = slope * mask[:, None, :, None]
    free = LpBall(0.3, p, scope=scope).around(x).minimum(moving)
    rest = values(slope - moving, x[None])[0]
    torch.testing.assert_close(found, free + rest)


@scopes
@norms
@pytest.mark.parametrize("high", [None, 3.0])
def test_slopes_on_the_first_frames_mean_zeros_on_the_others(p, scope, high):
    x = sequences(2, 4)
    region = LpBall(0.3, p, scope=scope, high=high).around(x)
    slope = slopes(2, 5, 2, 3)
    full = torch.cat([slope, torch.zeros_like(slope)], 2)
    torch.testing.assert_close(region.minimum(slope), region.minimum(full))


@scopes
@norms
def test_epsilon_0_leaves_the_value_at_the_centre(p, scope):
    x, slope = sequences(2, 4), slopes(2, 5, 4, 3)
    found = LpBall(0.0, p, scope=scope).around(x).minimum(slope)
    torch.testing.assert_close(found, values(slope, x[None])[0], rtol=0, atol=1e-14)


def test_the_range_of_a_row_on_an_l2_ball_comes_from_its_length():
    x, weight = torch.zeros(1, 1, 2, dtype=F64), torch.tensor([[3.0, 4.0]], dtype=F64)
    lower, upper = LpBall(1.0, 2).around(x).linear_bounds(weight)
    assert (lower.item(), upper.item()) == (-5, 5)


@pytest.mark.parametrize("low", [None, -3.0])
@scopes
@norms
def test_ranges_of_rows_agree_with_their_minima(p, scope, low):
    x, weight = sequences(2, 4), slopes(1, 1, 5, 3)[0, 0]
    region = LpBall(0.7, p, scope=scope, low=low).around(x)
    lower, upper = region.linear_bounds(weight)
    for t in range(4):
        slope = torch.zeros(2, 5, 4, 3, dtype=F64)
        slope[:, :, t] = weight
        torch.testing.assert_close(lower[:, t], region.minimum(slope))
        torch.testing.assert_close(upper[:, t], -region.minimum(-slope))


@scopes
@norms
def test_ranges_of_rows_keep_the_units_of_the_input(p, scope):
    x, weight = sequences(2, 4), slopes(1, 1, 5, 3)[0, 0]
    scale = torch.tensor([2.0, -3.0, 0.5], dtype=F64).expand_as(x)
    region = LpBall(0.7, p, scope=scope).around(x, scale * x, scale)
    lower, upper = region.linear_bounds(weight)
    own = LpBall(0.7, p, scope=scope).around(x).linear_bounds(weight * scale[0, 0])
    torch.testing.assert_close(Bounds(lower, upper), own)


@norms
def test_units_of_the_input_are_kept_through_a_scale(p):
    x, slope = sequences(2, 4), slopes(2, 5, 4, 3)
    scale = torch.tensor([2.0, -3.0, 0.5], dtype=F64).expand_as(x)
    ball = LpBall(0.3, p, low=-4.0, high=4.0)
    seen = ball.around(x, scale * x + 1, scale).minimum(slope)
    own = ball.around(x).minimum(slope * scale[:, None])
    torch.testing.assert_close(seen, own + slope.sum((2, 3)))


@norms
def test_the_coordinate_box_holds_every_point(p):
    x = sequences(2, 4).clamp(-0.8, 0.8)
    box = LpBall(0.5, p, low=-0.8, high=0.8).around(x).coordinate_bounds()
    points = drawn(x, 0.5, p).clamp(-0.8, 0.8)
    assert ((points >= box.lower - 1e-15) & (points <= box.upper + 1e-15)).all()
    assert (box.lower.min(), box.upper.max()) == (-0.8, 0.8)


def test_a_part_of_a_batch_has_its_own_ball():
    ball = LpBall(
        torch.tensor([0.1, 0.2, 0.3]),
        frames=torch.tensor([[True, False], [False, True], [True, True]]),
        low=torch.arange(3.0)[:, None, None].expand(3, 2, 1) - 9,
        high=9.0,
    )
    part = ball.pick(torch.tensor([2, 0]), 3)
    assert part.epsilon.tolist() == pytest.approx([0.3, 0.1])
    assert part.frames.tolist() == [[True, True], [True, False]]
    assert part.low[:, 0, 0].tolist() == [-7, -9]
    assert part.high == 9.0


def test_a_mask_shared_by_the_batch_is_not_cut():
    mask = torch.tensor([True, False])
    assert LpBall(0.1, frames=mask).pick(torch.tensor([1]), 2).frames.tolist() == [True, False]
