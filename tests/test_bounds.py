"""What every bound owes, for every cell: soundness first."""

import math

import pytest
import torch

from popqorn_train import LpBall, logit_bounds
from tests.problems import (
    CELLS,
    F64,
    METHODS,
    NORMS,
    build,
    logits_at,
    points_inside,
    sampled_problem,
    sequences,
)

TOLERANCE = 1e-12
LAYERS, TIMES = (1, 2), (1, 2, 5, 12)
cells = pytest.mark.parametrize("cell", CELLS)
methods = pytest.mark.parametrize("method", METHODS)
norms = pytest.mark.parametrize("p", NORMS)


def contains(bounds, logits):
    low, high = bounds.lower - TOLERANCE, bounds.upper + TOLERANCE
    return bool(((low <= logits) & (logits <= high)).all())


@pytest.mark.parametrize("time", TIMES)
@norms
@pytest.mark.parametrize("layers", LAYERS)
@cells
def test_no_point_of_the_ball_leaves_the_bounds(cell, layers, p, time):
    model, x, logits = sampled_problem(cell, layers, p, time, epsilon=0.1)
    assert logits.shape[:2].numel() >= 1e4
    ball = LpBall(0.1, p)
    for method in METHODS if time == 5 else ("ibp", "popqorn"):
        assert contains(logit_bounds(model, x, ball, method=method), logits), method


@methods
@cells
@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, 1.0, 30.0])
def test_tiny_and_huge_balls_are_enclosed(cell, method, epsilon):
    model, x = build(cell, seed=1), sequences(3, 4, seed=1)
    logits = logits_at(model, points_inside(model, x, epsilon, math.inf, count=300))
    assert contains(logit_bounds(model, x, LpBall(epsilon), method=method), logits)


