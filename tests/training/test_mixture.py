"""Mixtures of objectives."""

import pytest
import torch

from popqorn_train import objectives
from tests.problems import build, predicted, sequences


def problem():
    model, x = build("gru"), sequences(6, 4)
    return model, x, predicted(model, x)


def members():
    return [
        objectives.ibp(0.2, kappa=0.3),
        objectives.pgd(0.1, 2),
        objectives.radius(0.05, kappa=0.5),
    ]


def test_parts_are_weighted_sums_and_the_largest_share():
    model, x, y = problem()
    weights = (0.5, 2.0, 0.1)
    found = objectives.mixture(members(), weights).parts(model, x, y)
    parts = [member.parts(model, x, y) for member in members()]
    for name in ("total", "clean", "bound", "attack"):
        terms = [weight * getattr(part, name) for weight, part in zip(weights, parts, strict=True)]
        torch.testing.assert_close(getattr(found, name), torch.stack(terms).sum())
    assert found.certified == max(part.certified for part in parts)


def test_half_ibp_and_half_pgd_is_mtl():
    model, x, y = problem()
    mixture = objectives.mixture([objectives.ibp(0.1), objectives.pgd(0.1)], [0.5, 0.5])
    torch.testing.assert_close(mixture(model, x, y), objectives.mtl(0.1)(model, x, y))


def test_the_clean_term_is_worked_out_once():
    model, x, y = problem()
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), model)
    mixture = objectives.mixture(members(), (1.0, 1.0, 1.0))
    mixture(model, x, y)
    torch.manual_seed(1)
    once = torch.nn.functional.cross_entropy(model(x), y)
    torch.manual_seed(1)
    torch.testing.assert_close(mixture.parts(model, x, y).clean, 2 * once)


def test_an_objective_of_weight_zero_is_not_worked_out(monkeypatch):
    model, x, y = problem()
    mixture = objectives.mixture(members(), (1.0, 0.0, 1.0))
    expected = mixture(model, x, y)
    monkeypatch.setattr(
        "popqorn_train.training.loss.search", lambda *_, **__: pytest.fail("attacked")
    )
    assert torch.equal(mixture(model, x, y), expected)


def test_gradients_are_the_sum_of_theirs():
    model, x, y = problem()
    weights = (0.5, 2.0, 0.1)
    objectives.mixture(members(), weights)(model, x, y).backward()
    losses = [member(model, x, y) for member in members()]
    total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
    expected = torch.autograd.grad(total, list(model.parameters()))
    for weight, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


@pytest.mark.parametrize("weights", [(), (1.0,), (1.0, -1.0), (1.0, float("nan"))])
def test_weights_that_do_not_fit_are_refused(weights):
    pair = [objectives.ibp(0.1), objectives.pgd(0.1)]
    with pytest.raises(ValueError, match="`weights`"):
        objectives.mixture(pair, weights)
    mixture = objectives.mixture(pair, (1.0, 1.0))
    mixture.weights = weights
    with pytest.raises(ValueError, match="`weights`"):
        mixture(*problem())


def test_no_objective_is_refused():
    with pytest.raises(ValueError, match="`weights`"):
        objectives.mixture([], [])
