"""The radius objective: its formula, and what it does where radii are 0, capped or NaN."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from popqorn_train import certified_radius, objectives
from popqorn_train.bounds.methods import Popqorn
from tests.problems import build, predicted, sequences

lstm = pytest.param("lstm", marks=pytest.mark.slow)
cells = pytest.mark.parametrize("cell", ["tanh", lstm, "gru"])


def problem(cell="gru", batch=12, wrong=3):
    model, x = build(cell), sequences(batch, 4)
    y = predicted(model, x)
    y[:wrong] = (y[:wrong] + 1) % 3
    return model, x, y


@pytest.mark.parametrize("p", [1, 2, math.inf])
@cells
def test_it_is_what_radii_lack_of_the_target(cell, p):
    model, x, y = problem(cell)
    radii = certified_radius(model, x, y, p=p, method="ibp", rtol=1e-6)
    target = radii[radii > 0].median().item()
    loss = objectives.radius(target, p, kappa=0.3, rtol=1e-6)
    parts = loss.parts(model, x, y)
    error = cross_entropy(model(x), y, reduction="none")
    lacking = torch.where(radii > 0, (target / radii).log().clamp(min=0), error)
    torch.testing.assert_close(parts.bound, lacking.mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.total, 0.3 * parts.clean + 0.7 * parts.bound)
    assert parts.certified.item() == pytest.approx((radii >= target).double().mean().item())


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", Popqorn("lambda", ())])
@cells
def test_a_step_raises_the_mean_radius(cell, method):
    model, x, y = problem(cell, wrong=0)
    radii = certified_radius(model, x, y, method=method)
    loss = objectives.radius(2 * radii.max().item(), method=method)
    before = loss(model, x, y)
    before.backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight -= 1e-3 * weight.grad
    assert certified_radius(model, x, y, method=method).mean() > radii.mean()
    assert loss(model, x, y) < before


def test_where_all_are_wrong_it_is_the_cross_entropy():
    model, x, y = problem(wrong=12)
    loss = objectives.radius(0.1)
    found = loss.parts(model, x, y)
    torch.testing.assert_close(found.total, cross_entropy(model(x), y))
    assert found.certified == 0
    found.total.backward()
    expected = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    for weight, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_where_all_reach_the_target_nothing_is_left_to_do():
    model, x, y = problem(wrong=0)
    least = certified_radius(model, x, y, method="ibp").min().item()
    parts = objectives.radius(0.5 * least).parts(model, x, y)
    assert parts.total == 0
    assert parts.certified == 1
    parts.total.backward()  # a graph is there all the same
    assert all(not weight.grad.any() for weight in model.parameters())


def test_radii_at_the_target_have_no_gradient_and_those_below_do():
    model, x, y = problem(wrong=0)
    radii = certified_radius(model, x, y, method="ibp")
    x.requires_grad_()
    objectives.radius(radii.median().item())(model, x, y).backward()
    moved = x.grad.flatten(1).any(1)
    assert torch.equal(moved, radii < radii.median())


def test_without_gradients_the_value_is_the_same():
    model, x, y = problem()
    loss = objectives.radius(0.1)
    with torch.no_grad():
        found = loss(model, x, y)
    assert not found.requires_grad
    assert torch.equal(found, loss(model, x, y))
    with torch.inference_mode():
        assert torch.equal(loss(model, x, y), found)


def test_training_on_it_grows_radii_to_the_target():
    torch.manual_seed(0)
    model, x, y = problem(batch=24, wrong=0)
    model.requires_grad_()
    target = 2 * certified_radius(model, x, y, method="ibp").median().item()
    loss = objectives.radius(target)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    before = loss.parts(model, x, y)
    for _ in range(30):
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
    after = loss.parts(model, x, y)
    assert after.total < 0.7 * before.total
    assert after.certified > before.certified


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("epsilon", torch.tensor([0.1]), TypeError),
        ("epsilon", -0.1, ValueError),
        ("rtol", 0.0, ValueError),
        ("method", "no such", ValueError),
        ("kappa", 2.0, ValueError),
    ],
)
def test_settings_out_of_range_are_refused(name, value, error):
    with pytest.raises(error, match=f"`{name}`"):
        objectives.radius(**{"epsilon": 0.1, name: value})
