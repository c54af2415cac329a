"""What forward does to the rows of a packed sequence is done to the frames of the padded one."""

import pytest
import torch
from torch import nn
from torch.nn.functional import glu, relu, softmax
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from popqorn_train import LpBall, UnsupportedModelError, certify, logit_bounds
from tests.problems import METHODS, sequences

LENGTHS = torch.tensor([3, 5, 2, 4])
OTHERS = torch.tensor([1, 2, 4, 4])


class Rows(nn.Module):
    """A front end on packed rows, a recurrent layer, one more layer on rows, a sum."""

    def __init__(self, made="class", *, batch_first=True, rows=None):
        super().__init__()
        torch.manual_seed(0)
        self.front, self.back = nn.Linear(3, 3), nn.Linear(4, 4)
        self.rnn, self.head = nn.GRU(3, 4), nn.Linear(4, 3)
        self.made, self.batch_first, self.rows = made, batch_first, rows or torch.tanh
        self.double()

    def change(self, p, data):
        if self.made == "replace":
            return p._replace(data=data)
        assert isinstance(p, PackedSequence)
        rest = p.batch_sizes, p.sorted_indices, p.unsorted_indices
        return PackedSequence(data, *rest)

    def forward(self, x, lengths):
        x = x if self.batch_first else x.transpose(0, 1)
        p = pack_padded_sequence(x, lengths, self.batch_first, enforce_sorted=False)
        p = self.change(p, self.rows(self.front(p.data)))
        out = self.rnn(p)[0]
        out = self.change(out, torch.relu(self.back(out.data)))
        return self.head(pad_packed_sequence(out, batch_first=True)[0].sum(1))


