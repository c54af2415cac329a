"""The attack stays inside the ball, and reports what the model gives there."""

import math

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, certify
from popqorn_train.certificates.pgd import attack
from tests.problems import F64, NORMS, SOME_CELLS, build, margins, predicted, sequences

cells = pytest.mark.parametrize("cell", SOME_CELLS)
norms = pytest.mark.parametrize("p", [*NORMS, 1.5])
scopes = pytest.mark.parametrize("scope", ["frame", "sequence"])


def problem(cell):
    model, x = build(cell), sequences(8, 4)
    return model, x, predicted(model, x)


@scopes
@norms
@cells
def test_the_point_found_lies_inside_the_ball(cell, p, scope):
    model, x, y = problem(cell)
    found = attack(model, x, y, LpBall(0.3, p, scope=scope))
    change = (found.moved - x).flatten(0 if scope == "frame" else 1, 1 if scope == "frame" else 2)
    size = torch.linalg.vector_norm(change, p, dim=-1)
    assert (size <= 0.3 + 1e-12).all()
    assert (size > 0.1).any()


@scopes
@norms
def test_the_point_found_lies_inside_the_domain(p, scope):
    model, x, y = problem("lstm")
    x = x.clamp(-0.5, 0.5)
    found = attack(model, x, y, LpBall(0.4, p, scope=scope, low=-0.5, high=0.6))
    assert found.moved.min() >= -0.5
    assert found.moved.max() <= 0.6


def test_frames_that_stay_are_left_alone():
    model, x, y = problem("gru")
    mask = torch.tensor([True, False, False, True])
    found = attack(model, x, y, LpBall(0.3, frames=mask))
    moved = (found.moved != x).any(-1).any(0)
    assert torch.equal(moved, mask)


@norms
@cells
def test_the_margin_is_that_of_the_model_at_the_point(cell, p):
    model, x, y = problem(cell)
    found = attack(model, x, y, LpBall(0.3, p))
    expected = margins(model(found.moved), y).amin(1).detach()
    torch.testing.assert_close(found.margin, expected)
    assert (found.margin < margins(model(x), y).amin(1)).all()


@pytest.mark.one_in(2)
@norms
@cells
def test_the_margin_found_is_never_below_the_certified_one(cell, p):
    model, x, y = problem(cell)
    for epsilon in (0.0, 0.05, 0.5):
        ball = LpBall(epsilon, p)
        assert (attack(model, x, y, ball).margin >= certify(model, x, y, ball).margin - 1e-12).all()


@scopes
@norms
def test_the_worst_point_of_a_linear_model_is_found(p, scope):
    x = sequences(8, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    y, ball = predicted(model, x), LpBall(0.2, p, scope=scope)
    found = attack(model, x, y, ball, steps=10, restarts=1)
    exact = certify(model, x, y, ball).margin
    torch.testing.assert_close(found.margin, exact, rtol=0, atol=1e-2 * (1 if p == 1.5 else 1e-8))


def test_more_restarts_never_find_less():
    model, x, y = problem("lstm")
    one, four = (attack(model, x, y, LpBall(0.5), restarts=n).margin for n in (1, 4))
    assert (four <= one).all()


def test_the_same_seed_finds_the_same_point_without_the_global_generator():
    model, x, y = problem("lstm")
    state = torch.get_rng_state()
    one = attack(model, x, y, LpBall(0.5), restarts=3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(one.moved, attack(model, x, y, LpBall(0.5), restarts=3, seed=1).moved)


def test_a_ball_of_size_0_leaves_the_input():
    model, x, y = problem("gru")
    assert torch.equal(attack(model, x, y, LpBall(0.0)).moved, x)


def test_epsilons_of_samples_are_kept_apart():
    model, x, y = problem("gru")
    epsilon = torch.linspace(0, 0.7, 8, dtype=F64)
    found = attack(model, x, y, LpBall(epsilon))
    size = (found.moved - x).abs().flatten(1).amax(1)
    torch.testing.assert_close(size, epsilon)
    assert math.isclose(size.max().item(), 0.7)
