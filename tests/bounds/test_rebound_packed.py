"""Packed sequences under re-bounding: every sample as if it were alone, at its own length."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from popqorn_train import LpBall, bound, certified_radius, certify, certify_loader, frame_radii
from popqorn_train.bounds.node import Nonlinear
from popqorn_train.bounds.picking import alike, twins
from tests.problems import F64, recurrent, sequences

TIGHT = ("popqorn-tight", "popqorn-tightest")
MIXED = torch.tensor([1, 3, 2])
LENGTHS = {"mixed": MIXED, "short": torch.tensor([1, 2, 1]), "equal": torch.tensor([2, 2, 2])}


class Net(nn.Module):
    """Last states of a packed stack, or its outputs summed up, and a nonlinear head."""

    def __init__(self, cell, *, batch_first=True, unpacks=False, **options):
        super().__init__()
        torch.manual_seed(3)
        self.rnn = recurrent(cell, 3, 3, batch_first=batch_first, **options)
        self.hidden = nn.Linear(3 * (1 + self.rnn.bidirectional), 3)
        self.head, self.unpacks = nn.Linear(3, 3), unpacks
        self.double().eval().requires_grad_(False)
        for weight in self.rnn.parameters():
            weight.mul_(1.8)

    def forward(self, x, lengths):
        first = self.rnn.batch_first
        packed = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
        out, state = self.rnn(packed)
        if self.unpacks:
            h = pad_packed_sequence(out, batch_first=first)[0].sum(1 if first else 0)
        else:
            h_n = state[0] if isinstance(state, tuple) else state
            h = torch.cat([*h_n[-2:]], 1) if self.rnn.bidirectional else h_n[-1]
        return self.head(self.hidden(h).relu())


def problem(model, lengths=MIXED, seed=0):
    """Inputs with their batch where the model wants it, and the classes it gives them."""
    x = sequences(len(lengths), 3, seed=seed)
    x = x if model.rnn.batch_first else x.transpose(0, 1)
    return (x, lengths), model(x, lengths).argmax(1)


def alone(model, inputs, index):
    """One sample without its padding."""
    x, lengths = inputs
    axis = 0 if model.rnn.batch_first else 1
    one = x.narrow(axis, index, 1).narrow(1 - axis, 0, int(lengths[index]))
    return one, lengths[index : index + 1]


def assert_true_inside(model, inputs, y, radius):
    """No point sampled inside the radii, corners too, has another class."""
    x, lengths = inputs
    generator = torch.Generator().manual_seed(5)
    moves = torch.rand(100, *x.shape, generator=generator, dtype=F64) * 2 - 1
    moves[50:] = moves[50:].sign()
    shape = (-1, 1, 1) if model.rnn.batch_first else (1, -1, 1)
    for move in moves:
        classes = model(x + radius.view(shape) * move, lengths).argmax(1)
        assert ((classes == y) | (radius == 0)).all()


SHAPES = {
    "rnn": ("tanh", {}),
    "lstm": ("lstm", {"batch_first": False, "unpacks": True}),
    "two layers": ("gru", {"num_layers": 2}),
    "both ways": ("relu", {"bidirectional": True, "unpacks": True}),
    "two layers, both ways": ("tanh", {"bidirectional": True, "num_layers": 2}),
    "gru, both ways": ("gru", {"bidirectional": True}),
}
SLOW = ("rnn", "two layers", "gru, both ways")
SHAPED = [
    pytest.param(*shape, id=name, marks=[pytest.mark.slow] * (name in SLOW))
    for name, shape in SHAPES.items()
]
shapes = pytest.mark.parametrize(("cell", "options"), SHAPED)


@pytest.mark.one_in(3)
@shapes
@pytest.mark.parametrize("method", TIGHT)
def test_margins_in_a_mixed_batch_are_those_of_the_samples_alone(cell, options, method):
    model = Net(cell, **options)
    inputs, y = problem(model)
    radius = certified_radius(model, inputs, y, rtol=0.1, confirm=None) * 1.08
    whole = certify(model, inputs, y, LpBall(radius), method=method)
    cheap = certify(model, inputs, y, LpBall(radius))
    assert (whole.margins >= cheap.margins).all()
    for index in range(len(y)):
        ball = LpBall(radius[index].item())
        one = certify(model, alone(model, inputs, index), y[index : index + 1], ball, method=method)
        torch.testing.assert_close(one.margins[0], whole.margins[index], rtol=0, atol=1e-9)
    assert_true_inside(model, inputs, y, torch.where(whole.certified, radius, 0))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_radii_of_packed_samples_are_those_without_padding(lengths):
    model = Net("gru")
    inputs, y = problem(model, lengths)
    settings = {"method": "popqorn-tight", "rtol": 0.1, "max_radius": 2.0}
    whole = certified_radius(model, inputs, y, **settings)
    for index in range(len(y)):
        one = alone(model, inputs, index), y[index : index + 1]
        found = certified_radius(model, *one, **settings)
        torch.testing.assert_close(found[0], whole[index], rtol=0, atol=1e-9)
    assert_true_inside(model, inputs, y, whole)


def test_the_tight_method_proves_more_of_samples_of_every_length():
    model = Net("lstm")
    lengths = torch.tensor([1, 1, 2, 2, 3, 3])
    inputs, y = problem(model, lengths, seed=2)
    radius = certified_radius(model, inputs, y) * 1.02
    found = certify(model, inputs, y, LpBall(radius), method="popqorn-tight").certified
    assert {*lengths[found].tolist()} == {1, 2, 3}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", TIGHT)
def test_frame_radii_of_packed_samples_are_those_without_padding(method):
    model = Net("tanh")
    inputs, y = problem(model)
    settings = {"method": method, "rtol": 0.1, "max_radius": 2.0}
    whole = frame_radii(model, inputs, y, **settings)
    assert whole.shape == (3, 3)
    for index, length in enumerate(MIXED.tolist()):
        one = alone(model, inputs, index), y[index : index + 1]
        found = frame_radii(model, *one, **settings)
        torch.testing.assert_close(found[0], whole[index, :length], rtol=0, atol=1e-9)
        assert (whole[index, length:] == 2.0).all()


def test_batches_of_other_lengths_follow_each_other():
    model = Net("tanh")
    batches = [problem(model, lengths) for lengths in LENGTHS.values()]
    ball = LpBall(0.15)
    rows = certify_loader(model, batches, ball, method="popqorn-tight", progress=False)
    expected = [certify(model, *batch, ball, method="popqorn-tight").margin for batch in batches]
    assert not any(row.error for row in rows)
    found = torch.tensor([row.margin for row in rows], dtype=F64)
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-9)


class Plain(nn.Module):
    """An LSTM whose first state is an argument."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.rnn, self.head = nn.LSTM(3, 3, batch_first=True), nn.Linear(3, 3)
        self.double().eval().requires_grad_(False)

    def forward(self, x, start):
        state = start.unsqueeze(0)
        return self.head(self.rnn(x, (state, state))[0][:, -1])


