"""Recurrent layers over several sequences a sample are bounded as one after the other."""

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, UnsupportedModelError, logit_bounds
from tests.problems import F64

B, S, T, F, H, C = 3, 2, 3, 2, 3, 3


def last(result):
    """The last states, of all directions."""
    found = result[1]
    return found[0] if isinstance(found, tuple) else found


def states(result, place):
    """The last states, of one direction."""
    return last(result)[place]


READS = {
    "outputs": (True, lambda result: result[0][:, -1]),
    "a mean": (True, lambda result: result[0].mean(1)),
    "states": (True, lambda result: torch.cat([states(result, -2), states(result, -1)], -1)),
    "states with the sequences first": (True, lambda r: last(r).permute(1, 0, 2).flatten(1)),
    "states by unit": (True, lambda r: last(r)[-2:].permute(1, 2, 0).flatten(1)),
    "squeezed states": (False, lambda result: result[1].squeeze(0)),
}


class Document(nn.Module):
    """Words of sentences, sentences, a head."""

    def __init__(self, kind, read, *, bidirectional, merged, sentences_first=False):
        super().__init__()
        torch.manual_seed(0)
        self.words = kind(F, H, batch_first=True, bidirectional=bidirectional)
        size = H * (1 + bidirectional)
        self.read, self.merged, self.sentences_first = read, merged, sentences_first
        self.sentences, self.head = nn.RNN(size, H, batch_first=True), nn.Linear(H, C)

    def forward(self, x):
        if self.sentences_first:
            x = x.transpose(0, 1)
        if self.merged:
            one, two, *rest = x.shape
            found = self.read(self.words(x.reshape(one * two, *rest))).reshape(one, two, -1)
            found = found.transpose(0, 1) if self.sentences_first else found
        else:
            found = torch.stack([self.read(self.words(x[:, i])) for i in range(x.size(1))], 1)
        return self.head(self.sentences(found)[0][:, -1])


def inputs():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(B, S, T, F, generator=generator, dtype=F64)


def bounds(model, x, epsilon=0.1):
    return logit_bounds(model.double().eval(), x, LpBall(epsilon), method="crown-ibp")


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("name", READS)
def test_bounds_are_those_of_one_sequence_after_the_other(name, kind):
    bidirectional, read = READS[name]
    if name == "squeezed states" and kind is nn.LSTM:
        bidirectional, read = False, lambda result: result[1][1].squeeze(0)
    pair = (
        Document(kind, read, bidirectional=bidirectional, merged=merged) for merged in (True, False)
    )
    for one, two in zip(*(bounds(model, inputs()) for model in pair), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


def test_sequences_before_the_batch_have_the_bounds_of_those_behind():
    read = READS["states"][1]
    pair = (
        Document(nn.GRU, read, bidirectional=True, merged=True, sentences_first=first)
        for first in (True, False)
    )
    for one, two in zip(*(bounds(model, inputs()) for model in pair), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


def test_points_stay_inside_and_a_sample_alone_has_its_bounds():
    model, x = Document(nn.LSTM, READS["states"][1], bidirectional=True, merged=True), inputs()
    lower, upper = bounds(model, x)
    points = x + 0.1 * (2 * torch.rand(60, *x.shape, dtype=F64) - 1).sign()
    with torch.no_grad():
        logits = model(points.flatten(0, 1)).view(60, B, C)
    assert ((lower - 1e-12 <= logits) & (logits <= upper + 1e-12)).all()
    for one, every in zip(bounds(model, x[1:2]), (lower, upper), strict=True):
        torch.testing.assert_close(one, every[1:2], rtol=0, atol=1e-9)


class Started(Document):
    """States of the caller's own."""

    def forward(self, x):
        rows = x.flatten(0, 1)
        found = self.words(rows, x.new_ones(1, len(rows), H))[0][:, -1]
        found = found.reshape(len(x), S, -1)
        return self.head(self.sentences(found)[0][:, -1])


REFUSED = {
    "states of its own": (Started, None, r"stack what it returns: torch\.stack\(\[layer"),
    "another way to read states": (
        Document, lambda result: result[1].permute(0, 2, 1)[0].T, r"Pick .* h_n\[-1\]"
    ),
    "a mean of states": (Document, lambda result: result[1].mean(0), r"Pick .* h_n\[-1\]"),
    "a function of states": (
        Document, lambda result: torch.tanh(result[1]).squeeze(0), r"Pick .* h_n\[-1\]"
    ),
    "joined states": (
        Document, lambda result: torch.cat([result[1], result[1]]).sum(0), r"Pick .* h_n\[-1\]"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_sequence_by_sequence_is_refused_with_a_way_out(name):
    kind, read, way_out = REFUSED[name]
    model = kind(nn.GRU, read, bidirectional=False, merged=True)
    with pytest.raises(UnsupportedModelError, match=way_out):
        bounds(model, inputs())
