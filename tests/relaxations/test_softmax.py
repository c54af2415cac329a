"""Means over a softmax: exact extremes, and linear bounds that no point leaves.

P: points, R: rows, T: entries.
"""

import itertools

import pytest
import torch
from torch.autograd import gradcheck

from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.softmax import extremes, means_below, score_box, shares

F64 = torch.float64
FAR = torch.finfo(F64).max / 4  # what stands for minus infinity
ROWS, POINTS = 40, 2500
WIDTHS = [0.0, 1e-3, 0.3, 1.0, 4.0, 30.0, 500.0]
EACH = [(width, scale) for width in WIDTHS for scale in (1.0, 500.0)]
every_box = pytest.mark.parametrize(("width", "scale"), EACH)
every_count = pytest.mark.parametrize("count", [1, 2, 3, 6])


def boxes(count, width, scale, dtype=F64):
    """Boxes of scores of all kinds: ties, one that moves, one far below, some masked."""
    generator = torch.Generator().manual_seed(count)
    center = scale * torch.randn(ROWS, count, generator=generator, dtype=F64)
    half = width * torch.rand(ROWS, count, generator=generator, dtype=F64)
    center[::5] = center[::5, :1]
    half[1::5, 1:] = 0
    center[2::5, -1:] -= 60
    lower, upper = (center - half).to(dtype), (center + half).to(dtype)
    for row, masked in ((3, [0]), (8, range(1, count)), (13, range(count)), (18, [count - 1])):
        far = -1e9 if row == 18 else -torch.finfo(dtype).max / 4
        lower[row, list(masked)] = upper[row, list(masked)] = far
    return lower, upper


def weights(count, dtype=F64):
    """Of both signs; some are those of one entry, some all alike."""
    generator = torch.Generator().manual_seed(1)
    found = torch.randn(ROWS, count, generator=generator, dtype=F64)
    unit = torch.eye(count, dtype=F64)
    found[::4] = unit[torch.arange(len(found[::4])) % count]
    found[1::4] = -unit[torch.arange(len(found[1::4])) % count]
    found[5::20] = 0.25
    return found.to(dtype)


