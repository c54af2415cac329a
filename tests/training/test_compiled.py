"""Bound terms as compiled programs: the same numbers as without, or a reason why there are none.

Most tests leave the compiler out: they run the operations that it is given.
"""

import copy
import pickle

import pytest
import torch
from torch import nn

from popqorn_train import CertifiedLoss, Substitutions
from popqorn_train.objectives import crown_ibp, ibp, mtl, sabr
from tests.problems import SOME_CELLS, build, predicted, sequences

cells = pytest.mark.parametrize("cell", SOME_CELLS)
OBJECTIVES = {
    "ibp": lambda **options: ibp(0.1, **options),
    "clipped": lambda **options: ibp(0.1, 2, low=-9.0, high=9.0, kappa=0.3, **options),
    "crown-ibp": lambda **options: crown_ibp(0.1, beta=0.4, **options),
    "fused": lambda **options: crown_ibp(0.1, beta=0.4, fused=True, **options),
    "largest": lambda **options: CertifiedLoss(0.1, method="crown-ibp", **options),
    "mtl": lambda **options: mtl(0.1, attack_steps=2, **options),
    "sabr": lambda **options: sabr(0.1, attack_steps=2, **options),
}


@pytest.fixture
def programs(monkeypatch):
    """Programs that were made, by an interpreter in place of the compiler."""
    made = []

    def interpreted(graph, inputs):
        made.append(graph)
        return graph

    monkeypatch.setattr("torch._inductor.compile", interpreted)
    return made


def problem(cell, batch=6, frames=2, seed=0):
    model, x = build(cell), sequences(batch, frames, seed=seed)
    return model, x, (predicted(model, x) + (torch.arange(batch) % 3 == 0)) % 3


def step(loss, model, x, y):
    """Its parts, and the gradients of all weights."""
    model.zero_grad()
    parts = loss.parts(model, x, y)
    parts.total.backward()
    return parts, [weight.grad.clone() for weight in model.parameters()]


def pair(name):
    """A compiled loss past its first call, which is compared with the model, and a plain one."""
    return OBJECTIVES[name](compiled=True), OBJECTIVES[name]()


@pytest.mark.parametrize("name", OBJECTIVES)
@cells
def test_the_loss_and_its_gradients_are_those_of_every_step(cell, name, programs):
    (fast, plain), (model, x, y) = pair(name), problem(cell)
    step(fast, model, x, y)
    step(plain, model, x, y)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        right, gradients = step(plain, model, x, y)
        found, own = step(fast, model, x, y)
        torch.testing.assert_close(found, right)
        torch.testing.assert_close(own, gradients)
        optimizer.step()
    assert fast.compiled.reason is None
    assert len(programs) == 1


@pytest.mark.parametrize(
    "method", ["popqorn-fast", pytest.param("popqorn", marks=pytest.mark.slow)]
)
def test_tight_bounds_are_recorded_too(method, programs):
    model, x, y = problem("tanh")
    fast, plain = (CertifiedLoss(0.1, method=method, compiled=one) for one in (True, False))
    for _ in range(2):
        found, own = step(fast, model, x, y)
        right, gradients = step(plain, model, x, y)
    assert fast.compiled.reason is None
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(own, gradients)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ibp", "crown-ibp"])
@cells
def test_compiled_programs_do_the_same(cell, name):
    (fast, plain), (model, x, y) = pair(name), problem(cell, frames=2)
    for _ in range(3):
        found, own = step(fast, model, x, y)
        right, gradients = step(plain, model, x, y)
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own, gradients, rtol=1e-3, atol=1e-5)
    assert fast.compiled.reason is None


