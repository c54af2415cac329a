"""Every public call leaves the model, the generator and the settings as they were."""

import copy

import pytest
import torch

from popqorn_train import (
    CertifiedLoss,
    LpBall,
    certified_radius,
    certify,
    logit_bounds,
)
from popqorn_train.certificates.pgd import attack
from tests.problems import CELLS, METHODS, build, predicted, sequences

CALLS = {
    "logit_bounds": lambda model, x, y: logit_bounds(model, x, LpBall(0.1)).lower,
    "certify": lambda model, x, y: certify(model, x, y, LpBall(0.1)).margins,
    "certified_radius": lambda model, x, y: certified_radius(model, x, y, rtol=0.1),
    "attack": lambda model, x, y: attack(model, x, y, LpBall(0.1), steps=2).margin,
    "loss": lambda model, x, y: CertifiedLoss(0.1, alpha=0.5)(model, x, y),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture
def problem():
    model, x = build("lstm", num_layers=2, dropout=0.4).float(), sequences(4, 3).float()
    return model, x, predicted(model, x)


def attributes(model):
    return {
        (name, key): copy.copy(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    }.keys()


@pytest.mark.parametrize("inner", [True, False])
@calls
def test_the_mode_of_every_module_stays(call, problem, inner):
    model, x, y = problem
    model.train()
    model.rnn.train(inner)
    call(model, x, y)
    assert [module.training for module in model.modules()] == [True, inner, True]


@calls
def test_the_mode_is_restored_after_an_error(call, problem):
    model, x, y = problem
    model.train()
    with pytest.raises((TypeError, ValueError)):
        call(model, x[:, :, :2], y)
    assert model.training
    assert model.rnn.training


@calls
def test_no_attribute_weight_or_gradient_is_left_behind(call, problem):
    model, x, y = problem
    before, weights = attributes(model), copy.deepcopy(model.state_dict())
    model.head.bias.grad = torch.ones(3)
    call(model, x, y)
    assert attributes(model) == before
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name])
    grads = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert grads == {"head.bias"}
    assert torch.equal(model.head.bias.grad, torch.ones(3))
    assert x.grad is None
    assert not x.requires_grad


@calls
def test_frozen_weights_stay_frozen(call, problem):
    model, x, y = problem
    model.requires_grad_(False)
    call(model, x, y)
    assert not any(weight.requires_grad for weight in model.parameters())


@calls
def test_hooks_stay_and_are_not_left_behind(call, problem):
    model, x, y = problem
    seen = []
    handle = model.rnn.register_forward_hook(lambda *args: seen.append(1))
    call(model, x, y)
    assert list(model.rnn._forward_hooks) == [handle.id]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (model, model.head))


@calls
def test_the_global_generator_is_not_consumed(call, problem):
    model, x, y = problem
    model.train(call is not CALLS["loss"])  # dropout in its attack term draws, as in training
    state = torch.get_rng_state()
    call(model, x, y)
    assert torch.equal(torch.get_rng_state(), state)


@calls
def test_settings_of_torch_stay(call, problem):
    torch.set_float32_matmul_precision("high")
    try:
        call(*problem)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.one_in(2)
@calls
def test_autocast_changes_nothing_and_stays_on(call, problem):
    expected = call(*problem)
    with torch.autocast("cpu", torch.bfloat16):
        found = call(*problem)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found, expected)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@calls
def test_no_grad_and_inference_mode_change_nothing(call, problem, mode):
    model, x, y = problem
    expected = call(model, x, y)
    with mode():
        found = call(model, x.clone(), y.clone())  # the copies are inference tensors
        assert not torch.is_grad_enabled()
    # Without gradients bounds run as compiled loops, whose rounding is another one.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not found.requires_grad


def test_certificates_and_radii_carry_no_graph(problem):
    for call in (CALLS["certify"], CALLS["certified_radius"], CALLS["attack"]):
        assert not call(*problem).requires_grad


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_model_in_train_mode_is_bounded_as_in_eval(cell, method):
    model, x = build(cell, num_layers=2, dropout=0.5), sequences(2, 3)
    expected = logit_bounds(model, x, LpBall(0.1), method=method)
    found = logit_bounds(model.train(), x, LpBall(0.1), method=method)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
