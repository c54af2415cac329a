"""Packed sequences: every way to use them, and what is refused."""

import sys
import types

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from popqorn_train import CertifiedLoss, LpBall, UnsupportedModelError, certify, logit_bounds
from popqorn_train.tracing import patches
from tests.bounds.test_backward import contains
from tests.problems import METHODS, recurrent, sequences

CELLS = ("tanh", "relu", "lstm", "gru")
LENGTHS = torch.tensor([2, 6, 4])


class Net(nn.Module):
    """What ``code`` does with a stack and a head."""

    def __init__(self, code, cell="gru", **options):
        super().__init__()
        options = {"batch_first": True, **options}
        self.rnn = recurrent(cell, 3, 4, **options)
        self.second = nn.GRU(4, 4, batch_first=True)
        self.head = nn.Linear(8 if self.rnn.bidirectional else 4, 3)
        self.start = nn.Parameter(torch.randn(1, 1, 4))
        self.code = code

    def forward(self, x, lengths):
        return self.code(self, x, lengths)


def build(code, *args, **options):
    torch.manual_seed(1)
    return Net(code, *args, **options).double().eval()


def states(net, x, lengths):
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    _, state = net.rnn(packed)
    h_n = state[0] if isinstance(state, tuple) else state
    return net.head(torch.cat([h_n[-2], h_n[-1]], 1))


def outputs(net, x, lengths):
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    options = {"batch_first": True, "padding_value": -2.0, "total_length": x.size(1)}
    out, lengths = pad_packed_sequence(net.rnn(packed)[0], **options)
    return net.head(out.sum(1))


def of_the_longest(net, x, lengths):
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return net.head(pad_packed_sequence(net.rnn(packed)[0], batch_first=True)[0].mean(1))


def packed_twice(net, x, lengths):
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    out, _ = net.second(net.rnn(packed)[0])
    out, _ = pad_packed_sequence(out, batch_first=True, total_length=x.size(1))
    return net.head(out[:, 0] + out.sum(1))


def started(net, x, lengths):
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    return net.head(net.rnn(packed, net.start.expand(1, x.size(0), 4).contiguous())[1][0])


def points(x, epsilon):
    moves = torch.rand(200, *x.shape, generator=torch.Generator().manual_seed(2)).double() * 2 - 1
    moves[100:] = moves[100:].sign()
    return x + epsilon * moves


def assert_sound(model, x, lengths):
    with torch.no_grad():
        logits = torch.stack([model(point, lengths) for point in points(x, 0.3)])
    for method in METHODS:
        bounds = logit_bounds(model, (x, lengths), LpBall(0.3), method=method)
        assert contains(bounds, logits), method


@pytest.mark.one_in(4)
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_states_of_both_directions_are_enclosed(cell, depth):
    model = build(states, cell, bidirectional=True, num_layers=depth)
    assert_sound(model, sequences(3, 6), LENGTHS)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("code", [outputs, packed_twice, started], ids=lambda code: code.__name__)
def test_what_is_unpacked_or_packed_on_is_enclosed(code):
    assert_sound(build(code), sequences(3, 6), LENGTHS)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("cell", CELLS)
def test_a_packed_sample_has_the_bounds_of_the_layer_without_packing(cell):
    model, x = build(states, cell, bidirectional=True), sequences(3, 6)
    plain = Plain(model)
    for method in METHODS:
        whole = logit_bounds(model, (x, LENGTHS), LpBall(0.2, 2), method=method)
        for index, length in enumerate(LENGTHS.tolist()):
            alone = x[index : index + 1, :length]
            found = logit_bounds(plain, alone, LpBall(0.2, 2), method=method)
            for side, both in zip(found, whole, strict=True):
                torch.testing.assert_close(side, both[index : index + 1], rtol=0, atol=1e-12)


class Plain(nn.Module):
    """The model without packing, for one sequence."""

    def __init__(self, model):
        super().__init__()
        self.rnn, self.head = model.rnn, model.head

    def forward(self, x):
        _, state = self.rnn(x)
        h_n = state[0] if isinstance(state, tuple) else state
        return self.head(torch.cat([h_n[-2], h_n[-1]], 1))


def test_a_model_that_wants_sorted_samples_takes_them_in_any_order():
    def forward(net, x, lengths):
        return net.head(net.rnn(pack_padded_sequence(x, lengths, batch_first=True))[1][0])

    model, x = build(forward), sequences(3, 6)
    order = LENGTHS.argsort(descending=True)
    expected = logit_bounds(model, (x[order], LENGTHS[order]), LpBall(0.1))
    found = logit_bounds(model, (x, LENGTHS), LpBall(0.1))
    torch.testing.assert_close(found.lower[order], expected.lower, rtol=0, atol=1e-12)