def test_the_compiler_is_called_and_does_the_same():
    model, x, y = problem("tanh", frames=1)
    fast, plain = pair("ibp")
    for _ in range(2):
        found, right = fast(model, x, y), plain(model, x, y)
    assert fast.compiled.reason is None
    assert fast.compiled._programs
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("name", ["crown-ibp", "fused"])
def test_what_a_schedule_changes_is_seen(name, programs):
    (fast, plain), (model, x, y) = pair(name), problem("gru")
    step(fast, model, x, y)
    for epsilon, beta, kappa in [(0.1, 1.0, 0.0), (0.2, 0.5, 0.5), (0.01, 0.1, 0.2), (0.3, 0, 0)]:
        for loss in (fast, plain):
            loss.epsilon, loss.beta, loss.kappa = epsilon, beta, kappa
        torch.testing.assert_close(fast(model, x, y), plain(model, x, y))
    assert len(programs) == 1  # beta = 0 does not pay yet
    for loss in (fast, plain):
        loss.beta, loss.fused = 0.4, not loss.fused
    torch.testing.assert_close(fast(model, x, y), plain(model, x, y))
    assert fast.compiled.reason is None


def test_every_batch_is_its_own(programs):
    fast, plain = pair("ibp")
    for seed in range(3):
        model, x, y = problem("lstm", seed=seed)
        step(fast, model, x, y)
        torch.testing.assert_close(fast(model, x, y), plain(model, x, y))
    assert len(programs) == 1


def test_another_size_is_compiled_when_that_pays(programs):
    (fast, plain), (model, x, y) = pair("ibp"), problem("gru")
    for _ in range(2):
        fast(model, x, y)
    fast.compiled._price = 1e9
    torch.testing.assert_close(fast(model, x[:5], y[:5]), plain(model, x[:5], y[:5]))
    assert len(programs) == 1
    fast.compiled._price = 0.0
    torch.testing.assert_close(fast(model, x[:5], y[:5]), plain(model, x[:5], y[:5]))
    assert len(programs) == 2
    assert len(fast.compiled._programs) == 2


def test_too_many_sizes_are_given_up(programs, monkeypatch):
    monkeypatch.setattr("popqorn_train.training.compiled._KINDS", 2)
    fast, (model, x, y) = OBJECTIVES["ibp"](compiled=True), problem("tanh")
    fast(model, x, y)
    fast(model, x, y)
    fast.compiled._price = 1e9
    for size in (5, 4, 3):
        fast(model, x[:size], y[:size])
    with pytest.warns(UserWarning, match="more than 2 kinds of batches; give them one size"):
        fast(model, x[:2], y[:2])


def test_a_frozen_weight_is_another_kind(programs):
    (fast, plain), (model, x, y) = pair("ibp"), problem("gru")
    for _ in range(2):
        step(fast, model, x, y)
    next(model.parameters()).requires_grad_(False)
    for _ in range(2):
        torch.testing.assert_close(fast(model, x, y), plain(model, x, y))
    assert fast.compiled.reason is None


def test_losses_may_be_added_up_before_their_gradients(programs):
    (fast, plain), (model, x, y) = pair("crown-ibp"), problem("gru")
    fast(model, x, y)
    found = []
    for loss in (fast, plain):
        model.zero_grad()
        (loss(model, x, y) + 2 * loss(model, x / 2, y)).backward()
        found.append([weight.grad.clone() for weight in model.parameters()])
    torch.testing.assert_close(*found)


def test_words_are_compiled_too(programs):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.rnn = nn.Embedding(12, 5), nn.GRU(5, 6, batch_first=True)
            self.head = nn.Linear(6, 3)

        def forward(self, tokens):
            return self.head(self.rnn(self.read(tokens))[1][-1])

    torch.manual_seed(0)
    model, x = Reader(), torch.randint(12, (4, 5))
    words = Substitutions({word: [(word + 1) % 12] for word in range(12)}, budget=None)
    y = model(x).argmax(1)
    fast, plain = (ibp(1.0, words=words, compiled=compiled) for compiled in (True, False))
    step(fast, model, x, y)
    found, own = step(fast, model, x, y)
    right, gradients = step(plain, model, x, y)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(own, gradients)
    assert fast.compiled.reason is None


