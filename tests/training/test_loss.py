"""The certified loss: its terms, its gradients, and what it leaves alone."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from popqorn_train import CertifiedLoss, LpBall, bound, certify
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.methods import TRAINING
from popqorn_train.training.state_widths import drowned
from tests.problems import METHODS, NORMS, SOME_CELLS, build, predicted, sequences

cells = pytest.mark.parametrize("cell", SOME_CELLS)
methods = pytest.mark.parametrize("method", METHODS)


def problem(cell, **options):
    model, x = build(cell, **options), sequences(8, 4)
    return model, x, (predicted(model, x) + (torch.arange(8) % 3 == 0)) % 3


def worst_case(model, x, y, ball, method):
    margins = certify(model, x, y, ball, method=method).margins
    return cross_entropy(-margins.masked_fill(margins.isinf(), 0), y)


@methods
@cells
def test_the_bound_term_is_the_cross_entropy_of_the_worst_case(cell, method):
    model, x, y = problem(cell)
    found = CertifiedLoss(0.1, 2, method=method)(model, x, y)
    torch.testing.assert_close(found, worst_case(model, x, y, LpBall(0.1, 2), TRAINING[method]))


@methods
@cells
def test_epsilon_zero_gives_the_clean_cross_entropy(cell, method):
    model, x, y = problem(cell)
    for alpha in (0.0, 0.5, 1.0):
        found = CertifiedLoss(0.0, method=method, alpha=alpha)(model, x, y)
        torch.testing.assert_close(found, cross_entropy(model(x), y))


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_the_terms_are_mixed_by_kappa_and_alpha(kappa, alpha):
    parts = CertifiedLoss(0.1, kappa=kappa, alpha=alpha).parts(*problem("lstm"))
    robust = alpha * parts.bound + (1 - alpha) * parts.attack
    torch.testing.assert_close(parts.total, kappa * parts.clean + (1 - kappa) * robust)
    assert (parts.clean > 0) == (kappa > 0)
    assert (parts.bound > 0) == (kappa < 1 and alpha > 0)
    assert (parts.attack > 0) == (kappa < 1 and alpha < 1)


@pytest.mark.parametrize("p", NORMS)
@cells
def test_clean_attack_and_bound_terms_are_in_order(cell, p):
    parts = CertifiedLoss(0.2, p, kappa=0.5, alpha=0.5).parts(*problem(cell))
    assert parts.clean < parts.attack < parts.bound


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@methods
@pytest.mark.parametrize("layers", [1, 2])
@cells
def test_gradients_reach_every_weight(cell, layers, method, alpha):
    model, x, y = problem(cell, num_layers=layers)
    CertifiedLoss(0.1, method=method, alpha=alpha)(model, x, y).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


@methods
@cells
def test_a_step_along_the_gradient_lowers_the_loss(cell, method):
    model, x, y = problem(cell)
    loss = CertifiedLoss(0.1, method=method, kappa=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = loss(model, x, y)
    before.backward()
    optimizer.step()
    assert loss(model, x, y) < before


def test_training_on_the_loss_raises_the_share_that_is_certified():
    model, x, y = problem("gru")
    loss = CertifiedLoss(0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = loss.parts(model, x, y)
    for _ in range(30):
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
    after = loss.parts(model, x, y)
    assert after.total < 0.8 * before.total
    assert after.certified > before.certified


def test_epsilon_and_kappa_are_plain_attributes_that_take_effect():
    model, x, y = problem("gru")
    loss = CertifiedLoss(0.1)
    assert not loss.state_dict()
    assert not list(loss.parameters())
    loss.epsilon = 0.3
    torch.testing.assert_close(loss(model, x, y), CertifiedLoss(0.3)(model, x, y))
    loss.kappa = 1.0
    torch.testing.assert_close(loss(model, x, y), cross_entropy(model(x), y))


def test_bounds_use_eval_mode_and_the_clean_term_the_mode_of_the_model():
    model, x, y = problem("lstm", num_layers=2, dropout=0.9)
    expected = CertifiedLoss(0.1)(model, x, y)
    model.train()
    torch.testing.assert_close(CertifiedLoss(0.1)(model, x, y), expected)
    assert CertifiedLoss(0.1, kappa=1.0)(model, x, y) != cross_entropy(model.eval()(x), y)


@pytest.mark.parametrize(("option", "value"), [("low", -0.5), ("frames", torch.arange(4) < 2)])
def test_options_of_the_ball_reach_the_bound(option, value):
    model, x, y = problem("gru")
    x = x.clamp(min=-0.5)
    found = CertifiedLoss(0.3, 2, **{option: value})(model, x, y)
    ball = LpBall(0.3, 2, **{option: value})
    torch.testing.assert_close(found, worst_case(model, x, y, ball, "ibp"))
    assert found < CertifiedLoss(0.3, 2)(model, x, y)


def test_a_bound_model_gives_the_same_loss():
    model, x, y = problem("gru")
    loss = CertifiedLoss(0.1, kappa=0.5, alpha=0.5)
    assert torch.equal(loss(bound(model), x, y), loss(model, x, y))


def test_the_share_certified_is_that_of_certify():
    model, x, y = problem("lstm")
    for epsilon in (0.01, 0.1, 0.5):
        expected = certify(model, x, y, LpBall(epsilon), method="ibp").certified
        found = CertifiedLoss(epsilon).parts(model, x, y).certified
        assert math.isclose(found.item(), expected.float().mean().item(), abs_tol=1e-6)


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_the_signal_term_comes_from_the_pass_of_the_bound(cell, monkeypatch):
    model, x, y = problem(cell)
    plain = CertifiedLoss(0.3, kappa=0.2).parts(model, x, y)
    passes = []
    monkeypatch.setattr(
        "popqorn_train.bounds.method.enclose", lambda *a, **k: passes.append(1) or enclose(*a, **k)
    )
    parts = CertifiedLoss(0.3, kappa=0.2, signal=0.5).parts(model, x, y)
    assert len(passes) == 1
    assert plain.signal == 0 < parts.signal
    torch.testing.assert_close(parts.signal, drowned(enclosed(model, x)).detach())
    torch.testing.assert_close(parts.total, plain.total + 0.5 * parts.signal)
    assert CertifiedLoss(0.3, kappa=1.0, signal=0.5).parts(model, x, y).signal == 0


def enclosed(model, x):
    return enclose(bound(model).instance(x).graph(LpBall(0.3)))


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_signal_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match="`signal`"):
        CertifiedLoss(0.1, signal=weight)
