"""Forwards that mix the samples of a batch are refused, at every batch in which they do."""

import pytest
import torch
from torch.nn.functional import avg_pool1d

from popqorn_train import (
    CertifiedLoss,
    Status,
    UnsupportedModelError,
    certify,
    certify_loader,
    logit_bounds,
)
from tests.sorting import BALL, HIDDEN, TIME, batch, build, labels, plain, states


def last(net, x):
    return net.rnn(x)[1][-1]


def never_undone(net, x, lengths):
    falling, order = lengths.sort(descending=True)
    return net.head(states(net, x[order], falling))


def undone_wrongly(net, x, lengths):
    falling, order = lengths.sort(descending=True)
    return net.head(states(net, x[order], falling)[order])


def lengths_unsorted(net, x, lengths):
    order = lengths.argsort(descending=True)
    return net.head(states(net, x[order], lengths, enforce_sorted=False)[order.argsort()])


def frames_of_others(net, x, lengths):
    order = lengths.argsort(descending=True)
    out = net.rnn(x[order])[0]
    return net.head(out[torch.arange(len(x)), lengths - 1][order.argsort()])


def one_logit_sorted(net, x, lengths):
    return net.one(last(net, x[lengths.argsort()])).sigmoid()


MIXING = {
    "never undone": never_undone,
    "undone wrongly": undone_wrongly,
    "one logit": one_logit_sorted,
    "lengths unsorted": lengths_unsorted,
    "frames of others": frames_of_others,
    "repeated": lambda net, x, lengths: net.head(last(net, x[torch.zeros(len(x)).long()])),
    "a list": lambda net, x, lengths: net.head(last(net, x[[0] * len(x)])),
    "by length": lambda net, x, lengths: net.head(last(net, x[lengths % len(x)])),
    "gathered": lambda net, x, lengths: net.head(
        last(net, x).gather(0, (lengths % len(x))[:, None].expand(-1, HIDDEN))
    ),
    "flipped": lambda net, x, lengths: net.head(last(net, x.flip(0))),
    "flip added": lambda net, x, lengths: net.head(last(net, x.flip(0) + x)),
    "logits flipped": lambda net, x, lengths: net.head(last(net, x)).flip(0),
    "rolled": lambda net, x, lengths: net.head(last(net, x.roll(1, 0))),
    "rolled over all": lambda net, x, lengths: net.head(last(net, x.roll(1))),
    "rolled back over all": lambda net, x, lengths: net.head(last(net, x.roll(-1))),
    "batch mean": lambda net, x, lengths: net.head(last(net, x - x.mean(0))),
    "batch sum": lambda net, x, lengths: net.head(last(net, x.cumsum(0))),
    "sorted by values": lambda net, x, lengths: net.head(last(net, x[x[:, 0, 0].argsort()])),
    "shares": lambda net, x, lengths: net.head(last(net, x) * (lengths / lengths.sum())[:, None]),
    "longest": lambda net, x, lengths: net.head(last(net, x) / lengths.max()),
    "longest mask": lambda net, x, lengths: net.head(
        (net.rnn(x)[0] * (torch.arange(TIME)[None] < lengths.max())[..., None]).sum(1)
    ),
    "lengths so far": lambda net, x, lengths: net.head(last(net, x) + lengths.cumsum(0)[:, None]),
    "sorted start": lambda net, x, lengths: net.head(
        net.rnn(x, (net.start * lengths.sort()[0][:, None]).contiguous())[1][-1]
    ),
    "how many": lambda net, x, lengths: net.head(last(net, x) / len(x)),
    "the frame of how many": lambda net, x, lengths: net.head(net.rnn(x)[0][:, len(x) % 2 - 2]),
    "pooled": lambda net, x, lengths: net.head(
        avg_pool1d(last(net, x).T[None], 3, 1, 1)[0].T
    ),
    "pooled over states": lambda net, x, lengths: net.head(
        avg_pool1d(net.rnn(x)[0].permute(1, 2, 0), 3, 1, 1)[0].T
    ),
    "hidden at the input": lambda net, x, lengths: net.head(
        last(net, x) + torch.relu(x[:, 0] - 50 - lengths.sum())
    ),
    "longest, hidden": lambda net, x, lengths: net.head(
        last(net, x) + torch.relu(x[:, 0] - 50 - lengths.max())
    ),
    "longest, hidden in a fraction": lambda net, x, lengths: net.head(
        last(net, x) + torch.relu(x[:, 0] - 50 - lengths.double().max())
    ),
    "how many, hidden": lambda net, x, lengths: net.head(
        last(net, x) + torch.relu(x[:, 0] - 50 - len(x))
    ),
}  # fmt: skip
every_mixing = pytest.mark.parametrize("code", MIXING.values(), ids=MIXING)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("max_bytes", [None, 1])
@every_mixing
def test_other_mixing_of_samples_is_refused_at_every_batch(code, max_bytes):
    model = build(code)
    hiding = batch(lengths=(4, 3, 2), seed=1), batch(lengths=(TIME, TIME, TIME), seed=2)
    alike = hiding[0][0][:1].expand(3, -1, -1).contiguous(), torch.tensor([TIME] * 3)
    for inputs in (batch(), *hiding, alike, batch(lengths=(3,)), batch()):
        try:
            certify(
                model, inputs, torch.zeros(len(inputs[1])).long(), BALL, max_bytes=max_bytes,
                method="ibp",
            )  # fmt: skip
        except UnsupportedModelError:
            continue
        assert len(inputs[1]) != 5, "certified"


