"""Buffers move as under cross entropy, whatever the objective."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from popqorn_train import objectives
from popqorn_train.training.running_statistics import moves_buffers


class Net(nn.Module):
    """BatchNorm of the input, after a convolution or of the last state."""

    def __init__(self, where):
        super().__init__()
        self.where = where
        self.conv = nn.Conv1d(3, 3, 1)
        self.norm = nn.BatchNorm1d(5 if where == "state" else 3)
        self.rnn, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        x = x.transpose(1, 2)
        if self.where == "conv":
            x = self.norm(self.conv(x)).relu()
        if self.where == "input":
            x = self.norm(x)
        last = self.rnn(x.transpose(1, 2))[0][:, -1]
        return self.head(self.norm(last) if self.where == "state" else last)


MAKERS = {name: make for name, make in objectives.OBJECTIVES.items() if name != "standard"}
MAKERS["mixed"] = lambda epsilon: objectives.mixture(
    [objectives.ibp(epsilon), objectives.mtl(epsilon, kappa=0.5)], [0.5, 0.5]
)
MAKERS["fused"] = lambda epsilon: objectives.crown_ibp(epsilon, fused=True)
MAKERS["clean and attacked"] = lambda epsilon: objectives.pgd(epsilon, kappa=0.5)


def batch():
    x = 3 + 2 * torch.randn(8, 4, 3)
    return x, torch.arange(8) % 3


def buffers(model):
    return {name: value.clone() for name, value in model.named_buffers()}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("where", ["input", "conv", "state"])
@pytest.mark.parametrize("name", MAKERS)
def test_running_statistics_move_as_under_cross_entropy(name, where):
    model, loss = Net(where), MAKERS[name](0.01)
    other = copy.deepcopy(model)
    for _ in range(3):
        x, y = batch()
        loss(model, x, y).backward()
        cross_entropy(other(x), y)
        assert all(torch.equal(value, buffers(other)[n]) for n, value in buffers(model).items())
    assert model.norm.num_batches_tracked == 3
    model.eval()
    before = buffers(model)
    loss(model, x, y)
    assert all(torch.equal(value, buffers(model)[n]) for n, value in before.items())


@pytest.mark.parametrize("where", ["input", "conv", "state"])
@pytest.mark.parametrize("name", ["ibp", "mtl", "mixed", "clean and attacked"])
def test_gradients_are_those_of_the_statistics_that_the_bound_saw(name, where):
    model, (x, y) = Net(where), batch()
    for _ in range(20):
        model(x)  # statistics that fit, or bounds are too wide to compare
    moved = copy.deepcopy(model)
    moved(x)
    moved.norm.momentum = 0.0  # they stay from here on
    gradients = []
    for one in (model, moved):
        MAKERS[name](0.01)(one, x, y).backward()
        gradients.append([p.grad for p in one.parameters() if p.grad is not None])
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right)


class Averaging(nn.Module):
    """A running mean that is no BatchNorm, and a constant."""

    def __init__(self, *, moves):
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 3)
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("mean", torch.zeros(3))
        self.moves, self.calls = moves, []

    def forward(self, x):
        if self.training:
            self.calls.append(1)
            if self.moves:
                self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
        return self.head(nn.functional.dropout(self.rnn(x * self.scale)[0][:, -1], 0.1, False))


def test_other_buffers_that_forward_moves_move_too():
    model, (x, y) = Averaging(moves=True), batch()
    loss = objectives.ibp(0.01)
    for _ in range(2):
        loss(model, x, y)
    torch.testing.assert_close(model.mean, 0.19 * x.mean((0, 1)))


def test_a_model_whose_buffers_stay_is_not_called_again_and_draws_nothing():
    model, (x, y) = Averaging(moves=False), batch()
    loss = objectives.ibp(0.01)
    loss(model, x, y)
    state, called = torch.random.get_rng_state(), len(model.calls)
    loss(model, x, y)
    assert len(model.calls) == called
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_trial_leaves_nothing_behind():
    model, (x, _) = Net("conv"), batch()
    before, state = dict(model.named_buffers()), torch.random.get_rng_state()
    values = buffers(model)
    assert moves_buffers(model, lambda: model(x + torch.rand(1)))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, buffer in model.named_buffers():
        assert buffer is before[name]
        assert torch.equal(buffer, values[name])


def test_a_sanity_check_in_eval_mode_does_not_settle_it():
    model, (x, y) = Net("conv"), batch()
    loss = objectives.ibp(0.01)
    loss(model.eval(), x, y)
    loss(model.train(), x, y)
    assert model.norm.num_batches_tracked == 1
