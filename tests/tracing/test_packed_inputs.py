"""A packed sequence as the input of a model is the padded one with its lengths."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    unpack_sequence,
)
from torch.utils.data import DataLoader

from popqorn_train import (
    Box,
    CertifiedLoss,
    LpBall,
    UnsupportedModelError,
    bound,
    certified_radius,
    certify,
    certify_loader,
    empirical_radius,
    frame_radii,
    logit_bounds,
)
from popqorn_train.callbacks import CertifiedRadiusMonitor
from popqorn_train.certificates.pgd import attack
from popqorn_train.evaluation.provenance import data_fingerprint
from popqorn_train.tracing.packed_inputs import join_packed, pick_packed
from tests import fitting
from tests.bounds.test_backward import contains
from tests.fitting import Classifier
from tests.problems import METHODS, recurrent

LENGTHS = (3, 5, 2, 4)
TARGET = torch.tensor([0, 1, 2, 0])


def ends(net, p):
    state = net.rnn(p)[1]
    h_n = state[0] if isinstance(state, tuple) else state
    return net.head(h_n[-1])


def total(net, p):
    return net.head(pad_packed_sequence(net.rnn(p)[0], batch_first=True)[0].sum(1))


def time_first(net, p):
    out, lengths = pad_packed_sequence(net.rnn(p)[0])
    mask = torch.arange(out.size(0))[:, None] < lengths
    return net.head(out.masked_fill(~mask[..., None], -math.inf).amax(0))


def rows(net, p):
    data = torch.tanh(net.front(p.data))
    p = nn.utils.rnn.PackedSequence(data, p.batch_sizes, p.sorted_indices, p.unsorted_indices)
    return ends(net, p)


def either(net, p):
    assert isinstance(p, PackedSequence)
    assert isinstance(p, nn.utils.rnn.PackedSequence)
    return ends(net, p)


class Net(nn.Module):
    """Takes a packed sequence."""

    def __init__(self, code, cell="lstm"):
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Linear(3, 3)
        self.rnn, self.head = recurrent(cell, 3, 4), nn.Linear(4, 3)
        self.code = code
        self.double().eval()

    def forward(self, p):
        return self.code(self, p)


class Padded(Net):
    """The same, which packs itself."""

    def forward(self, x, lengths):
        return self.code(self, pack_padded_sequence(x, lengths, True, enforce_sorted=False))


def samples(lengths=LENGTHS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, 3, generator=generator).double() for length in lengths]


def both(lengths=LENGTHS, seed=1):
    """A packed batch, and a padded one with its lengths."""
    some = samples(lengths, seed)
    padded = pad_sequence(some, batch_first=True, padding_value=7.0)
    return pack_sequence(some, enforce_sorted=False), (padded, torch.tensor(lengths))


def close(one, two):
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


CODES = {
    "popqorn": (ends, total, time_first, rows, either),
    "popqorn-fast": (ends, total, rows),
    "crown-ibp": (total, rows),
    "ibp": (total, rows),
}
CASES = [(code, method) for method in METHODS for code in CODES[method]]


@pytest.mark.one_in(8)
@pytest.mark.parametrize(("code", "method"), CASES)
def test_bounds_are_those_of_padded_inputs_and_lengths(code, method):
    model, right = Net(code), Padded(code)
    for lengths in (LENGTHS, (1, 2, 6), (4, 4)):  # other batches after the first trace
        packed, padded = both(lengths)
        y = torch.arange(len(lengths)) % 3
        close(model(packed), right(*padded))
        for ball in (LpBall(0.05, 2), LpBall(0.0)):
            one, two = (
                logit_bounds(m, x, ball, method=method)
                for m, x in ((model, packed), (right, padded))
            )
            close(one, two)
        close(certify(model, packed, y, ball).margins, certify(right, padded, y, ball).margins)


@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
def test_sampled_logits_lie_within_the_bounds(cell):
    model, (packed, _) = Net(total, cell), both()
    bounds = logit_bounds(model, packed, LpBall(0.2))
    moves = torch.rand(200, *packed.data.shape).double() * 2 - 1
    moves[100:] = moves[100:].sign()
    with torch.no_grad():
        logits = [model(packed._replace(data=packed.data + 0.2 * move)) for move in moves]
    assert contains(bounds, torch.stack(logits))


def test_a_sample_alone_has_the_bounds_it_has_in_the_batch():
    model, (packed, _) = Net(total), both()
    whole = logit_bounds(model, packed, LpBall(0.05))
    for at, sample in enumerate(samples()):
        alone = logit_bounds(model, pack_sequence([sample]), LpBall(0.05))
        close([side[at : at + 1] for side in whole], [*alone])


def test_samples_that_came_sorted_stay_in_their_order():
    some = sorted(samples(), key=len, reverse=True)
    model, ordered = Net(total), pack_sequence(some)
    found = logit_bounds(model, ordered, LpBall(0.05))
    close(found, logit_bounds(model, pack_sequence(some, enforce_sorted=False), LpBall(0.05)))
    assert certify_loader(model, [(ordered, TARGET)], LpBall(0.01), progress=False)


@pytest.mark.slow
def test_radii_frames_and_attacks_are_those_of_padded_inputs():
    model, right, (packed, padded) = Net(ends), Padded(ends), both()
    y = model(packed).argmax(1)
    asked = [(model, packed), (right, padded)]
    close(*(certified_radius(m, x, y, p=2) for m, x in asked))
    close(*(empirical_radius(m, x, y) for m, x in asked))
    close(*(attack(m, x, y, LpBall(0.1)).moved[:, :2] for m, x in asked))
    one, two = (frame_radii(m, x, y, p=2) for m, x in asked)
    for at, length in enumerate(LENGTHS):  # where nothing is read, the largest radius tried
        close(one[at, :length], two[at, :length])
        assert len(set(one[at, length:].tolist())) <= 1
        assert (one[at, length:] >= one[at, :length].max()).all()


def test_a_box_and_masks_are_of_padded_frames():
    model, (packed, (x, _)) = Net(ends), both()
    frames = torch.tensor([True, False, True, False, False])
    y, x = model(packed).argmax(1), torch.where(x == 7.0, 0.0, x)
    box = Box(torch.where(frames[:, None], x - 0.01, x), torch.where(frames[:, None], x + 0.01, x))
    ball = LpBall(0.01, frames=frames)
    close(certify(model, packed, y, box).margins, certify(model, packed, y, ball).margins)


def test_losses_have_the_values_and_gradients_of_padded_inputs():
    found = []
    for model, x in zip((Net(rows), Padded(rows)), both(), strict=True):
        loss = CertifiedLoss(0.05, kappa=0.3, alpha=0.5)
        value = loss(model.train(), x, TARGET)
        value.backward()
        found.append([value.detach(), *(w.grad for w in model.parameters())])
    close(*found)


def test_loaders_give_packed_batches_of_any_length():
    def loader(pack):
        some, batches = samples((3, 5, 2, 4, 6, 1, 1), 3), []
        for first in range(0, 7, 3):
            part = some[first : first + 3]
            y = torch.arange(first, first + len(part)) % 3
            batches.append((pack(part), y))
        return batches

    def packed(part):
        return pack_sequence(part, enforce_sorted=False)

    def padded(part):
        return pad_sequence(part, batch_first=True), torch.tensor([len(one) for one in part])

    options = {"p": 2, "progress": False, "attack": True}
    one = certify_loader(Net(ends), loader(packed), **options)
    two = certify_loader(Padded(ends), loader(padded), **options)
    assert [(row.index, row.status) for row in one] == [(row.index, row.status) for row in two]
    close([row.radius for row in one], [row.radius for row in two])
    some = certify_loader(Net(ends), loader(packed), p=2, samples=4, progress=False)
    close([row.radius for row in some], [row.radius for row in one[:4]])


def test_picked_and_joined_samples_are_those_of_the_batch():
    some, packed = samples(), both()[0]
    picked = pick_packed(packed, torch.tensor([2, 0]))
    joined = join_packed([picked, pick_packed(packed, torch.tensor([1]))])
    for found, chosen in ((picked, (2, 0)), (joined, (2, 0, 1))):
        pairs = zip(unpack_sequence(found), chosen, strict=True)
        assert all(torch.equal(one, some[at]) for one, at in pairs)
    ordered = pack_sequence(sorted(some, key=len, reverse=True))
    assert pick_packed(ordered, torch.tensor([0, 3])).sorted_indices is None
    assert pick_packed(ordered, torch.tensor([3, 0])).sorted_indices is not None


@pytest.mark.filterwarnings("ignore")
def test_a_monitor_watches_packed_batches():
    class Packed(Classifier):
        def forward(self, p):
            return self.head(self.rnn(p)[1][-1])

    def collated(batch):
        xs, ys = zip(*batch, strict=True)
        cut = [x[: 2 + at % 3] for at, x in enumerate(xs)]
        return {"x": pack_sequence(cut, enforce_sorted=False), "y": torch.stack(ys)}

    class Fed(Packed):
        def validation_step(self, batch, batch_idx):
            nn.functional.cross_entropy(self(batch["x"]), batch["y"])

    loader = DataLoader(fitting.samples(10), 4, collate_fn=collated)
    monitor, module = CertifiedRadiusMonitor(samples=7, confirm=None), Fed()
    trainer = pl.Trainer(callbacks=[monitor], logger=False, **fitting.QUIET)
    trainer.validate(module, loader, verbose=False)
    known = certify_loader(module, loader, progress=False)
    radii = {row.index: row.radius for row in known}
    assert len(monitor.last.rows) == 7
    assert [*monitor.last.rows] == [*monitor.last.answered]
    for row in monitor.last.rows:
        assert row.radius == pytest.approx(radii[row.index], rel=0.02)


def test_the_fingerprint_of_packed_data_is_that_of_its_samples():
    def found(*sizes):
        parts = [*zip(torch.tensor(LENGTHS).split(sizes), TARGET.split(sizes), strict=True)]
        some, batches = samples(), []
        for lengths, y in parts:
            one, some = some[: len(lengths)], some[len(lengths) :]
            batches.append(((pack_sequence(one, enforce_sorted=False),), y))
        return data_fingerprint(batches, 4, 0)

    assert found(2, 2) == found(1, 3)
    (packed, _), changed = both(), both(seed=2)[0]
    assert found(4) == data_fingerprint([((packed,), TARGET)], 4, 0)
    assert found(4) != data_fingerprint([((changed,), TARGET)], 4, 0)


def test_a_bad_sample_costs_itself_alone():
    some = samples()
    clean = certify(Net(ends), pack_sequence(some, enforce_sorted=False), TARGET, LpBall(0.01))
    some[1][2, 0] = math.nan
    found = certify(Net(ends), pack_sequence(some, enforce_sorted=False), TARGET, LpBall(0.01))
    assert [*found.errors] == [1]
    assert "`p` holds nan at [2, 0]" in found.errors[1]
    close(found.margins[[0, 2, 3]], clean.margins[[0, 2, 3]])
    for one in some:
        one[:] = math.nan
    found = certify(Net(ends), pack_sequence(some, enforce_sorted=False), TARGET, LpBall(0.01))
    assert len(found.errors) == 4


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.rnn = nn.Embedding(9, 3), nn.LSTM(3, 4)
        self.head = nn.Linear(4, 3)
        self.double().eval()

    def forward(self, tokens, bias):
        data = self.words(tokens.data)
        return self.head(self.rnn(tokens._replace(data=data))[1][0][-1]) + bias


def test_packed_tokens_and_other_arguments():
    model, bias = Words(), torch.randn(3, 3).double()
    tokens = [torch.tensor([1, 2, 3]), torch.tensor([4]), torch.tensor([5, 6])]
    y = torch.tensor([0, 1, 2])
    packed, layer = pack_sequence(tokens, enforce_sorted=False), bound(model, perturb="words")
    found = certify(layer, (packed, bias), y, LpBall(0.01))
    for at, token in enumerate(tokens):
        alone = certify(layer, (pack_sequence([token]), bias[[at]]), y[[at]], LpBall(0.01))
        close(alone.margins, found.margins[[at]])
    moved = certify(bound(model, perturb="bias"), (packed, bias), y, LpBall(0.01))
    assert (moved.margins != found.margins).any()


REFUSED = {
    "the longest sample counts": lambda net, p: net.head(
        pad_packed_sequence(net.rnn(p)[0], batch_first=True)[0].mean(1)
    ),
    "the number of rows": lambda net, p: ends(net, p._replace(data=p.data / len(p.data))),
    "no order": lambda net, p: ends(net, PackedSequence(p.data, p.batch_sizes)),
    "another order": lambda net, p: ends(net, p._replace(sorted_indices=None, data=p.data)),
    "orders in each other's place": lambda net, p: ends(
        net,
        PackedSequence(p.data, p.batch_sizes, p.unsorted_indices, p.sorted_indices),
    ),
}


@pytest.mark.parametrize("code", REFUSED.values(), ids=REFUSED)
def test_what_mixes_samples_or_loses_their_order_is_refused(code):
    packed, _ = both()
    with pytest.raises(UnsupportedModelError):
        certify(Net(code), packed, TARGET, LpBall(0.01))


def test_a_sequence_without_an_order_needs_none():
    def unsorted(net, p):
        assert p.sorted_indices is None
        return ends(net, PackedSequence(p.data, p.batch_sizes))

    ordered = pack_sequence(sorted(samples(), key=len, reverse=True))
    one, two = (logit_bounds(Net(code), ordered, LpBall(0.05)) for code in (unsorted, ends))
    close(one, two)
