"""Writes in place are recorded as what they compute, or refused where others read the memory."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from popqorn_train import LpBall, UnsupportedModelError, bound, logit_bounds
from popqorn_train.certificates.isolation import undisturbed
from tests.problems import F64

H = 4


class Net(nn.Module):
    """A recurrent classifier with a function between its states and its head."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.lin, self.head = nn.GRU(3, H, batch_first=True), nn.Linear(H, H), None
        self.norm, self.act = nn.BatchNorm1d(H), nn.ReLU(inplace=True)
        self.cut = nn.Hardtanh(-0.1, 0.1, inplace=True)
        self.shift, self.head = nn.Parameter(torch.randn(H)), nn.Linear(H, 3)
        self.between = between

    def forward(self, x):
        return self.head(self.between(self, self.rnn(x)[0][:, -1]))


class Front(nn.Module):
    """The most common front end."""

    def __init__(self, inplace):
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.ReLU(inplace))
        self.rnn, self.head = nn.RNN(4, H, batch_first=True), nn.Linear(H, 3)

    def forward(self, x):
        return self.head(self.rnn(self.front(x.transpose(1, 2)).transpose(1, 2))[0][:, -1])


def x():
    return torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(1)).double()


def bounds(model):
    return logit_bounds(model.double().eval(), x(), LpBall(0.1), method="crown-ibp")


def added(net, h):
    total = torch.zeros(len(h), H, dtype=h.dtype)
    for _ in range(2):
        total += h
    return total


def added_by_method(net, h):
    total = torch.zeros(len(h), H, dtype=h.dtype)
    total.add_(h)
    total.add_(h)
    return total


def residual(net, h):
    y = net.lin(h)
    y += h
    return functional.relu_(y)


def read_before(net, h):
    y = net.lin(h)
    z = 2 * y
    y.relu_()
    return z + y


def several(net, h):
    y = net.lin(h)
    y **= 2
    y -= h
    y.masked_fill_(torch.tensor([True, False, False, False]), 0.5).clamp_(-1, 1)
    y /= 2
    return y


def by_two_names(net, h):
    y = net.lin(h)
    z = functional.dropout(y, 0.5, net.training, inplace=True)
    y.tanh_()
    return z


def part_alone(net, h):
    part = net.lin(h)[:, :2]
    part.sigmoid_()
    return torch.cat([part, part], 1)


TWINS = {
    "norm, then relu": (
        lambda net, h: net.act(net.norm(net.lin(h))),
        lambda net, h: torch.relu(net.norm(net.lin(h))),
    ),
    "sum": (added, lambda net, h: h + h),
    "sum by method": (added_by_method, lambda net, h: h + h),
    "residual": (residual, lambda net, h: torch.relu(net.lin(h) + h)),
    "read before": (read_before, lambda net, h: 2 * net.lin(h) + torch.relu(net.lin(h))),
    "result unused": (
        lambda net, h: net.act(h) + h,
        lambda net, h: 2 * torch.relu(h),
    ),
    "two names": (by_two_names, lambda net, h: torch.tanh(net.lin(h))),
    "a part alone": (part_alone, lambda net, h: torch.sigmoid(net.lin(h)[:, :2]).repeat(1, 2)),
    "filled": (lambda net, h: net.lin(h).zero_() + h, lambda net, h: h),
    "hardtanh": (
        lambda net, h: net.cut(net.lin(h)),
        lambda net, h: functional.hardtanh(net.lin(h), -0.1, 0.1),
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_write_is_bounded_as_what_it_computes(name):
    written, twin = (bounds(Net(between)) for between in TWINS[name])
    for one, two in zip(written, twin, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=0.2 if name == "read before" else 1e-9)


def test_convolution_norm_and_relu_in_place_are_bounded_as_without():
    for one, two in zip(bounds(Front(True)), bounds(Front(False)), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("between", [several, *[pair[0] for pair in TWINS.values()]])
def test_the_recording_is_the_model(between):
    net = Net(between).double().eval()
    with undisturbed(net), torch.no_grad():
        instance = bound(net).instance(x(), F64)
        for moved in (instance.center, instance.center + 1):
            torch.testing.assert_close(instance.logits(moved), net(moved))


def view_read(net, h):
    y = net.lin(h)
    view = y.view(-1, 2, 2)
    y.relu_()
    return view.flatten(1)


def whole_read(net, h):
    y = net.lin(h)
    y[:, :2].relu_()
    return y


def perhaps_a_copy(net, h):
    y = net.lin(h)
    other = y.t().contiguous().t()
    y.relu_()
    return other


def made_and_viewed(net, h):
    total = torch.zeros(len(h), H, dtype=h.dtype)
    view = total[:, :2]
    total += h
    return torch.cat([view, view], 1)


def made_and_written(net, h):
    total = torch.zeros(len(h), H, dtype=h.dtype)
    other = total
    total += h
    other.add_(1)
    return h


def parts(net, h):
    one, two = net.lin(h).chunk(2, 1)
    one.sigmoid_()
    return torch.cat([one, two], 1)


def into_out(net, h):
    y = net.lin(h)
    torch.add(h, h, out=y)
    return y


def weight(net, h):
    net.shift.data.add_(h[0])
    return h + net.shift


REFUSED = {
    "view": (view_read, "relu_ .*view_read|relu_.*works in place on memory that 'view' shares"),
    "whole": (whole_read, "works in place on memory that 'lin' shares"),
    "copy": (perhaps_a_copy, "works in place"),
    "made": (made_and_viewed, "under another name"),
    "made and written": (made_and_written, "under another name"),
    "parts": (parts, "sigmoid_.*one of several parts"),
    "out": (into_out, "in place"),
    "weight": (weight, "in place"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_others_read_is_refused_with_the_line_and_a_way_out(name):
    between, message = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        bounds(Net(between))
    assert "test_in_place.py, line" in str(caught.value)
    assert "clone()" in str(caught.value)


def test_the_message_names_the_module():
    net = Net(lambda net, h: net.act(h[:, :2]).sum(1, True) + h)
    with pytest.raises(UnsupportedModelError, match=r"ReLU .module 'act', test_in_place\.py"):
        bounds(net)


class OnInput(Net):
    """Overwrites its argument."""

    def forward(self, x):
        return super().forward(x.relu_())


def test_a_write_into_an_argument_is_refused_and_leaves_it_as_it_was():
    inputs = x()
    with pytest.raises(UnsupportedModelError, match="an argument of forward, 'x'"):
        logit_bounds(OnInput(lambda net, h: h).double().eval(), inputs, LpBall(0.1))
    assert torch.equal(inputs, x())
