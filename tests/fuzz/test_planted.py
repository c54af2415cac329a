"""Counterexamples that gradient descent does not find: no method certifies what holds one."""

import pytest
import torch

from tests.fuzz.planted import FAR, certified_shares, is_hidden, kept, main
from tests.fuzz.planted_nets import FEATURES, FRAMES, Shares, Unrolled, new_net

NETS = kept()
FAST = ("ibp", "crown-ibp", "popqorn-fast", "popqorn")


@pytest.mark.parametrize("place", range(len(NETS)))
def test_what_descent_misses_is_not_certified(place):
    found = NETS[place]
    assert is_hidden(found)
    shares = certified_shares(found, FAST)
    assert shares["ibp"] < FAR < max(shares.values()) < 1  # only tight bounds come so far


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "pooled rnn"])
def test_networks_by_their_formulas_are_those_of_the_layers(kind):
    net, x = new_net(kind), torch.randn(3, FRAMES, FEATURES, dtype=torch.float64)
    torch.testing.assert_close(Unrolled(net)(x), net(x))


def test_shares_are_those_of_the_states_in_the_mean():
    net, x = new_net("attention"), torch.randn(3, FRAMES, FEATURES, dtype=torch.float64)
    mean = (Shares(net)(x).unsqueeze(2) * net.states(x)).sum(1)
    torch.testing.assert_close(net.head(torch.tanh(net.mix(mean))), net(x))


def test_a_method_that_certifies_a_planted_point_is_found_out(monkeypatch):
    monkeypatch.setattr("popqorn_train.certificates.certificate.proved", torch.isfinite)
    with pytest.raises(AssertionError, match="certifies the planted point"):
        certified_shares(NETS[0], ("ibp",))


@pytest.mark.slow
def test_fifty_planted_points_are_not_certified(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["planted"])
    main()
    assert "certified: 0 of 50" in capsys.readouterr().out