def tokens_never_undone(net, x, lengths):
    order = lengths.argsort(descending=True)
    return plain(net, net.words(x[order]), lengths)


def tokens_of_one(net, x, lengths):
    return plain(net, net.words(x[torch.zeros(len(x)).long()]), lengths)


@pytest.mark.parametrize("max_bytes", [None, 1])
@pytest.mark.parametrize("code", [tokens_never_undone, tokens_of_one])
def test_tokens_in_another_order_are_refused_at_every_batch(code, max_bytes):
    model, y = build(code), torch.zeros(5).long()
    # Nothing can be mixed in a batch of one, as long as it is not probed by copies of it.
    certify(model, batch("tokens", (3,)), y[:1], BALL, method="ibp", probes=0)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="mix"):
            certify(model, batch("tokens"), y, BALL, method="ibp", max_bytes=max_bytes)


LATER = ["never undone", "flipped", "repeated", "flip added", "rolled back over all"]


@pytest.mark.parametrize("name", LATER)
def test_a_loss_refuses_mixed_samples_at_a_later_batch_too(name):
    model, loss = build(MIXING[name]), CertifiedLoss(0.1)
    loss(model, batch(lengths=(3,)), torch.tensor([0]))  # nothing can be mixed in a batch of one
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=r"order|mixes samples"):
            loss(model, batch(), torch.zeros(5).long())


@pytest.mark.parametrize("name", ["never undone", "longest"])
def test_a_loader_does_not_take_a_refused_batch_apart(name):
    model = build(MIXING[name])
    batches = [batch(lengths=(TIME, TIME, TIME)), batch()]  # nothing shows in the first one
    data = [(inputs, labels(model, inputs)) for inputs in batches]
    with pytest.warns(UserWarning, match="5 of 8 samples ended in an error"):
        rows = list(certify_loader(model, data, method="ibp"))
    assert [row.status for row in rows[3:]] == [Status.ERROR] * 5
    assert all("MixedSamplesError" in row.error for row in rows[3:])


def test_the_error_names_the_line_and_the_way_out():
    message = r"'add' combines samples in different orders \(test_mixed_samples.py, line \d+.*Sort"
    with pytest.raises(UnsupportedModelError, match=message):
        logit_bounds(build(MIXING["flip added"]), batch(), BALL)
