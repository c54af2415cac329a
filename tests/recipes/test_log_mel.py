"""Log-mel features of a wave: as numpy's FFT has them, and certified from the wave on."""

import numpy as np
import pytest
import torch
from torch import nn

from popqorn_train import LpBall, certify, logit_bounds
from popqorn_train.recipes.log_mel import LogMel

SETTINGS = {"filters": 4, "rate": 800, "size": 32, "step": 25}


def front_end(**changes):
    return LogMel(**{**SETTINGS, **changes})


def wave(count=2, length=130):
    torch.manual_seed(0)
    ramp = torch.linspace(0, 60, length)
    return torch.sin(ramp * torch.tensor([[1.0], [2.3]])[:count]) + 0.1 * torch.randn(count, length)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.front = front_end()
        self.rnn, self.out = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.rnn(self.front(x))[0][:, -1])


def test_energies_are_those_of_a_fourier_transform():
    front, x = front_end(), wave(1)[0]
    frame = x[25:57].double().numpy()
    emphasised = frame - 0.97 * np.concatenate([[0.0], frame[:-1]])
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(32) / 32)
    power = np.abs(np.fft.rfft(emphasised * window)) ** 2 / 32
    energies = power @ front.mel[:17].double().numpy()
    peak = x.abs().max().double().numpy()
    expected = np.log(energies / peak**2 + front.floor.double().numpy())
    np.testing.assert_allclose(front(x[None])[0, 1].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_multiples_of_a_wave_have_the_same_features():
    front, x = front_end(), wave()
    torch.testing.assert_close(front(1000 * x), front(x), rtol=1e-4, atol=1e-4)


def test_only_whole_frames_count():
    front, x = front_end(), wave()
    lengths = torch.tensor([31, 32, 56, 57, 130])
    assert front.frames(lengths).tolist() == [0, 1, 1, 2, 4]
    longer = nn.functional.pad(x, (0, 70))
    torch.testing.assert_close(front(longer)[:, :4], front(x))


def test_features_are_standardised_by_the_waves_given():
    front, x = front_end(), wave()
    front.standardise([*x])
    found = front(x).flatten(0, 1)
    torch.testing.assert_close(found.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std(0).mean(), torch.tensor(1.0))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "popqorn", "popqorn-fast"])
def test_a_network_on_features_is_certified_from_the_wave_on(method):
    net, x = Net().double().eval(), wave().double()
    ball = LpBall(10 ** (-50 / 20) * x.abs().max().item())
    lower, upper = logit_bounds(net, x, ball, method=method)
    d = torch.randn(500, *x.shape, dtype=torch.float64).sign() * ball.epsilon
    values = net((x + d).flatten(0, 1)).view(500, 2, 3)
    assert torch.maximum(lower - values, values - upper).max() <= 0
    y = net(x).argmax(1)
    assert (certify(net, x, y, LpBall(1e-5), method=method).margin > 0).all()


@pytest.mark.parametrize("changes", [{"filters": 0}, {"low": 400.0}, {"step": 0}])
def test_arguments_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match="must be at least 1"):
        front_end(**changes)


@pytest.mark.parametrize("level", [-60, -40, -20])
def test_features_of_every_perturbed_wave_lie_between_their_ends(level):
    front, x = front_end().double(), wave().double()
    front.standardise([*x])
    share = 10 ** (level / 20)
    lower, upper = front.ranges(x, share)
    d = torch.randn(500, *x.shape, dtype=torch.float64).sign() * share * x.abs().amax(1)[:, None]
    values = front((x + d).flatten(0, 1)).view(500, *lower.shape)
    assert torch.maximum(lower - values, values - upper).max() <= 1e-9
    assert (upper - lower).max() < 20 * (values.amax(0) - values.amin(0)).max()


def test_ends_meet_where_nothing_moves():
    front, x = front_end(), wave()
    for end in front.ranges(x, 0.0):
        torch.testing.assert_close(end, front(x))
