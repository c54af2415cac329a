"""What a forward keeps from call to call, cuts off from gradients, or hides in scripted code."""

from collections import deque

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, certified_radius, certify, empirical_radius
from popqorn_train.errors import MixedSamplesError, UnsupportedModelError
from tests.problems import F64, sequences


class Recurrent(nn.Module):
    """A GRU whose last state goes through ``change``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.gru, self.head = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(6))
        self.calls, self.last, self.seen, self.cache = 0, None, [], {}
        self.plain = torch.zeros(6, dtype=F64)
        self.to(F64).eval()

    def forward(self, x):
        return self.head(self.change(self.gru(x)[0][:, -1]))


class Warm(Recurrent):
    def change(self, h):
        self.calls += 1
        return h * self.calls


class Running(Recurrent):
    def change(self, h):
        self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return h - self.mean


class PlainRunning(Recurrent):
    def change(self, h):
        self.plain.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return h - self.plain


class Carried(Recurrent):
    """The state of the last batch; after a call with the same batch nothing shows."""

    def change(self, h):
        old, self.last = self.last, h.detach()
        return h if old is None else h + old


class Listed(Recurrent):
    def change(self, h):
        self.seen.append(h.detach())
        return h + self.seen[-2] if len(self.seen) > 1 else h


class Statistics:
    """An object of the user's own."""

    total = 0.0


class Observed(Recurrent):
    def __init__(self):
        super().__init__()
        self.statistics = Statistics()

    def change(self, h):
        self.statistics.total = self.statistics.total + h.detach().mean()
        return h - self.statistics.total


class Queued(Recurrent):
    def __init__(self):
        super().__init__()
        self.queue = deque(maxlen=2)

    def change(self, h):
        self.queue.append(h.detach())
        return h + self.queue[0]


KEEPING = {
    Warm: "calls",
    Running: "mean",
    PlainRunning: "plain",
    Carried: "last",
    Listed: "seen",
    Observed: "statistics.total",
    Queued: "queue",
}


class Counted(Recurrent):
    """Keeps what its outputs do not depend on."""

    def change(self, h):
        self.calls += 1
        self.seen.append(h)
        self.last = h.tanh()
        scale = self.cache.setdefault(h.shape[1], torch.full((h.shape[1],), 0.5, dtype=F64))
        return self.last * scale


class Detached(Recurrent):
    def change(self, h):
        return h.detach() + 0.5 * h.data


class DetachedFirst(Recurrent):
    def forward(self, x):
        return super().forward(x.detach())

    def change(self, h):
        return 1.5 * h


class Whole(Recurrent):
    def change(self, h):
        return 1.5 * h


def problem(kind):
    model, x = kind(), sequences(4, 5, features=3)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("kind", KEEPING)
def test_what_depends_on_earlier_calls_is_refused(kind):
    model, x, y = problem(kind)
    with pytest.raises(
        UnsupportedModelError, match=rf"keeps self\.{KEEPING[kind]}.*not one function"
    ):
        certify(model, x, y, LpBall(1e-3))


def test_what_only_notes_its_calls_is_certified_and_left_as_it_was():
    model, x, y = problem(Counted)
    last, seen = model.last, len(model.seen)
    assert certify(model, x, y, LpBall(1e-3)).certified.all()
    assert (model.calls, model.last, len(model.seen)) == (1, last, seen)


def test_a_tensor_that_is_no_buffer_is_put_back():
    model, x, y = problem(PlainRunning)
    before = model.plain.clone()
    with pytest.raises(UnsupportedModelError):
        certify(model, x, y, LpBall(1e-3))
    assert torch.equal(model.plain, before)


@pytest.mark.parametrize("kind", [Detached, DetachedFirst])
def test_what_is_detached_moves_and_is_attacked(kind):
    model, x, y = problem(kind)
    x, y = x[:2], y[:2]
    radius, broken = certified_radius(model, x, y, method="ibp"), empirical_radius(model, x, y)
    torch.testing.assert_close(radius, certified_radius(problem(Whole)[0], x, y, method="ibp"))
    assert (radius > 0).all()
    assert (radius <= broken).all()
    assert broken.isfinite().any()


class Scripted(Recurrent):
    def __init__(self, made):
        super().__init__()
        self.part = made(nn.Sequential(nn.Linear(6, 6), nn.Tanh()).to(F64))

    def change(self, h):
        return self.part(h)


@torch.jit.script
def doubled(h):
    return 2 * h


class ScriptedFunction(Recurrent):
    def change(self, h):
        return doubled(h)


def traced(part):
    return torch.jit.trace(part, torch.zeros(2, 6, dtype=F64))


@pytest.mark.parametrize(
    "make",
    [lambda: Scripted(torch.jit.script), lambda: Scripted(traced), ScriptedFunction],
    ids=["script", "trace", "function"],
)
def test_scripted_parts_are_refused_by_name(make):
    model, x = make(), sequences(4, 5, features=3)
    with pytest.raises(UnsupportedModelError, match=r"scripted by torch\.jit"):
        certify(model, x, model(x).argmax(1), LpBall(1e-3))


def test_a_scripted_part_beside_does_not_disturb():
    model, x, y = problem(Detached)
    model.unused = torch.jit.script(nn.Linear(2, 2))
    assert certify(model, x, y, LpBall(1e-3)).certified.all()


class BatchNormed(Recurrent):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6, track_running_stats=False).to(F64)

    def change(self, h):
        return self.norm(h)


def test_a_norm_by_the_batch_mixes_samples():
    model, x, y = problem(BatchNormed)
    with pytest.raises(MixedSamplesError, match="mixes samples"):
        certify(model, x, y, LpBall(1e-3))
