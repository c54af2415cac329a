"""Models in half precision, parametrised weights, and layers that are used twice."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from popqorn_train import CertifiedLoss, LpBall, certified_radius, certify, logit_bounds
from tests.problems import build, sequences
from tests.zoo import zoo

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_a_model_in_half_precision_has_the_bounds_of_its_float32_copy(cell, dtype):
    model, x = build(cell, gain=1.0).to(dtype), sequences(2, 4).to(dtype)
    copy = build(cell, gain=1.0).to(dtype).float()
    y = copy(x.float()).argmax(1)
    found = certify(model, x, y, LpBall(0.01), confirm=None)
    expected = certify(copy, x.float(), y, LpBall(0.01), confirm=None)
    torch.testing.assert_close(found.margins, expected.margins)
    name = str(dtype).removeprefix("torch.")
    assert found.numerics == f"float32 of {name} weights"
    assert certify(model, x, y, LpBall(0.01)).numerics == f"float64 of {name} weights"
    assert next(model.parameters()).dtype == dtype
    radius = certified_radius(model, x, y)
    torch.testing.assert_close(radius, certified_radius(copy, x.float(), y), rtol=1e-2, atol=0)


class Normed(nn.Module):
    """Every kind of parametrised weight."""

    def __init__(self):
        super().__init__()
        self.rnn = parametrizations.weight_norm(nn.GRU(3, 4, batch_first=True), "weight_ih_l0")
        self.mid = parametrizations.spectral_norm(nn.Linear(4, 4))
        self.head = parametrizations.weight_norm(nn.Linear(4, 3))

    def forward(self, x):
        return self.head(self.mid(self.rnn(x)[0][:, -1]).tanh())


def test_parametrised_weights_are_those_that_forward_uses():
    torch.manual_seed(0)
    model, x = Normed().double().eval(), sequences(2, 4)
    lower = logit_bounds(model, x, LpBall(0.0)).lower
    torch.testing.assert_close(lower, model(x), rtol=0, atol=1e-12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = CertifiedLoss(0.1)(model, x, torch.tensor([0, 1]))
    loss.backward()
    gains = dict(model.named_parameters())
    assert gains["head.parametrizations.weight.original0"].grad.abs().sum() > 0
    assert gains["rnn.parametrizations.weight_ih_l0.original1"].grad.abs().sum() > 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name  # no power iteration of ours
    with torch.no_grad():
        gains["head.parametrizations.weight.original0"].mul_(2)
    torch.testing.assert_close(logit_bounds(model, x, LpBall(0.0)).lower, model(x))
    wide = logit_bounds(model, x, LpBall(0.1))
    assert (wide.upper > wide.lower).all()


def test_a_trace_sees_weights_and_layers_that_change_later():
    model, x = zoo()["SharedTwice"]
    logit_bounds(model, x, LpBall(0.0))
    with torch.no_grad():
        for weight in model.rnn.parameters():
            weight.mul_(1.5)
    torch.testing.assert_close(logit_bounds(model, x, LpBall(0.0)).lower, model(x))
    model.rnn = nn.GRU(3, 4, batch_first=True).double()
    torch.testing.assert_close(logit_bounds(model, x, LpBall(0.0)).lower, model(x))
