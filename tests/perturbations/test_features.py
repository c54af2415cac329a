"""A mask of features moves those alone, as if the others were part of the network."""

import math

import pytest
import torch
from torch import nn

from popqorn_train import (
    CertifiedLoss,
    LpBall,
    certified_radius,
    certify,
    empirical_radius,
    frame_radii,
    logit_bounds,
    objectives,
)
from popqorn_train.certificates.pgd import attack
from tests.problems import F64, METHODS, NORMS, build, logits_at, margins, predicted, sequences
from tests.problems import steps_inside as steps

norms = pytest.mark.parametrize("p", [*NORMS, 1.5])
scopes = pytest.mark.parametrize("scope", ["frame", "sequence"])
methods = pytest.mark.parametrize("method", METHODS)
MASK = torch.tensor([True, False, True])


class Fixed(nn.Module):
    """A network of two features; the one between them is held."""

    def __init__(self, model, x):
        super().__init__()
        self.model, self.middle = model, x[..., 1:2]

    def forward(self, x):
        middle = self.middle.expand(len(x), -1, -1)
        return self.model(torch.cat([x[..., :1], middle, x[..., 1:]], -1))


def problem(cell="gru", batch=2, time=4):
    model, x = build(cell), sequences(batch, time, seed=3)
    return model, x, predicted(model, x)