def points(lower, upper):
    """Corners, all of them, and some inside, ``(P, R, T)``."""
    count = lower.shape[-1]
    generator = torch.Generator().manual_seed(2)
    share = torch.rand(POINTS, *lower.shape, generator=generator, dtype=F64)
    share[: POINTS // 2] = share[: POINTS // 2].round()
    corners = torch.tensor(list(itertools.product([0.0, 1.0], repeat=count)), dtype=F64)
    share = torch.cat([share, corners[:, None].expand(-1, len(lower), -1)])
    lower, upper = lower.double(), upper.double()
    return torch.lerp(lower, upper, share).clamp(lower, upper)


@every_count
@every_box
def test_extremes_are_the_means_at_the_best_corners(count, width, scale):
    lower, upper = boxes(count, width, scale)
    weight = weights(count)
    means = (points(lower, upper).softmax(-1) * weight).sum(-1)
    found = extremes(score_box(lower, upper), weight, weight)
    assert (found.lower <= means + 1e-13).all()
    assert (found.upper >= means - 1e-13).all()
    torch.testing.assert_close(found.lower, means.amin(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.upper, means.amax(0), rtol=0, atol=1e-12)


def test_many_entries_have_their_threshold_found():
    generator = torch.Generator().manual_seed(0)
    lower, weight = torch.randn(2, 50, 200, generator=generator, dtype=F64).unbind()
    upper = lower + 3 * torch.rand(50, 200, generator=generator, dtype=F64)
    order = weight.argsort(-1)
    lower, upper, weight = (x.gather(-1, order) for x in (lower, upper, weight))
    first = torch.ones(201, 200, dtype=F64).tril(-1)[:, None]  # (201, 1, 200), every threshold
    best = ((first * upper + (1 - first) * lower).softmax(-1) * weight).sum(-1).amin(0)
    found = extremes(score_box(lower, upper), weight, weight).lower
    torch.testing.assert_close(found, best, rtol=0, atol=1e-13)


def test_a_weight_that_ties_with_the_mean_is_tried_at_both_ends():
    """One entry has all of the share at the centre, but for rounding."""
    lower = torch.tensor([[167.0, 109.0, 10.0, 102.0]], dtype=F64)
    upper = torch.tensor([[172.0, 222.0, 86.0, 169.0]], dtype=F64)
    weight = torch.tensor([[0.7101, -0.4235, -0.7749, -0.0391]], dtype=F64)
    found = extremes(score_box(lower, upper), weight, weight)
    torch.testing.assert_close(found.lower, torch.tensor([-0.4235], dtype=F64), rtol=0, atol=1e-9)


@every_count
@every_box
def test_no_mean_is_below_its_line_and_no_share_outside_its_range(count, width, scale):
    lower, upper = boxes(count, width, scale)
    weight, x = weights(count), points(lower, upper)
    slope, intercept = means_below(score_box(lower, upper), weight)
    p = x.softmax(-1)
    assert slope.isfinite().all()
    assert ((p * weight).sum(-1) - (slope * x).sum(-1) >= intercept - 1e-15).all()
    found = shares(Bounds(lower, upper))
    assert (found.lower <= p + 3e-13).all()
    assert (found.upper >= p - 3e-13).all()
    torch.testing.assert_close(found.lower, p.amin(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.upper, p.amax(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", WIDTHS[:5])
def test_float32_lines_hold_in_float64(width):
    lower, upper = boxes(6, width, 1.0, torch.float32)
    weight = weights(6, torch.float32)
    slope, intercept = means_below(score_box(lower, upper), weight)
    x = points(lower, upper)
    means = (x.softmax(-1) * weight).sum(-1)
    assert (means - (slope * x).sum(-1) >= intercept - 1e-6).all()


def test_a_million_points_stay_above_the_lines():
    generator = torch.Generator().manual_seed(3)
    for width in (0.05, 0.5, 2.0, 8.0):
        lower, weight = torch.randn(2, 100, 12, generator=generator, dtype=F64).unbind()
        upper = lower + width * torch.rand(100, 12, generator=generator, dtype=F64)
        slope, intercept = means_below(score_box(lower, upper), weight)
        for _ in range(5):
            share = torch.rand(500, 100, 12, generator=generator, dtype=F64)
            x = torch.lerp(lower, upper, share if _ else share.round())
            gap = (x.softmax(-1) * weight - slope * x).sum(-1) - intercept
            assert gap.min() >= 0


def test_lines_miss_by_the_square_of_a_small_width_and_no_more_than_the_least_mean():
    lower, weight = torch.randn(2, 60, 8, dtype=F64, generator=torch.Generator().manual_seed(4))
    missed = []
    for width in (0.02, 0.04, 3.0, 20.0):
        box = score_box(lower - width, lower + width)
        slope, intercept = means_below(box, weight)
        gap = (lower.softmax(-1) * weight - slope * lower).sum(-1) - intercept
        flat = (lower.softmax(-1) * weight).sum(-1) - extremes(box, weight, weight).lower
        assert (gap <= flat + 1e-12).all()
        missed.append(gap.mean().item())
    assert missed[0] < 0.3 * missed[1] < 0.02


def test_one_frame_that_is_not_masked_has_all_of_the_share():
    lower = torch.full((1, 4), -FAR, dtype=F64)
    lower[0, 2], upper = -3.0, lower.clone()
    upper[0, 2] = 500.0
    found = shares(Bounds(lower, upper))
    expected = torch.tensor([[0.0, 0, 1, 0]], dtype=F64)
    torch.testing.assert_close(found, Bounds(expected, expected), rtol=0, atol=0)
    weight = torch.tensor([[5.0, -7.0, 2.0, 9.0]], dtype=F64)
    slope, intercept = means_below(score_box(lower, upper), weight)
    assert (slope == 0).all()
    torch.testing.assert_close(intercept, torch.tensor([2.0], dtype=F64), rtol=0, atol=1e-13)


def test_masked_entries_change_no_line():
    lower = torch.tensor([[0.2, -FAR, -0.4, 0.1]], dtype=F64)
    upper, weight = lower + 0.5, torch.tensor([[1.0, -50.0, 0.5, -1.0]], dtype=F64)
    slope, intercept = means_below(score_box(lower, upper), weight)
    alive = [0, 2, 3]
    parts = score_box(lower[:, alive], upper[:, alive])
    expected = means_below(parts, weight[:, alive])
    torch.testing.assert_close((slope[:, alive], intercept), expected, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_bounds():
    generator = torch.Generator().manual_seed(6)
    lower, half, weight = torch.rand(3, 4, 5, generator=generator, dtype=F64).unbind()
    inputs = [part.clone().requires_grad_() for part in (2 * lower, 0.5 * half + 0.1, weight)]

    def bounds(lower, half, weight):
        box = score_box(lower, lower + half)
        ends = extremes(box, weight, weight + 0.1), shares(Bounds(lower, lower + half))
        return (*means_below(box, weight), *ends[0], *ends[1])

    assert gradcheck(bounds, inputs)


@pytest.mark.parametrize("width", [0.0, 5.0, 200.0])
def test_gradients_are_finite_where_scores_are_masked_or_far_apart(width):
    lower, upper = (end.requires_grad_() for end in boxes(6, width, 500.0))
    slope, intercept = means_below(score_box(lower, upper), weights(6))
    found = shares(Bounds(lower, upper))
    total = slope.sum() + intercept.sum() + sum(end.sum() for end in found)
    for gradient in torch.autograd.grad(total, [lower, upper]):
        assert gradient.isfinite().all()