class Logarithm(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.RNN(3, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head((self.rnn(x)[0][:, -1].square() + 1).log())


def test_what_must_be_looked_at_is_not_compiled(programs):
    torch.manual_seed(0)
    model, x = Logarithm(), sequences(4, 3).float()
    y = model(x).argmax(1)
    fast, plain = pair("ibp")
    fast(model, x, y)
    with pytest.warns(UserWarning, match="has no effect: .*may be undefined"):
        found = fast(model, x, y)
    torch.testing.assert_close(found, plain(model, x, y))
    assert not programs
    fast(model, x, y)  # says it once


def test_what_looks_at_numbers_is_not_compiled(programs, monkeypatch):
    (fast, plain), (model, x, y) = pair("ibp"), problem("gru")
    fast(model, x, y)
    whole = CertifiedLoss._bounded

    def looks(self, graph, target, *numbers):
        assert graph.region.value.sum() < 1e9
        return whole(self, graph, target, *numbers)

    monkeypatch.setattr(CertifiedLoss, "_bounded", looks)
    with pytest.warns(UserWarning, match="has no effect: its bound looks at numbers of the batch"):
        found = fast(model, x, y)
    torch.testing.assert_close(found, plain(model, x, y))
    assert not programs


@pytest.mark.parametrize("place", ["loss", "gradients"])
def test_a_wrong_program_is_refused(place, monkeypatch):
    def wrong(graph, inputs):
        def run(*given):
            loss, certified, *gradients = graph(*given)
            if place == "loss":
                return loss * 1.01, certified, *gradients
            return loss, certified, *[2 * gradient for gradient in gradients]

        return run

    monkeypatch.setattr("torch._inductor.compile", wrong)
    (fast, plain), (model, x, y) = pair("ibp"), problem("gru")
    fast(model, x, y)
    with pytest.warns(UserWarning, match="the program is off by"):
        found = fast(model, x, y)
    torch.testing.assert_close(found, plain(model, x, y))


def test_whoever_looks_at_ranges_gets_them(programs):
    fast, (model, x, y) = OBJECTIVES["ibp"](compiled=True), problem("gru")
    seen = []
    fast(model, x, y)
    fast.observer = lambda batch, parts, found: seen.append(found)
    fast(model, x, y)
    fast.observer = None
    fast.signal, fast.epsilon = 0.1, 2.0
    assert fast.parts(model, x, y).signal > 0
    assert seen[0].ranges
    assert not programs


def test_copies_make_programs_of_their_own(programs):
    fast, (model, x, y) = OBJECTIVES["ibp"](compiled=True), problem("gru")
    for _ in range(2):
        fast(model, x, y)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert not other.compiled._programs
        torch.testing.assert_close(other(model, x, y), fast(model, x, y))
    assert fast.compiled._programs


def test_no_gradient_no_program(programs):
    fast, (model, x, y) = OBJECTIVES["ibp"](compiled=True), problem("gru")
    fast(model, x, y)
    with torch.no_grad():
        fast(model, x, y)
    assert not programs


class Scaled(nn.Module):
    """Steps that are kept as functions, with constants of their own."""

    def __init__(self, factor):
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 3)
        self.register_buffer("by", torch.linspace(1, factor, 6))

    def forward(self, x):
        out = self.rnn(x)[0]
        return self.head((out * self.by).flip(1).cumsum(1)[:, -1] / 2)


def test_functions_are_told_apart_by_what_they_remember(programs):
    x, models = sequences(4, 3).float(), []
    for factor in (2.0, 3.0):
        torch.manual_seed(0)
        models.append(Scaled(factor))
    fast, plain = pair("ibp")
    for model in (models[0], *models):
        y = model(x).argmax(1)
        found, own = step(fast, model, x, y)
        right, gradients = step(plain, model, x, y)
        torch.testing.assert_close(found, right)
        torch.testing.assert_close(own, gradients)
    assert fast.compiled.reason is None
    assert len(programs) == 1
