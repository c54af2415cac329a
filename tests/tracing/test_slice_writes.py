"""Writes of slices, ``x[:, t] = v``, are bounded as what is written without them."""

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, UnsupportedModelError, certify, logit_bounds
from tests.problems import METHODS, sequences

TIME = 5


class Net(nn.Module):
    def __init__(self, code):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.cell = nn.GRU(3, 4, batch_first=True), nn.GRUCell(3, 4)
        self.head, self.code = nn.Linear(4, 3), code
        self.double().eval()

    def forward(self, x):
        return self.head(self.code(self, x))


def steps(net, x):
    h = x.new_zeros(x.size(0), 4)
    for t in range(x.size(1)):
        h = net.cell(x[:, t], h)
        yield t, h


def collected(net, x):
    out = torch.zeros(x.size(0), x.size(1), 4, dtype=x.dtype)
    for t, h in steps(net, x):
        out[:, t] = h
    return out.amax(1) + torch.relu(out[:, -1]) + out.sum(1)


def collected_time_first(net, x):
    out = x.new_zeros(x.size(1), len(x), 4)
    for t, h in steps(net, x):
        out[t] = h
    return out.amax(0) + torch.relu(out[-1]) + out.sum(0)


def stacked(net, x):
    out = torch.stack([h for _, h in steps(net, x)], 1)
    return out.amax(1) + torch.relu(out[:, -1]) + out.sum(1)


def in_parts(net, x):
    h = net.rnn(x)[0]
    h[:, 1:3, ::2] = 0.5
    h[..., -1] = h[..., 0]
    return h.amax(1)


def by_masks(net, x):
    mask = torch.zeros(TIME, 4, dtype=torch.bool)
    mask[1:3, ::2] = True
    h = torch.where(mask, 0.5, net.rnn(x)[0])
    return torch.cat([h[..., :3], h[..., :1]], -1).amax(1)


PAIRS = {
    "a made tensor": (collected, stacked),
    "time first": (collected_time_first, stacked),
    "parts": (in_parts, by_masks),
}


@pytest.mark.one_in(4, first=1)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PAIRS)
def test_bounds_are_those_without_a_write(name, method):
    one, two = (Net(code) for code in PAIRS[name])
    for x in (sequences(3, TIME), sequences(2, TIME) + 1):  # another batch after the first trace
        torch.testing.assert_close(one(x), two(x))
        for ball in (LpBall(0.1, 2), LpBall(0.0)):
            found, right = (logit_bounds(net, x, ball, method=method) for net in (one, two))
            torch.testing.assert_close(found, right, rtol=0, atol=1e-9)
        alone = logit_bounds(one, x[[1]], ball, method=method)
        torch.testing.assert_close([*alone], [side[[1]] for side in found], rtol=0, atol=1e-12)


def some_samples(net, x):
    h = net.rnn(x)[0][:, -1]
    h[0] = 0.0
    return h


def a_mask(net, x):
    h = net.rnn(x)[0]
    h[h > 0] = 0.0
    return h[:, -1]


def an_argument(net, x):
    x[:, 0] = 0.0
    return net.rnn(x)[0][:, -1]


def read_before(net, x):
    h = net.rnn(x)[0]
    first = h[:, 0]
    h[:, 0] = first + 1
    return first


def written_outside(net, x):
    out = torch.zeros(len(x), 2, 4, dtype=x.dtype)
    out[:, 0] = net.rnn(x)[0][:, -1]
    out.add_(1)
    return out.sum(1)


def another_name(net, x):
    out = torch.zeros(len(x), 2, 4, dtype=x.dtype)
    part = out[:, 0]
    out[:, 0] = net.rnn(x)[0][:, -1]
    return part + out[:, 1]


def test_the_way_out_for_a_mask_is_bounded_as_the_write_is_meant():
    class Read(nn.Module):
        def __init__(self, write):
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.write = nn.GRU(3, 4, batch_first=True), write

        def forward(self, x, lengths):
            h, _ = self.rnn(x)
            mask = torch.arange(x.size(1)) >= lengths[:, None]
            if self.write:
                h[mask] = -torch.inf
            else:
                h = torch.where(mask[:, :, None], torch.tensor(-torch.inf).to(h), h)
            return h.amax(1)

    x, lengths = sequences(3, TIME), torch.tensor([TIME, 2, 1])
    one, other = (Read(write).double().eval() for write in (True, False))
    torch.testing.assert_close(one(x, lengths), other(x, lengths))
    with pytest.raises(UnsupportedModelError, match=r"like mask\[:, :, None\] for frames"):
        logit_bounds(one, (x, lengths), LpBall(0.01))
    lower, upper = logit_bounds(other, (x, lengths), LpBall(0.01))
    logits = other(x, lengths)
    assert ((lower < logits) & (logits < upper)).all()


REFUSED = {
    some_samples: "samples",
    a_mask: r"h\[h > 0\] = 0.0\). Choose .*: x = torch.where\(mask, value, x\)",
    an_argument: "an argument of forward, 'x'",
    read_before: "is read afterwards",
    written_outside: "a write into it in place",
    another_name: "a write into it in place",
}


@pytest.mark.parametrize("code", REFUSED, ids=lambda code: code.__name__)
@pytest.mark.parametrize("batch", [1, 3])
def test_other_writes_are_refused(code, batch):
    y = torch.zeros(batch).long()
    with pytest.raises(UnsupportedModelError, match=REFUSED[code]):
        certify(Net(code), sequences(batch, TIME), y, LpBall(0.01))
