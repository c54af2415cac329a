"""Small balls: inside the ball and the domain, and the whole ball at the end."""

import math

import pytest
import torch

from popqorn_train import bound, objectives
from popqorn_train.training.objective import Prepared
from tests.problems import build, predicted, sequences, steps_inside
from tests.zoo import zoo

EPSILON = 0.3
norms = pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])


def problem():
    model, x = build("gru"), sequences(4, 4).clamp(-1, 1)
    return model, x, predicted(model, x)


def points_of(loss, model, x, y):
    """Points ``(P, B, T, N)`` of the small balls that a loss bounds, on their rims too."""
    case, ball = loss._region(Prepared(model, x, y, check=True))
    region = ball.around(case.center)
    shape = (99 * len(x), *x.shape[1:])
    if ball.scope == "sequence":
        steps = steps_inside((shape[0], 1, x[0].numel()), ball.p).view(shape)
    else:
        steps = steps_inside(shape, ball.p)
    change = (ball.epsilon * steps).view(99, *x.shape) * region.moved[..., None]
    inside = torch.minimum(torch.maximum(change, -region.down), region.up)
    return case.center + inside


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("scope", ["frame", "sequence"])
@norms
def test_the_small_ball_lies_inside_the_ball_and_the_domain(p, scope, ratio):
    model, x, y = problem()
    mask = torch.tensor([True, False, True, True])
    loss = objectives.sabr(EPSILON, p, ratio=ratio, scope=scope, low=-1.1, high=1.05, frames=mask)
    points = points_of(loss, model, x, y)
    change = points - x
    flat = change.flatten(2) if scope == "sequence" else change
    assert torch.linalg.vector_norm(flat, p, dim=-1).max() <= EPSILON * (1 + 1e-12)
    assert points.min() >= -1.1 - 1e-12
    assert points.max() <= 1.05 + 1e-12
    assert (change[:, :, 1] == 0).all()
    assert (change[:, :, 2] != 0).any()


@norms
def test_its_middle_is_where_the_attack_of_the_remaining_size_ends(p):
    model, x, y = problem()
    loss = objectives.sabr(EPSILON, p, ratio=0.4)
    case, ball = loss._region(Prepared(model, x, y, check=True))
    distance = torch.linalg.vector_norm(case.center - x, p, dim=-1)
    assert ball.epsilon == pytest.approx(0.4 * EPSILON)
    assert distance.max() == pytest.approx(0.6 * EPSILON)  # the attack goes to the rim
    clean = Prepared(model, x, y, check=True).instance
    torch.testing.assert_close(case.logits(case.center), clean.logits(case.center))


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
@norms
def test_with_ratio_one_it_is_ibp_and_with_zero_pgd(p, cell):
    model, x = build(cell), sequences(4, 4)
    y = predicted(model, x)
    whole = objectives.sabr(EPSILON, p, ratio=1.0)(model, x, y)
    assert torch.equal(whole, objectives.ibp(EPSILON, p)(model, x, y))
    point = objectives.sabr(EPSILON, p, ratio=0.0)(model, x, y)
    torch.testing.assert_close(point, objectives.pgd(EPSILON, p)(model, x, y))


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_the_loss_rises_with_the_ratio(p):
    model, x, y = problem()
    found = [
        objectives.sabr(EPSILON, p, ratio=ratio)(model, x, y).item()
        for ratio in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert found == sorted(found)


@pytest.mark.parametrize("name", ["Normalised", "Image", "TimeFirst", "Tokens"])
def test_what_moves_may_have_units_and_a_layout_of_its_own(name):
    from tests.problems import zoo as small_zoo

    model, x = small_zoo()[name]
    y = model(x).argmax(1)
    loss = objectives.sabr(0.05, 2, ratio=0.5)
    batch = Prepared(model, x, y, check=True)
    case, ball = loss._region(batch)
    moved = case.center + 0.5 * ball.around(case.center).up  # some point of the small ball
    distance = torch.linalg.vector_norm(moved - batch.instance.center, 2, dim=-1)
    assert distance.max() > 0
    torch.testing.assert_close(case.logits(moved), batch.instance.logits(moved))
    assert loss(model, x, y) <= objectives.ibp(0.05, 2)(model, x, y)


def test_padded_frames_carry_the_state_as_with_ibp():
    model, inputs = zoo()["BiGRUMasked"]
    y = model(*inputs).argmax(1)
    longer = (torch.cat([inputs[0], torch.ones(3, 2, 3)], 1), inputs[1])
    loss = objectives.sabr(0.1, ratio=0.5)
    torch.testing.assert_close(loss(model, longer, y), loss(model, inputs, y))


@pytest.mark.parametrize("ratio", [-0.1, 1.5, math.nan])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match="`ratio`"):
        objectives.sabr(0.1, ratio=ratio)
    loss = objectives.sabr(0.1)
    loss.ratio = ratio
    with pytest.raises(ValueError, match="`ratio`"):
        loss(*problem())


def test_a_bound_model_that_moves_something_else_is_respected():
    model, x, y = problem()
    layer = bound(model, perturb="x")
    loss = objectives.sabr(0.1)
    assert torch.equal(loss(layer, x, y), loss(model, x, y))
