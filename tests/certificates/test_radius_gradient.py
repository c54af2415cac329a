"""The gradient of a radius is that of the implicit function margin(radius) = 0."""

import math

import pytest
import torch
from torch import nn

from popqorn_train import certified_radius
from popqorn_train.bounds.methods import Popqorn
from popqorn_train.perturbations.region import dual_norm
from tests.problems import F64, build, margins, predicted, sequences

EXACT = Popqorn("lambda", (), own_lines=False)  # its gradients hold nothing fixed
OPTIONS = {"rtol": 1e-9, "confirm": None, "method": EXACT}
lstm = pytest.param("lstm", marks=pytest.mark.slow)
cells = pytest.mark.parametrize("cell", ["tanh", lstm, "gru"])


def problem(cell, batch=4, time=4, **options):
    model, x = build(cell, **options), sequences(batch, time, seed=5)
    return model, x, predicted(model, x)


def agree(found, expected):
    assert abs(found - expected) <= 1e-3 * abs(expected) + 1e-9


@pytest.mark.one_in(2, first=1)
@pytest.mark.parametrize("p", [1, 2, math.inf])
@cells
def test_weights_have_the_gradient_of_finite_differences(cell, p):
    model, x, y = problem(cell)
    options = {**OPTIONS, "p": p}
    certified_radius(model, x, y, differentiable=True, **options).sum().backward()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        step = torch.randn(weight.shape, generator=generator, dtype=F64)
        sums = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * 1e-5 * step
            sums.append(certified_radius(model, x, y, **options).sum().item())
            with torch.no_grad():
                weight -= sign * 1e-5 * step
        agree((weight.grad * step).sum().item(), (sums[0] - sums[1]) / 2e-5)


@pytest.mark.one_in(4, first=1)
@pytest.mark.parametrize("domain", [{}, {"low": -3.0, "high": 3.0}])
@cells
def test_inputs_have_the_gradient_of_finite_differences(cell, domain):
    model, x, y = problem(cell)
    x = x.clamp(-2.5, 2.5).requires_grad_()
    certified_radius(model, x, y, differentiable=True, **OPTIONS, **domain).sum().backward()
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    one, two = (
        certified_radius(model, x.detach() + sign * 1e-5 * step, y, **OPTIONS, **domain)
        for sign in (1, -1)
    )
    agree((x.grad * step).sum().item(), (one - two).sum().item() / 2e-5)


def test_the_gradient_of_a_linear_classifier_is_known():
    head, x = nn.Linear(3, 2, dtype=F64), sequences(8, 1).requires_grad_()
    model = nn.Sequential(nn.Flatten(), head)
    y = predicted(model, x)
    radius = certified_radius(model, x, y, p=2, differentiable=True, **OPTIONS)
    (found,) = torch.autograd.grad(radius.sum(), x)
    rows = (head.weight[y][:, None] - head.weight)[torch.arange(8), 1 - y]
    exact = margins(model(x), y).amin(1) / dual_norm(rows, 2)
    (expected,) = torch.autograd.grad(exact.sum(), x)
    torch.testing.assert_close(found, expected)


def test_wrong_and_capped_samples_have_no_gradient():
    model, x, y = problem("gru", batch=12)
    y[:3] = (y[:3] + 1) % 3
    x.requires_grad_()
    cap = certified_radius(model, x, y)[3:].median().item()
    radius = certified_radius(model, x, y, max_radius=cap, differentiable=True)
    radius.sum().backward()
    free = (radius > 0) & (radius < cap)
    assert torch.equal(x.grad.flatten(1).abs().sum(1) > 0, free)
    assert 0 < free.sum() < 9


def test_nothing_to_differentiate_gives_a_constant():
    model, x, y = problem("gru")
    radius = certified_radius(model, x, (y + 1) % 3, differentiable=True)
    assert radius.tolist() == [0, 0, 0, 0]
    assert not radius.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_radius_itself_is_the_same(dtype):
    model, x, y = problem("lstm")
    model, x = model.to(dtype), x.to(dtype)
    plain = certified_radius(model, x, y, method=Popqorn("lambda", ()))
    assert torch.equal(plain, certified_radius(model, x, y, differentiable=True).detach())


@pytest.mark.slow
def test_a_step_along_the_gradient_raises_the_radius():
    model, x, y = problem("gru", batch=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    before = certified_radius(model, x, y).mean()
    for _ in range(5):
        optimizer.zero_grad()
        (-certified_radius(model, x, y, differentiable=True).mean()).backward()
        optimizer.step()
    assert certified_radius(model, x, y).mean() > before


def test_only_the_class_named_has_a_gradient():
    model, x, y = problem("gru")
    other = (y + 1) % 3
    radius = certified_radius(model, x, y, against=other, differentiable=True)
    radius.sum().backward()
    third = torch.ones(3, dtype=torch.bool)
    third[torch.cat([y, other])] = False
    assert (model.head.bias.grad[third] == 0).all()
