"""Initial weights: what they keep, what they refuse, and how little they widen intervals."""

import math

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, bound
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.training.initialisation import certifiable_init_
from popqorn_train.training.state_widths import widths
from tests.problems import Classifier

GATED = {"gru": nn.GRU, "lstm": nn.LSTM}
CANDIDATE = slice(2 * 8, 3 * 8)


def weights(layer):
    return {name: weight.clone() for name, weight in layer.named_parameters()}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def final_ratio(cell, kind, frames):
    """Radius to signal of the last hidden state, epsilon .1 in [0, 1]."""
    torch.manual_seed(0)
    rnn = GATED[cell](784 // frames, 64, batch_first=True)
    if kind != "default":
        certifiable_init_(rnn, kind, generator=seeded())
    x = torch.rand(64, frames, 784 // frames, generator=seeded(1))
    x = x * (torch.rand(64, 1, 1, generator=seeded(2)) > 0.5)  # so that samples differ
    model = nn.Sequential(rnn, _Last())
    with torch.no_grad():
        ball = LpBall(0.1, low=0.0, high=1.0)
        found = widths(enclose(bound(model).instance(x).graph(ball)), "h")
    return found.ratio[-1].item()


class _Last(nn.Module):
    def forward(self, output):
        return output[0][:, -1]


@pytest.mark.parametrize("cell", sorted(GATED))
def test_after_28_frames_intervals_are_far_narrower_beside_the_signal(cell):
    default, normal, eye = (
        final_ratio(cell, kind, 28) for kind in ("default", "ibp-normal", "eye")
    )
    assert eye < normal < default
    assert eye < default / 10


@pytest.mark.parametrize("cell", sorted(GATED))
def test_the_candidate_passes_the_state_on(cell):
    rnn = certifiable_init_(GATED[cell](3, 8, num_layers=2, bidirectional=True))
    for name, weight in rnn.named_parameters():
        if name.startswith("bias"):
            assert not weight.any()
        if name.startswith("weight_hh"):
            assert (weight[CANDIDATE] - torch.eye(8)).abs().max() < 0.1
            assert weight[CANDIDATE].diagonal().min() > 0.9
            gates = torch.cat([weight[: 2 * 8], weight[3 * 8 :]])
            assert gates.abs().max() < 0.1
            assert gates.any()
        if name.startswith("weight_ih"):
            gates = torch.cat([weight[: 2 * 8], weight[3 * 8 :]])
            assert gates.std() < 0.5 * weight[CANDIDATE].std()


@pytest.mark.parametrize("layer", [nn.RNN, nn.LSTM, nn.GRU])
def test_ibp_normal_keeps_the_radius_of_a_long_sum(layer):
    rnn = certifiable_init_(layer(400, 300), "ibp-normal", generator=seeded())
    for weight in (rnn.weight_ih_l0, rnn.weight_hh_l0):
        assert weight.abs().sum(1).mean().item() == pytest.approx(1, rel=0.02)


MODULES = {
    "deep": lambda: nn.LSTM(3, 8, num_layers=3),
    "both ways": lambda: nn.GRU(3, 8, bidirectional=True, bias=False),
    "lstm cell": lambda: nn.LSTMCell(3, 8),
    "gru cell": lambda: nn.GRUCell(3, 8),
    "inside": lambda: nn.ModuleDict({"deep": nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 8))}),
}


@pytest.mark.parametrize("kind", ["eye", "ibp-normal"])
@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_recurrent_layer_and_only_these_are_set_by_the_generator_alone(module, kind):
    layer = MODULES[module]()
    before = weights(layer)
    assert certifiable_init_(layer, kind, generator=seeded(3)) is layer
    first = weights(layer)
    torch.manual_seed(9)
    certifiable_init_(layer, kind, generator=seeded(3))
    other = weights(layer)
    certifiable_init_(layer, kind, generator=seeded(4))
    for name, weight in layer.named_parameters():
        assert torch.equal(first[name], other[name])
        if name.endswith(("deep.0.weight", "deep.0.bias")):
            assert torch.equal(weight, before[name])
        else:
            assert not torch.equal(first[name], before[name])
            assert torch.equal(weight, first[name]) == ("bias" in name)
            assert weight.requires_grad
            assert weight.is_leaf


def test_without_a_generator_the_global_one_is_used():
    first, second = nn.GRU(3, 8), nn.GRU(3, 8)
    for rnn in (first, second):
        torch.manual_seed(5)
        certifiable_init_(rnn)
    assert torch.equal(first.weight_hh_l0, second.weight_hh_l0)


def test_kinds_of_precision_and_projections_are_kept():
    rnn = certifiable_init_(nn.LSTM(3, 8, proj_size=5).double(), "ibp-normal")
    assert rnn.weight_hr_l0.dtype == torch.float64
    assert rnn.weight_hr_l0.abs().sum(1).mean() < 2


@pytest.mark.parametrize(
    ("module", "kind", "message"),
    [
        (nn.GRU(3, 4), "orthogonal", "`kind` must be one of 'eye', 'ibp-normal'"),
        (nn.Linear(3, 4), "eye", "got a Linear without"),
        (nn.RNN(3, 4), "eye", "is for gated cells"),
        (nn.RNNCell(3, 4), "eye", "is for gated cells"),
        (nn.LSTM(3, 4, proj_size=2), "eye", "proj_size=2"),
        (nn.utils.parametrizations.weight_norm(nn.GRU(3, 4), "weight_ih_l0"), "eye", "computed"),
        (nn.utils.parametrizations.weight_norm(nn.GRU(3, 4), "weight_hh_l0"), "eye", "computed"),
        (nn.utils.parametrizations.weight_norm(nn.LSTMCell(3, 4), "weight_hh"), "eye", "computed"),
    ],
)
def test_what_cannot_be_initialised_is_refused_and_left_alone(module, kind, message):
    before = weights(module)
    with pytest.raises(ValueError, match=message):
        certifiable_init_(module, kind)
    assert all(torch.equal(before[name], weight) for name, weight in module.named_parameters())


def test_a_model_that_was_bounded_before_is_bounded_with_the_new_weights():
    model, x = Classifier("gru").eval(), torch.randn(2, 4, 3)
    ball = LpBall(0.0)
    bound(model).instance(x).graph(ball)
    certifiable_init_(model)
    found = enclose(bound(model).instance(x).graph(ball))
    h = widths(found, "h")
    assert h is not None
    assert math.isclose(h.radius[-1].item(), 0, abs_tol=1e-6)