@scopes
@norms
@pytest.mark.parametrize("low", [None, -0.5])
def test_the_least_value_is_that_over_the_features_that_move(p, scope, low):
    x = sequences(2, 4).clamp(-0.5, 0.5)
    slope = torch.randn(2, 5, 4, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    found = LpBall(0.3, p, scope=scope, low=low, features=MASK).around(x).minimum(slope)
    alone = LpBall(0.3, p, scope=scope, low=low).around(x[..., MASK]).minimum(slope[..., MASK])
    rest = (slope * x[:, None])[..., ~MASK].flatten(2).sum(-1)
    torch.testing.assert_close(found, alone + rest)


@norms
def test_scales_and_ranges_keep_to_the_features_that_move(p):
    x, weight = sequences(2, 4), torch.randn(5, 3, dtype=F64)
    scale = torch.tensor([2.0, -3.0, 0.5], dtype=F64).expand_as(x)
    region = LpBall(0.3, p, features=MASK).around(x, scale * x, scale)
    lower, upper = region.linear_bounds(weight)
    for t in range(4):
        slope = torch.zeros(2, 5, 4, 3, dtype=F64)
        slope[:, :, t] = weight
        torch.testing.assert_close(lower[:, t], region.minimum(slope))
        torch.testing.assert_close(upper[:, t], -region.minimum(-slope))
    box = region.coordinate_bounds()
    assert torch.equal((box.upper > box.lower).all(0).all(0), MASK)
    torch.testing.assert_close(region.frame(2).linear_bounds(weight).lower[:, 0], lower[:, 2])


@methods
@norms
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_no_point_of_the_ball_leaves_the_bounds(cell, p, method):
    model, x, y = problem(cell)
    points = x.repeat(2000, 1, 1, 1)
    points[..., MASK] += 0.2 * steps((4000, 4, 2), p).view(2000, 2, 4, 2)
    ball = LpBall(0.2, p, features=MASK)
    found = attack(model, x, y, ball)
    assert torch.equal(found.moved[..., 1], x[..., 1])
    logits = logits_at(model, torch.cat([points, found.moved[None]]))
    bounds = logit_bounds(model, x, ball, method=method)
    assert (bounds.lower <= logits.amin(0) + 1e-9).all()
    assert (bounds.upper >= logits.amax(0) - 1e-9).all()
    worst = torch.stack([margins(point, y) for point in logits]).amin(0)
    assert (certify(model, x, y, ball, method=method).margins <= worst + 1e-9).all()


@pytest.mark.one_in(4)
@norms
def test_radii_are_those_of_a_network_that_holds_the_other_features(p):
    model, x, y = problem()
    options = {"p": p, "max_radius": 5.0, "probes": 0, "method": "crown-ibp"}
    alone = torch.cat(
        [
            certified_radius(Fixed(model, x[[i]]), x[[i]][..., MASK], y[[i]], **options)
            for i in range(len(x))
        ]
    )
    found = certified_radius(model, x, y, features=MASK, **options)
    torch.testing.assert_close(found, alone, rtol=2e-3, atol=0)
    assert (found >= certified_radius(model, x, y, **options)).all()
    assert (found <= empirical_radius(model, x, y, p=p, features=MASK)).all()
    frames = frame_radii(model, x, y, features=MASK, **options)
    one = certified_radius(model, x, y, features=MASK, frames=torch.arange(4) == 1, **options)
    torch.testing.assert_close(frames[:, 1], one, rtol=2e-3, atol=0)


def test_masks_of_samples_go_with_them_and_with_masks_of_frames():
    model, x, y = problem(batch=3)
    mask = torch.tensor([[True, False, True], [False, True, True], [True, True, True]])
    frames = torch.tensor([True, False, True, True])
    whole = certify(model, x, y, LpBall(0.1, 2, features=mask, frames=frames)).margins
    for one in range(3):
        ball = LpBall(0.1, 2, features=mask[one], frames=frames)
        alone = certify(model, x[[one]], y[[one]], ball).margins
        torch.testing.assert_close(whole[[one]], alone)
    small = certify(model, x, y, LpBall(0.1, 2, features=mask, frames=frames), max_bytes=1)
    torch.testing.assert_close(small.margins, whole)


def test_what_stays_may_lie_outside_the_domain():
    model, x, y = problem()
    x = x.clamp(-0.5, 0.5)
    x[..., 1] = 7  # a category
    y = predicted(model, x)
    ball = LpBall(0.1, low=-0.5, high=0.5, features=MASK)
    edges = [torch.where(MASK, edge, 7.0) for edge in (-0.5, 0.5)]
    same = LpBall(0.1, low=edges[0].double(), high=edges[1].double())
    torch.testing.assert_close(
        certify(model, x, y, ball).margins, certify(model, x, y, same).margins
    )
    assert certify(model, x, y, ball).margins.isfinite().any()
    with pytest.raises(ValueError, match="`inputs` must lie inside"):
        certify(model, x, y, LpBall(0.1, low=-0.5, high=0.5))


@pytest.mark.parametrize("name", ["pgd", "ibp", "crown-ibp", "mtl", "sabr", "radius"])
def test_objectives_move_the_features_of_the_mask(name):
    model, x, y = problem()
    one = objectives.OBJECTIVES[name](1.0, features=MASK)
    other = objectives.OBJECTIVES[name](1.0, features=torch.tensor([False, True, False]))
    found, there = one(model, x, y), other(model, x, y)
    assert found.isfinite()
    assert there.isfinite()
    assert found != there
    found.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_a_loss_over_all_features_is_that_without_a_mask():
    model, x, y = problem()
    every = CertifiedLoss(0.1, features=torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(every(model, x, y), CertifiedLoss(0.1)(model, x, y))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ("x", TypeError, "`features` must be a boolean tensor or array.*got .x."),
        (torch.ones(3), ValueError, r"`features` must be a boolean \(N,\).*float32"),
        (torch.ones(3, 1, 1).bool(), ValueError, r"shape \(3, 1, 1\)"),
        (torch.zeros(3).bool(), ValueError, "`features` marks nothing.*mark a feature"),
    ],
)
def test_a_mask_of_another_kind_is_refused(mask, error, message):
    with pytest.raises(error, match=message):
        LpBall(0.1, features=mask)


def test_a_mask_of_another_width_is_refused():
    model, x, y = problem()
    ball = LpBall(0.1, features=torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"`features` must be \(3,\) or \(2, 3\), got \(5,\)"):
        certify(model, x, y, ball)


def test_epsilon_has_a_gradient_through_a_mask():
    model, x, y = problem()
    radius = certified_radius(
        model, x, y, p=math.inf, features=MASK, method="ibp", differentiable=True
    )
    radius.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
