"""Training on raw waves: the loss in closed form beside the one through the graph."""

import pytest
import torch

from popqorn_train import CertifiedLoss, certify
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.recipes.classifier import RobustClassifier
from popqorn_train.recipes.data.sequences import SequenceSet, SimilarLengths, padded
from popqorn_train.recipes.networks import SpeechNet, load_net
from popqorn_train.recipes.wave_loss import WaveLoss

EPSILON = 10 ** (-50 / 20)


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    net = SpeechNet(1, 6, 3, filters=4, init="eye")
    lengths = (900, 700, 1100)
    waves = [torch.sin(torch.arange(n) * f) for n, f in zip(lengths, (0.2, 0.7, 1.9), strict=True)]
    waves = [wave + 0.1 * torch.randn(len(wave)) for wave in waves]
    net.front.standardise(waves)
    part = SequenceSet([wave / wave.abs().max() for wave in waves], torch.arange(3))
    return net, *padded([part[at] for at in range(3)])


def test_it_is_close_to_the_loss_through_the_graph(problem):
    net, inputs, y = problem
    closed, graph = WaveLoss(EPSILON), CertifiedLoss(EPSILON)
    assert closed(net, inputs, y).item() == pytest.approx(graph(net, inputs, y).item(), rel=0.05)
    assert closed(net, inputs, y) >= WaveLoss(0.0)(net, inputs, y)
    clean = torch.nn.functional.cross_entropy(net(*inputs), y)
    torch.testing.assert_close(WaveLoss(0.0)(net, inputs, y), clean)


def test_a_step_trains_the_reader_and_raises_margins(problem):
    net, inputs, y = problem
    loss = WaveLoss(EPSILON, kappa=0.2)
    before = certify(net, inputs, y, LpBall(EPSILON), method="ibp").margin
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(8):
        optimizer.zero_grad()
        parts = loss.parts(net, inputs, y)
        parts.total.backward()
        optimizer.step()
    assert (certify(net, inputs, y, LpBall(EPSILON), method="ibp").margin > before).all()


def test_other_networks_and_inputs_are_refused(problem):
    _, inputs, y = problem
    with pytest.raises(TypeError, match="`model` must be a SpeechNet, got Linear"):
        WaveLoss(EPSILON)(torch.nn.Linear(1, 1), inputs, y)
    with pytest.raises(ValueError, match="`features` and `words` must be 1 and None"):
        SpeechNet(10, 6, 3)


def test_a_checkpoint_is_the_network_with_its_front_end(problem, tmp_path):
    net, inputs, _ = problem
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    made = {"state_dict": state}
    RobustClassifier(net).on_save_checkpoint(made)
    torch.save(made, tmp_path / "net.ckpt")
    torch.testing.assert_close(load_net(tmp_path / "net.ckpt")(*inputs), net(*inputs))


def test_batches_hold_similar_lengths_and_every_sample_once():
    lengths = torch.randint(1, 1000, (130,)).tolist()
    order = SimilarLengths(lengths, 8, pool=4)
    chosen = list(order)
    assert sorted(chosen) == list(range(130)) == list(range(len(order)))
    spread = [max(part) - min(part) for part in _batches([lengths[at] for at in chosen], 8)]
    drawn = [max(part) - min(part) for part in _batches(lengths, 8)]
    assert sum(spread) < 0.6 * sum(drawn)
    assert list(order) != chosen


def _batches(values, size):
    return [values[at : at + size] for at in range(0, len(values), size)]