def uneven(kind):
    """A graph of samples that alone would have other nodes each."""
    x = sequences(3, 3)
    if kind == "lengths":
        return bound(Net("lstm", bidirectional=True)).instance((x, MIXED)).graph(LpBall(0.1))
    start = torch.zeros(3, 3, dtype=F64)
    ball = LpBall(0.1)
    if kind == "first states":
        start[2] = 1.0
    else:
        ball = LpBall(0.1, frames=torch.ones(3, 3, dtype=torch.bool).triu())
    return bound(Plain()).instance((x, start)).graph(ball)


@pytest.mark.parametrize("kind", ["lengths", "first states", "frames that move"])
def test_a_picked_graph_has_the_same_nodes(kind):
    output = uneven(kind)
    for chosen in ([0], [2], [1, 1, 2], [2, 0]):
        picked = output.pick(torch.tensor(chosen))
        pairs = twins(output, picked)
        again = twins(picked, picked.pick(torch.tensor([0])))
        assert len(pairs) == len(again)
        assert all(one.time == two.time for one, two in pairs.items())


KINDS = [("first states", TIGHT[0]), ("frames that move", TIGHT[1])]
OTHERS = [("first states", TIGHT[1]), ("frames that move", TIGHT[0])]
SLOWER = [pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("kind", "method"), [*KINDS, *SLOWER])
def test_samples_of_other_first_states_and_frames_are_bounded_together(kind, method):
    model, x, start = Plain(), sequences(3, 3), torch.zeros(3, 3, dtype=F64)
    frames = torch.ones(3, 3, dtype=torch.bool)
    if kind == "first states":
        start[1::2] = torch.tensor([1.0, -1.0, 0.5], dtype=F64)
    else:
        frames = frames.triu()
    y = model(x, start).argmax(1)
    radius = certified_radius(model, (x, start), y, frames=frames) * 1.05
    whole = certify(model, (x, start), y, LpBall(radius, frames=frames), method=method)
    for i in range(3):
        part = slice(i, i + 1)
        ball = LpBall(radius[i].item(), frames=frames[i])
        one = certify(model, (x[part], start[part]), y[part], ball, method=method)
        torch.testing.assert_close(one.margins[0], whole.margins[i], rtol=0, atol=1e-9)


def test_samples_of_one_length_need_no_choice_between_frames():
    output = uneven("lengths")
    groups = alike(output, torch.tensor([0, 1, 2, 1]))
    assert sorted(group.tolist() for group in groups) == [[0], [1, 1], [2]]
    for group in groups:
        own = output.anew(group)
        last = max(node.time for node in twins(own, own) if isinstance(node, Nonlinear))
        assert last == MIXED[group[0]] - 1
        assert len(alike(own, torch.arange(len(group)))) == 1
