"""Against what other verifiers and attacks found on the same weights and inputs."""

import math
import statistics

import numpy as np
import pytest
import torch
from torch import nn

from popqorn_train import LpBall, certified_radius, certify
from tests.problems import METHODS

KINDS = {"mnist": ("lstm", nn.LSTM), "gru": ("rnn", nn.GRU), "rnn": ("rnn", nn.RNN)}


class Digits(nn.Module):
    """One recurrent layer, its last hidden state, a linear head."""

    def __init__(self, rnn, head):
        super().__init__()
        self.rnn, self.head = rnn, head

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def layer(kind, data, prefix):
    """A recurrent layer with the weights stored under a prefix."""
    names = [name for name in data.files if name.startswith(prefix)]
    weights = {name.removeprefix(prefix): torch.from_numpy(data[name]) for name in names}
    hidden, features = weights["weight_hh_l0"].shape[1], weights["weight_ih_l0"].shape[1]
    depth = sum(name.startswith("weight_ih") for name in weights)
    rnn = kind(features, hidden, depth, batch_first=True)
    rnn.load_state_dict(weights)
    return rnn


def linear(data, prefix):
    weight = torch.from_numpy(data[prefix + "weight"])
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": torch.from_numpy(data[prefix + "bias"])})
    return head


def lirpa(golden, name, method="CROWN"):
    """The stored results, and the network, inputs and labels they belong to."""
    data = np.load(golden / f"lirpa_{method}_{name}_pinf.npz", allow_pickle=False)
    attribute, kind = KINDS[name.split("_")[0]]
    model = Digits(layer(kind, data, f"w.{attribute}."), linear(data, "w.linear."))
    return data, model, torch.from_numpy(data["x"]), torch.from_numpy(data["y"])


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mnist_04f_032h_1l", "mnist_07f_032h_1l", "rnn_07f_032h"])
def test_no_margin_exceeds_what_an_attack_reached(golden, name, method):
    attacks = np.load(golden / f"pgd_{name}.npz", allow_pickle=False)
    _, model, x, y = lirpa(golden, name)
    reached = {key: attacks[key] for key in attacks.files if key.startswith("margin_ub_eps")}
    assert reached
    for key, upper in reached.items():
        ball = LpBall(float(key.removeprefix("margin_ub_eps")), low=0.0, high=1.0)
        found = certify(model.double(), x.double(), y, ball, method=method).margins
        found = found.masked_fill(nn.functional.one_hot(y, 10).bool(), -math.inf)
        assert (found <= torch.from_numpy(upper).nan_to_num(math.inf) + 1e-5).all()


@pytest.mark.parametrize("name", ["mnist_04f_032h_1l", "gru_07f_032h", "rnn_07f_032h"])
def test_the_network_is_the_one_of_the_golden_file(golden, name):
    data, model, x, _ = lirpa(golden, name)
    torch.testing.assert_close(model(x), torch.from_numpy(data["logits"]), rtol=1e-4, atol=1e-4)


def test_at_least_as_many_are_certified_as_by_auto_lirpa(golden):
    data, model, x, y = lirpa(golden, "mnist_04f_032h_1l")
    radius = certified_radius(model, x, y, low=0.0, high=1.0)
    for epsilon, certified in zip(data["eps"], data["certified"], strict=True):
        assert (radius >= epsilon).sum() >= certified.sum(), epsilon


def test_intervals_are_no_looser_than_those_of_auto_lirpa(golden):
    data, model, x, y = lirpa(golden, "mnist_04f_032h_1l", method="IBP")
    for epsilon, theirs in zip(data["eps"], data["margin_lb"], strict=True):
        ball = LpBall(float(epsilon), low=0.0, high=1.0)
        ours = certify(model, x, y, ball, method="ibp", confirm=None).margins
        assert (ours >= torch.from_numpy(theirs) - 1e-3).all()


def test_the_median_radius_is_at_least_that_of_popqorn(golden):
    data = np.load(golden / "popqorn_rnn_tanh_T7_H64_p2.npz", allow_pickle=False)
    model = Digits(layer(nn.RNN, data, "rnn."), linear(data, "fc."))
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["label"])
    torch.testing.assert_close(model(x), torch.from_numpy(data["logits"]), rtol=1e-4, atol=1e-4)
    radius = certified_radius(model, x, y, p=2, frames=torch.from_numpy(data["frame_mask"]))
    assert statistics.median(radius.tolist()) >= np.median(data["radius_lower"])
    attacked = data["attack_radius_upper"]
    assert (radius.numpy() <= np.where(np.isnan(attacked), np.inf, attacked)).all()


def test_two_layers_are_certified_on_most_of_the_first_images(golden):
    weights = np.load(golden / "weights_mnist_04f_032h_2l.npz", allow_pickle=False)
    file = golden.parent / "data" / "mnist.npz"
    if not file.is_file():
        pytest.skip(f"no images in {file}")
    model = Digits(layer(nn.LSTM, weights, "w.lstm."), linear(weights, "w.linear."))
    data = np.load(file, allow_pickle=False)
    x = torch.from_numpy(data["x_test"][:40]).float().view(-1, 4, 196) / 255
    y = torch.from_numpy(data["y_test"][:40]).long()
    right = (model(x).argmax(1) == y).nonzero()[:20, 0]
    found = certify(model, x[right], y[right], LpBall(0.01, low=0.0, high=1.0))
    assert found.certified.sum() >= 17
