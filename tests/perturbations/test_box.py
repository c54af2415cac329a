"""A box given by its ends bounds what the l_inf ball with these ends bounds, and no less."""

import math

import pytest
import torch

from popqorn_train import Box, LpBall, certify, logit_bounds
from popqorn_train.certificates.pgd import attack
from tests.problems import F64, METHODS, SOME_CELLS, build, logits_at, margins, predicted, sequences

cells = pytest.mark.parametrize("cell", SOME_CELLS)
methods = pytest.mark.parametrize("method", METHODS)


def problem(cell, batch=3, time=4, **options):
    model, x = build(cell, **options), sequences(batch, time, seed=2)
    return model, x, predicted(model, x)


def uneven(x, size=0.2, *, seed=0):
    """A box around x whose sides all differ."""
    generator = torch.Generator().manual_seed(seed)
    down, up = size * torch.rand(2, *x.shape, generator=generator, dtype=F64)
    return Box(x - down, x + up)


@methods
@cells
def test_a_symmetric_box_is_an_l_inf_ball(cell, method):
    model, x, y = problem(cell)
    one = certify(model, x, y, Box(x - 0.1, x + 0.1), method=method)
    two = certify(model, x, y, LpBall(0.1), method=method)
    torch.testing.assert_close(one.margins, two.margins)


@methods
@cells
def test_a_clipped_ball_is_a_box(cell, method):
    model, x, _ = problem(cell)
    x = x.clamp(-0.5, 0.5)
    y = predicted(model, x)
    box = Box((x - 0.1).clamp(min=-0.5), (x + 0.1).clamp(max=0.5))
    one = certify(model, x, y, box, method=method)
    two = certify(model, x, y, LpBall(0.1, low=-0.5, high=0.5), method=method)
    torch.testing.assert_close(one.margins, two.margins)


@methods
@cells
def test_no_point_of_the_box_has_a_smaller_margin_or_leaves_the_bounds(cell, method):
    model, x, y = problem(cell, num_layers=2)
    box = uneven(x)
    share = torch.rand(2000, *x.shape, dtype=F64, generator=torch.Generator().manual_seed(1))
    share[::2] = share[::2].round()  # corners too
    points = torch.lerp(box.lower, box.upper, share)
    points = torch.cat([points, attack(model, x, y, box, steps=20).moved[None]])
    assert ((points >= box.lower - 1e-15) & (points <= box.upper + 1e-15)).all()
    logits = logits_at(model, points)
    found = certify(model, x, y, box, method=method)
    worst = torch.stack([margins(point, y) for point in logits]).amin(0)
    assert (found.margins <= worst + 1e-12).all()
    lower, upper = logit_bounds(model, x, box, method=method)
    assert (lower <= logits.amin(0) + 1e-12).all()
    assert (upper >= logits.amax(0) - 1e-12).all()


def test_the_least_value_of_a_linear_function_is_exact():
    x = sequences(2, 4)
    box = uneven(x)
    slope = torch.randn(2, 5, 4, 3, dtype=F64, generator=torch.Generator().manual_seed(3))
    corner = torch.where(slope > 0, box.lower[:, None], box.upper[:, None])
    found = box.around(x).minimum(slope)
    torch.testing.assert_close(found, (slope * corner).flatten(2).sum(-1))
    bounds = box.around(x).coordinate_bounds()
    torch.testing.assert_close(bounds.lower, box.lower)
    torch.testing.assert_close(bounds.upper, box.upper)


def test_a_wider_box_has_a_smaller_margin():
    model, x, y = problem("lstm")
    found = [certify(model, x, y, uneven(x, size), method="ibp").margin for size in (0, 0.1, 0.2)]
    assert (found[0] > found[1]).all()
    assert (found[1] > found[2]).all()


def test_a_box_without_width_gives_the_clean_margins():
    model, x, y = problem("gru")
    found = certify(model, x, y, Box(x, x))
    torch.testing.assert_close(found.margins, margins(model(x), y).detach(), rtol=0, atol=1e-12)


def test_frames_whose_ends_coincide_stay():
    model, x, y = problem("gru")
    down, up = x.clone(), x.clone()
    down[:, 1] -= 0.1
    up[:, 1] += 0.1
    box, ball = Box(down, up), LpBall(0.1, frames=torch.arange(4) == 1)
    torch.testing.assert_close(
        certify(model, x, y, box).margins, certify(model, x, y, ball).margins
    )
    moved = attack(model, x, y, box).moved != x
    assert moved[:, 1].any()
    assert not moved[:, [0, 2, 3]].any()


def test_a_sample_has_its_own_box_in_any_batch():
    model, x, y = problem("lstm", batch=6)
    box = uneven(x)
    whole = certify(model, x, y, box).margins
    part = certify(model, x[2:4], y[2:4], Box(box.lower[2:4], box.upper[2:4])).margins
    torch.testing.assert_close(part, whole[2:4], rtol=0, atol=1e-12)
    small = certify(model, x, y, box, max_bytes=1).margins
    torch.testing.assert_close(small, whole, rtol=0, atol=1e-12)


def test_a_box_of_numbers_is_the_same_for_every_coordinate():
    model, x, y = problem("gru")
    one = certify(model, x, y, Box(-5.0, 5.0)).margins
    two = certify(model, x, y, Box(torch.full_like(x, -5.0), 5.0)).margins
    torch.testing.assert_close(one, two)


def test_float32_certificates_are_confirmed_in_float64():
    model, x, y = problem("lstm")
    exact = certify(model, x, y, uneven(x, 0.02))
    box = Box(*[edge.float() for edge in (uneven(x, 0.02).lower, uneven(x, 0.02).upper)])
    found = certify(model.float(), x.float(), y, box)
    assert found.numerics == "float64"
    torch.testing.assert_close(found.margins, exact.margins, rtol=1e-3, atol=1e-4)


BOXES = {
    "lower above upper": ((1.0, 0.0), ValueError, "`lower` must not exceed `upper`"),
    "NaN": ((math.nan, 0.0), ValueError, "`lower` must be finite"),
    "infinite": ((0.0, math.inf), ValueError, "`upper` must be finite"),
    "ends that do not fit": (
        (torch.zeros(2), torch.ones(3)),
        ValueError,
        r"`lower` and `upper` must fit together.*\(2,\).*\(3,\)",
    ),
    "a string": (("0", 1.0), TypeError, "`lower` must be a float, or a tensor.*str"),
}


@pytest.mark.parametrize(("ends", "error", "message"), BOXES.values(), ids=BOXES)
def test_a_box_refuses(ends, error, message):
    with pytest.raises(error, match=message):
        Box(*ends)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (Box(5.0, 6.0), r"`inputs` must lie inside \[lower, upper\]; with lower=5"),
        (Box(-6.0, -5.0), r"`inputs` must lie inside \[lower, upper\]; with upper=-5"),
        (Box(torch.full((7,), -9.0), 9.0), r"`lower` must be a float or fit \(3, 4, 3\).*\(7,\)"),
    ],
)
@pytest.mark.parametrize("call", [certify, attack])
def test_a_box_that_does_not_fit_the_input_is_refused(call, box, message):
    with pytest.raises(ValueError, match=message):
        call(*problem("gru"), box)


@pytest.mark.parametrize("call", [certify, attack])
def test_what_is_no_perturbation_is_refused(call):
    with pytest.raises(TypeError, match="`ball` must be an LpBall or a Box, got float"):
        call(*problem("gru"), 0.1)