def test_lengths_as_a_list_of_the_full_length():
    class Full(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, [x.shape[1]] * len(x), batch_first=True)
            return self.head(self.rnn(packed)[1][0][-1])

    model, x = Full().double().eval(), sequences(4, 3)
    torch.testing.assert_close(logit_bounds(model, x, LpBall(0.0)).lower, model(x))


def test_padding_adds_nothing_and_gradients_are_finite():
    model, x = build(states, bidirectional=True), sequences(3, 6)
    loss = CertifiedLoss(0.1, alpha=0.5)
    loss(model, (x, LENGTHS), torch.tensor([0, 1, 2])).backward()
    assert all(w.grad.isfinite().all() for w in model.rnn.parameters())
    other = x.clone()
    for row, length in zip(other, LENGTHS.tolist(), strict=True):
        row[length:] = 1e3
    y = torch.tensor([0, 1, 2])
    found = [certify(model, (inputs, LENGTHS), y, LpBall(0.1)).margins for inputs in (x, other)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def packed_data(net, x, lengths):
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return net.head(net.rnn(packed)[0].data)


def wrong_axis(net, x, lengths):
    return net.head(net.rnn(pack_padded_sequence(x, lengths[:2], enforce_sorted=False))[1][0])


def branching(net, x, lengths):
    out = net.rnn(x)[0]
    return net.head(out[:, int(lengths[0]) - 1])


REFUSED = {
    "its data": (packed_data, UnsupportedModelError, r"expected logits \(B, C\)"),
    "other lengths": (wrong_axis, ValueError, "`inputs`"),
    "the longest of the batch": (of_the_longest, UnsupportedModelError, "mixes samples"),
    "a length as a number": (branching, UnsupportedModelError, "data into a Python number"),
}


@pytest.mark.parametrize(("code", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_with_lengths_is_refused(code, error, message):
    with pytest.raises(error, match=message):
        logit_bounds(build(code), (sequences(3, 6), LENGTHS), LpBall(0.1))


def test_a_name_that_a_module_gets_after_a_trace_is_recorded_too(monkeypatch):
    helper = types.ModuleType("helper_of_a_user")
    exec("def pack(*args, **options): return pack_padded_sequence(*args, **options)", vars(helper))
    monkeypatch.setitem(sys.modules, helper.__name__, helper)

    def last(net, x, lengths):
        packed = helper.pack(x, lengths, batch_first=True, enforce_sorted=False)
        return net.head(net.rnn(packed)[1][-1])

    def plain(net, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return net.head(net.rnn(packed)[1][-1])

    x, ball = sequences(3, 6), LpBall(0.1)
    for _ in range(2):  # the first may import modules, at which all are looked at again
        known = logit_bounds(build(plain), (x, LENGTHS), ball, method="ibp")
    helper.pack_padded_sequence = pack_padded_sequence
    for one, other in zip(
        logit_bounds(build(last), (x, LENGTHS), ball, method="ibp"), known, strict=True
    ):
        torch.testing.assert_close(one, other)


MISSED = {
    "packing": "net.head(net.rnn(pack_padded_sequence(x, lengths, True, False))[1][-1])",
    "unpacking": "net.head(pad_packed_sequence(net.rnn(rnn.pack_padded_sequence(x, lengths, True, "
    "False))[0], True)[0].sum(1))",
    "a class": "net.head(net.rnn(x)[1][-1] * (2 if isinstance(rnn.pack_padded_sequence(x, lengths, "
    "True, False), PackedSequence) else 3))",
}


@pytest.mark.parametrize("code", MISSED.values(), ids=MISSED)
def test_a_name_that_is_missed_is_refused(code, monkeypatch):
    helper = types.ModuleType("helper_of_a_user")
    exec("from torch.nn.utils import rnn\nfrom torch.nn.utils.rnn import *", vars(helper))
    exec(f"def run(net, x, lengths): return {code}", vars(helper))
    monkeypatch.setitem(sys.modules, helper.__name__, helper)

    def bounds():
        net = build(lambda *given: helper.run(*given))
        return logit_bounds(net, (sequences(3, 6), LENGTHS), LpBall(0.1), method="ibp")

    assert bounds().lower.isfinite().all()
    found = [names for names in patches._naming() if names is not vars(helper)]
    monkeypatch.setattr(patches, "_naming", lambda: found)
    with pytest.raises(UnsupportedModelError):
        bounds()