@methods
@cells
@pytest.mark.parametrize("read", ["state", "mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
def test_every_way_to_read_the_sequence_is_enclosed(cell, method, read, bias):
    model, x = build(cell, read=read, bias=bias, num_layers=2), sequences(2, 4)
    logits = logits_at(model, points_inside(model, x, 0.2, 2, count=300))
    assert contains(logit_bounds(model, x, LpBall(0.2, 2), method=method), logits)


@norms
@methods
@cells
def test_domain_bounds_hold_for_points_of_ball_and_domain(cell, method, p):
    model, x = build(cell), sequences(2, 3).clamp(-0.5, 0.5)
    points = points_inside(model, x, 0.4, p, count=500).clamp(-0.5, 0.5)
    free = logit_bounds(model, x, LpBall(0.4, p), method=method)
    cut = logit_bounds(model, x, LpBall(0.4, p, low=-0.5, high=0.5), method=method)
    assert contains(cut, logits_at(model, points))
    assert (cut.upper - cut.lower).sum() < (free.upper - free.lower).sum()


@methods
@cells
def test_bounds_of_a_sequence_ball_lie_inside_those_of_frame_balls(cell, method):
    model, x = build(cell), sequences(2, 4)
    one = logit_bounds(model, x, LpBall(0.2, 2, scope="sequence"), method=method)
    each = logit_bounds(model, x, LpBall(0.2, 2), method=method)
    points = points_inside(model, x, 0.1, 2, count=300)  # 4 frames: 0.1 each is 0.2 in all
    assert contains(one, logits_at(model, points))
    # Intervals look at one frame at a time, for which both balls are the same.
    ratio = (one.upper - one.lower).sum(1) / (each.upper - each.lower).sum(1)
    assert (ratio < (1 + TOLERANCE if method == "ibp" else 0.9)).all()


@methods
@cells
def test_frames_that_stay_do_not_loosen_the_bounds(cell, method):
    model, x = build(cell), sequences(2, 4)
    mask = torch.tensor([False, True, False, True])
    points = points_inside(model, x, 0.2, math.inf, count=300)
    points = torch.where(mask[:, None], points, x)
    some = logit_bounds(model, x, LpBall(0.2, frames=mask), method=method)
    zero = LpBall(torch.where(mask, 0.2, 0.0).expand(2, 4))
    assert contains(some, logits_at(model, points))
    torch.testing.assert_close(some, logit_bounds(model, x, zero, method=method))


@methods
@pytest.mark.parametrize("layers", LAYERS)
@cells
def test_a_sample_has_the_same_bounds_alone_and_in_a_batch(cell, layers, method):
    model, x = build(cell, num_layers=layers), sequences(7, 4)
    epsilon = torch.linspace(0.01, 0.3, 7, dtype=F64)
    whole = logit_bounds(model, x, LpBall(epsilon, 2), method=method)
    for i in (0, 3, 6):
        alone = logit_bounds(model, x[i : i + 1], LpBall(epsilon[i].item(), 2), method=method)
        for side, both in zip(alone, whole, strict=True):
            torch.testing.assert_close(side, both[i : i + 1], rtol=0, atol=1e-12)


@methods
@norms
@pytest.mark.parametrize("layers", LAYERS)
@cells
def test_epsilon_zero_gives_the_clean_logits(cell, layers, p, method):
    model, x = build(cell, num_layers=layers), sequences(3, 5)
    lower, upper = logit_bounds(model, x, LpBall(0.0, p), method=method)
    torch.testing.assert_close(lower, model(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(upper, model(x), rtol=0, atol=1e-12)


@methods
@norms
@cells
def test_a_larger_ball_has_wider_bounds(cell, p, method):
    model, x = build(cell), sequences(3, 4)
    found = [logit_bounds(model, x, LpBall(e, p), method=method) for e in (0, 0.01, 0.05, 0.1, 0.2)]
    assert (torch.stack([bounds.lower for bounds in found]).diff(dim=0) <= 0).all()
    assert (torch.stack([bounds.upper for bounds in found]).diff(dim=0) >= 0).all()
    assert (found[-1].upper > found[0].upper + 0.01).all()


@norms
@cells
def test_backward_bounds_are_never_looser_than_intervals(cell, p):
    model, x = build(cell, num_layers=2), sequences(4, 4)
    for epsilon in (0.01, 0.1, 1.0):
        ibp, mixed, full = (
            logit_bounds(model, x, LpBall(epsilon, p), method=method) for method in METHODS
        )
        for better in (mixed, full):
            assert (better.lower >= ibp.lower - TOLERANCE).all()
            assert (better.upper <= ibp.upper + TOLERANCE).all()


@cells
def test_methods_get_tighter_in_the_order_of_their_cost(cell):
    model, x = build(cell), sequences(16, 6)
    found = [logit_bounds(model, x, LpBall(0.05), method=method) for method in METHODS]
    widths = [(bounds.upper - bounds.lower).mean().item() for bounds in found]
    assert widths[0] > 1.05 * widths[1]
    assert widths[1] > 1.01 * widths[2]


@methods
@cells
def test_float32_bounds_are_close_to_float64_bounds(cell, method):
    model, x = build(cell, num_layers=2), sequences(3, 5).float()
    exact = logit_bounds(model, x.double(), LpBall(0.05, 2), method=method)
    single = logit_bounds(model.float(), x, LpBall(0.05, 2), method=method)
    assert single.lower.dtype == torch.float32
    for side, reference in zip(single, exact, strict=True):
        torch.testing.assert_close(side.double(), reference, rtol=1e-4, atol=1e-4)


@methods
@cells
def test_bounds_do_not_depend_on_memory_layout(cell, method):
    model, x = build(cell), sequences(3, 4)
    strided = x.repeat_interleave(2, 2)[..., ::2]
    assert not strided.is_contiguous()
    expected = logit_bounds(model, x, LpBall(0.1), method=method)
    torch.testing.assert_close(logit_bounds(model, strided, LpBall(0.1), method=method), expected)
