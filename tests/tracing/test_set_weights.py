"""Weights that a hook or a wrapper works out before a layer is called."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune, spectral_norm, weight_norm

from popqorn_train import CertifiedLoss, LpBall, UnsupportedModelError, logit_bounds
from tests.problems import F64

pytestmark = pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm).*:FutureWarning")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.deep = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.deep(self.rnn(x)[0][:, -1])))


class WeightDrop(nn.Module):
    """DropConnect on a weight of a recurrent layer, as language models have it."""

    def __init__(self, module, *, name="weight_hh_l0", scale=None, direct=False):
        super().__init__()
        self.module, self.name, self.scale, self.direct = module, name, scale, direct
        raw = module._parameters.pop(name)
        module.register_parameter(f"{name}_raw", nn.Parameter(raw.detach()))

    def forward(self, x):
        weight = functional.dropout(getattr(self.module, f"{self.name}_raw"), 0.5, self.training)
        weight = weight if self.scale is None else self.scale * weight
        setattr(self.module, self.name, weight)
        return self.module.forward(x) if self.direct else self.module(x)


def pruned(net):
    prune.l1_unstructured(net.deep, "weight", amount=0.5)
    prune.random_unstructured(net.rnn, "weight_hh_l0", amount=0.5)


def normed(net):
    weight_norm(net.deep)
    weight_norm(net.rnn, "weight_hh_l0")


def spectral(net):
    spectral_norm(net.deep)


def dropped(net):
    net.rnn = WeightDrop(net.rnn)


def x():
    return torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=F64)


def made(change):
    net = Net()
    change(net)
    return net.double().eval()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("change", [pruned, normed, spectral, dropped])
def test_bounds_and_gradients_are_those_of_the_weights_as_they_are_now(change):
    net = made(change)
    for _ in range(2):
        lower, upper = logit_bounds(net, x(), LpBall(0.1), method="crown-ibp")
        points = x() + 0.1 * (2 * torch.rand(50, *x().shape, dtype=F64) - 1).sign()
        with torch.no_grad():
            logits = net(points.flatten(0, 1)).view(50, 2, 3)
        assert ((lower - 1e-12 <= logits) & (logits <= upper + 1e-12)).all()
        for end in logit_bounds(net, x(), LpBall(0.0), method="crown-ibp"):
            torch.testing.assert_close(end, net(x()), rtol=0, atol=1e-9)
        with torch.no_grad():
            for weight in net.parameters():
                weight.mul_(1.3)
    CertifiedLoss(0.01, method="ibp")(net, x(), torch.tensor([0, 1])).backward()
    raw = [
        weight for name, weight in net.named_parameters() if name.endswith(("_orig", "_v", "_raw"))
    ]
    assert raw
    assert all(weight.grad.abs().sum() > 0 for weight in raw)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 2.0}, r"'rnn.module' gets its weight 'weight_hh_l0'.*register_parametrization"),
        ({"direct": True}, r"Call the module itself, self\.rnn\(x\)"),
    ],
)
def test_other_weights_are_refused_with_a_way_out(options, message):
    net = Net()
    net.rnn = WeightDrop(net.rnn, **options)
    with pytest.raises(UnsupportedModelError, match=message):
        logit_bounds(net.double().eval(), x(), LpBall(0.1))


class Own(nn.Module):
    """A layer of the user's, whose weight a hook works out."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x):
        return functional.linear(x, self.weight)


def test_on_a_module_of_the_users_the_line_is_named():
    net = Net()
    net.deep = Own()
    prune.l1_unstructured(net.deep, "weight", amount=0.5)
    with pytest.raises(UnsupportedModelError, match=r"'deep' computes its weights.*prune.remove"):
        logit_bounds(net.double().eval(), x(), LpBall(0.1))
    prune.remove(net.deep, "weight")
    assert logit_bounds(net, x(), LpBall(0.1), method="ibp").lower.isfinite().all()