class Padded(Rows):
    """The same without packed rows."""

    def forward(self, x, lengths):
        x = torch.tanh(self.front(x))
        p = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        h = torch.relu(self.back(pad_packed_sequence(self.rnn(p)[0], batch_first=True)[0]))
        mask = torch.arange(h.size(1)) < lengths[:, None]
        return self.head((h * mask[..., None]).sum(1))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("made", ["class", "replace"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_rows_are_bounded_as_padded_frames(made, batch_first, method):
    model, right, x = Rows(made, batch_first=batch_first).eval(), Padded().eval(), sequences(4, 5)
    for lengths in (LENGTHS, OTHERS):  # other lengths after the first trace
        y = right(x, lengths).argmax(1)
        torch.testing.assert_close(model(x, lengths), right(x, lengths))
        one, two = (
            certify(m, (x, lengths), y, LpBall(0.03, 2), method=method) for m in (model, right)
        )
        torch.testing.assert_close(one.margins, two.margins)
    alone = certify(model, (x[[2]], lengths[[2]]), y[[2]], LpBall(0.03, 2), method=method)
    torch.testing.assert_close(alone.margins, one.margins[[2]])


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.rnn = nn.Embedding(9, 3), nn.LSTM(3, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens, lengths):
        p = pack_padded_sequence(tokens, lengths, batch_first=True, enforce_sorted=False)
        rest = p.batch_sizes, p.sorted_indices, p.unsorted_indices
        p = PackedSequence(self.words(p.data), *rest)
        return self.head(self.rnn(p)[1][0][-1])


def test_embeddings_of_packed_tokens_move():
    model, tokens = Words().eval(), torch.arange(20).view(4, 5) % 9
    y = model(tokens, LENGTHS).argmax(1)
    found = certify(model, (tokens, LENGTHS), y, LpBall(0.01))
    changed = tokens.clone()
    changed[0, 3:] = 8  # padding
    torch.testing.assert_close(certify(model, (changed, LENGTHS), y, LpBall(0.01))[0], found[0])
    assert found.margins.isfinite().any()


ROW_BY_ROW = {
    "mean": lambda d: d - d.mean(-1, keepdim=True),
    "maximum": lambda d: d - d.amax(-1, keepdim=True),
    "slices": lambda d: torch.cat([d[..., 1:].tanh(), 2 * d[..., :1]], -1),
    "gates": lambda d: glu(torch.cat([d, -d], -1)),
    "cumulative": lambda d: d.cumsum(dim=-1),
    "norm": lambda d: nn.functional.layer_norm(d, (3,), eps=0.1),
    "constants": lambda d: (
        torch.where(torch.tensor([True, False, True]), d, 0.5 * d + 1) * d.size(-1)
    ),
}


@pytest.mark.one_in(12)
@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_what_counts_axes_from_the_last_one_is_bounded(name):
    class Twin(Rows):
        def forward(self, x, lengths):
            x = self.rows(self.front(x))
            p = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            h = torch.relu(self.back(pad_packed_sequence(self.rnn(p)[0], batch_first=True)[0]))
            return self.head((h * (torch.arange(h.size(1)) < lengths[:, None])[..., None]).sum(1))

    x, rows = sequences(4, 5), ROW_BY_ROW[name]
    for lengths in (LENGTHS, OTHERS):
        found = [
            logit_bounds(kind(rows=rows).eval(), (x, lengths), LpBall(0.03))
            for kind in (Rows, Twin)
        ]
        torch.testing.assert_close(*found)


# The recording has (B, T, F) in the place of (rows, F): decided by what is called, since each of
# these may give the right numbers at the clean input.
OTHERWISE = {
    "softmax": lambda d: softmax(d, 1),
    "mean of rows": lambda d: d - d.mean(0),
    "axis from the front": lambda d: d - relu(d.amax(1, keepdim=True) - 9.0),
    "place from the front": lambda d: d - relu(d[:, :1] - 9.0),
    "no axis": lambda d: d - relu(d.amax() - 9.0),
    "cumulative": lambda d: d.cumsum(0),
    "flip": lambda d: d.flip(0),
    "number of rows": lambda d: d / d.size(0),
    "length": lambda d: d / len(d),
    "shape": lambda d: d.view(d.shape[0], -1),
    "axes": lambda d: d * d.dim(),
    "size from the front": lambda d: d * d.size(1),
    "norm": lambda d: nn.functional.batch_norm(d, torch.zeros(3).double(), torch.ones(3).double()),
    "a number per row": lambda d: d + torch.arange(14.0)[:, None],
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_whatever_else_is_done_to_rows_is_refused(name):
    model, x = Rows(rows=OTHERWISE[name]).eval(), sequences(4, 5)
    with pytest.raises(UnsupportedModelError, match=r"packed rows.*test_packed_data"):
        certify(model, (x, LENGTHS), torch.zeros(4).long(), LpBall(0.03))


FIELDS = {
    "sizes": lambda p, q: p.data * (p.batch_sizes.sum() > 3),
    "number of sizes": lambda p, q: p.data / len(p.batch_sizes),
    "order": lambda p, q: p.data * (p.sorted_indices[0] + 1),
    "places": lambda p, q: p[0],
    "data of another sequence": lambda p, q: q.data,
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_packed_sequences_go_where_they_belong(name):
    class Mixed(Rows):
        def forward(self, x, lengths):
            p = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            q = pack_padded_sequence(x, lengths.flip(0), batch_first=True, enforce_sorted=False)
            p = p._replace(data=FIELDS[name](p, q))
            return self.head(pad_packed_sequence(self.rnn(p)[0], batch_first=True)[0].sum(1))

    with pytest.raises(UnsupportedModelError, match="packed"):
        certify(Mixed().eval(), (sequences(4, 5), LENGTHS), torch.zeros(4).long(), LpBall(0.03))


def test_isinstance_and_real_sequences_are_as_ever_afterwards():
    certify(Rows().eval(), (sequences(4, 5), LENGTHS), torch.zeros(4).long(), LpBall(0.0))
    p = pack_padded_sequence(sequences(2, 3), torch.tensor([3, 2]), batch_first=True)
    assert isinstance(p, PackedSequence)
    assert isinstance(PackedSequence(*p), tuple)
