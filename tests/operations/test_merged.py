"""Batch and time on one axis, for work that is done row by row, are bounded as they are apart."""

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, UnsupportedModelError, logit_bounds
from popqorn_train.errors import MixedSamplesError
from tests.problems import F64

B, T, F, H, C = 3, 4, 3, 4, 3


class Net(nn.Module):
    """A front end by rows, a recurrent layer, a head."""

    def __init__(self, rows, *, batch_first=True):
        super().__init__()
        torch.manual_seed(0)
        self.project, self.deep = nn.Linear(F, H), nn.Linear(H, H)
        self.norm, self.layer_norm = nn.BatchNorm1d(H), nn.LayerNorm(H)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.normal_(self.norm.running_mean)
        self.conv, self.drop = nn.Conv1d(1, 2, 2), nn.Dropout(0.3)
        self.rnn, self.head = nn.GRU(H, H, batch_first=batch_first), nn.Linear(H, C)
        self.rows, self.batch_first = rows, batch_first

    def forward(self, x):
        out, _ = self.rnn(self.rows(self, self.project(x)))
        return self.head(out[:, -1] if self.batch_first else out[-1])


def inputs():
    return torch.randn(B, T, F, generator=torch.Generator().manual_seed(2), dtype=F64)


def bounds(net, x, epsilon=0.1):
    return logit_bounds(net.double().eval(), x, LpBall(epsilon), method="crown-ibp")


def normed(net, h):
    scale = net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()
    return (h - net.norm.running_mean) * scale + net.norm.bias


def time_distributed(net, h):
    rows = h.contiguous().view(-1, h.size(-1))
    rows = net.drop(net.layer_norm(torch.relu(net.norm(net.deep(rows)))))
    return rows.contiguous().view(h.size(0), -1, rows.size(-1))


def by_multiples(net, h):
    batch, time, size = h.shape
    rows = h.reshape(batch * time, size)
    rows = torch.addmm(net.deep.bias, rows, net.deep.weight.t())
    one, two = (torch.sigmoid(rows) * rows).chunk(2, 1)
    return torch.cat([one, two], dim=1).reshape(batch, time, size)


def flattened(net, h):
    rows = h.flatten(0, 1)
    rows = rows - 0.1 * rows.mean(1, keepdim=True) + rows.max(dim=-1, keepdim=True)[0]
    return rows.unflatten(0, h.shape[:2])


def convolved(net, h):
    rows = net.conv(h.reshape(-1, 1, H))
    return torch.cat([rows[:, :, 0], rows.amax(2)], 1).view(len(h), T, H)


def moved_inside(net, h):
    rows = h.reshape(-1, H)
    turned = rows.view(-1, 2, 2).transpose(1, 2).reshape(len(rows), H)
    return (rows + turned).view(*h.shape)


def time_first(net, h):
    rows = net.norm(h.transpose(0, 1).reshape(-1, H))
    return rows.view(T, -1, H).transpose(0, 1)


PAIRS = {
    "time distributed": (
        time_distributed,
        lambda net, h: net.layer_norm(torch.relu(normed(net, net.deep(h)))),
    ),
    "by multiples": (
        by_multiples,
        lambda net, h: torch.sigmoid(net.deep(h)) * net.deep(h),
    ),
    "flattened": (
        flattened,
        lambda net, h: h - 0.1 * h.mean(2, keepdim=True) + h.max(dim=-1, keepdim=True)[0],
    ),
    "moved inside": (
        moved_inside,
        lambda net, h: h + h.unflatten(2, (2, 2)).transpose(2, 3).flatten(2),
    ),
    "time first": (time_first, normed),
}


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "by multiples"])
def test_bounds_are_those_with_batch_and_time_apart(name):
    merged, apart = (bounds(Net(rows), inputs()) for rows in PAIRS[name])
    for one, two in zip(merged, apart, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


def test_a_sequence_wise_norm_with_time_first_has_the_bounds_of_one_with_the_batch_first():
    def sequence_wise(net, h):
        time, batch, size = h.shape
        return net.norm(h.view(time * batch, size)).view(time, batch, size)

    merged = bounds(Net(sequence_wise, batch_first=False), inputs().transpose(0, 1))
    for one, two in zip(merged, bounds(Net(normed), inputs()), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("rows", [pair[0] for pair in PAIRS.values()] + [convolved])
def test_points_stay_inside_and_a_sample_alone_has_its_bounds(rows):
    net, x = Net(rows).double().eval(), inputs()
    lower, upper = bounds(net, x)
    points = x + 0.1 * (2 * torch.rand(60, *x.shape, dtype=F64) - 1).sign()
    with torch.no_grad():
        logits = net(points.flatten(0, 1)).view(60, B, C)
        clean = net(x)
    assert ((lower - 1e-12 <= logits) & (logits <= upper + 1e-12)).all()
    for one, every in zip(bounds(net, x[1:2]), (lower, upper), strict=True):
        torch.testing.assert_close(one, every[1:2], rtol=0, atol=1e-9)
    for end in bounds(net, x, 0.0):
        torch.testing.assert_close(end, clean, rtol=0, atol=1e-9)


def split_across(net, h):
    batch, time, size = h.shape
    return torch.tanh(h.reshape(batch * time, size)).reshape(time, batch, size).transpose(0, 1)


def mean_of_all(net, h):
    rows = h.reshape(-1, H)
    return (rows - rows.mean(0)).view(*h.shape)


def product_over_rows(net, h):
    rows = h.reshape(-1, H)
    return (rows @ (rows.t() @ rows)).view(*h.shape)


def mean_of_squares(net, h):
    rows = h.reshape(-1, H)
    return (rows * rows.square().mean()).view(*h.shape)


@pytest.mark.parametrize("rows", [split_across, mean_of_all, product_over_rows, mean_of_squares])
def test_what_mixes_samples_is_refused(rows):
    with pytest.raises((MixedSamplesError, UnsupportedModelError), match=r"sample|one axis"):
        bounds(Net(rows), inputs())


def test_a_gated_half_of_every_row_counts_its_axis_as_the_code_has_it():
    class Gate(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.gate = nn.GLU(dim)

        def forward(self, x):
            return self.gate(x.reshape(-1, x.size(2))).reshape(len(x), x.size(1), -1).mean(1)

    x = torch.cat([inputs(), inputs().flip(2)[..., :1]], 2)
    found = [logit_bounds(Gate(dim).eval(), x, LpBall(0.1), probes=0) for dim in (1, -1)]
    torch.testing.assert_close(found[0], found[1])
    with pytest.raises((UnsupportedModelError, MixedSamplesError)):
        logit_bounds(Gate(0).eval(), x, LpBall(0.1))
