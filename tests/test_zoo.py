"""Every classifier of the zoo is certified soundly, and as people would use it."""

import pytest
import pytorch_lightning as pl
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence
from torch.utils.data import DataLoader

from popqorn_train import CertifiedLoss, LpBall, bound, certify, logit_bounds
from popqorn_train.callbacks import CertifiedRadiusMonitor
from popqorn_train.certificates import planning
from popqorn_train.certificates.inputs import as_tuple
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.pgd import attack
from popqorn_train.tracing.steps import pick_samples
from tests.fitting import QUIET
from tests.problems import METHODS, steps_inside
from tests.zoo import B, zoo

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
ZOO = zoo()
POINTS = 100


def in_turn(argument, values, names=tuple(ZOO), every=1):
    """Every so many-th model with the next of the values in the fast run, all in the slow one."""
    chosen = {(at, at // every % len(values)) for at in range(0, len(names), every)}
    rows = [
        pytest.param(name, value, marks=[pytest.mark.slow] * ((at, turn) not in chosen))
        for at, name in enumerate(names)
        for turn, value in enumerate(values)
    ]
    return pytest.mark.parametrize(("name", argument), rows)


# Models in which padding changes nothing: neither values nor what a mean is divided by.
PADDED = (
    "SentimentPacked", "BiLSTMText", "BiGRUMasked", "LastValid", "LastByIndex", "MaskedMean",
    "MaskedMax", "GatedPooling", "PackedRows", "AdditiveAttention", "QueryPooling", "QueriedHeads",
)  # fmt: skip


def logits_inside(case, epsilon, p):
    """Logits ``(P, B, C)`` at points of the per-frame balls, in one call."""
    shape = case.center.shape
    steps = steps_inside((POINTS * shape[0], *shape[1:]), p).view(POINTS, *shape)
    many = case.pick(torch.arange(shape[0]).repeat(POINTS))
    with torch.no_grad():
        logits = many.logits(many.center + epsilon * steps.flatten(0, 1))
    return logits.view(POINTS, shape[0], -1)


ASKED = tuple((ball, method) for method in METHODS for ball in (LpBall(0.3, 2), LpBall(0.15)))


@pytest.mark.one_in(8, first=1)
@in_turn("asked", ASKED)
def test_no_sampled_or_attacked_point_leaves_the_bounds(name, asked):
    (model, x), (ball, method) = ZOO[name], asked
    layer = bound(model)
    with undisturbed(model):  # one trace for all that is asked
        case = layer.instance(x)
        logits = logits_inside(case, ball.epsilon, ball.p)
        target = case.logits(case.center).argmax(1)
        reached = attack(layer, x, target, ball, steps=5, restarts=1).margin
        lower, upper = logit_bounds(layer, x, ball, method=method, probes=0)
        assert (logits >= lower - 1e-11).all()
        assert (logits <= upper + 1e-11).all()
        found = certify(layer, x, target, ball, method=method)
        assert (found.margin <= reached + 1e-11).all()


@pytest.mark.one_in(4)
@in_turn("method", METHODS, every=4)
def test_epsilon_zero_gives_the_logits(name, method):
    model, x = ZOO[name]
    case = bound(model).instance(x)
    logits = case.logits(case.center)
    lower, upper = logit_bounds(model, x, LpBall(0.0), method=method)
    torch.testing.assert_close(lower, logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(upper, logits, rtol=0, atol=1e-12)


@pytest.mark.one_in(80, first=5)
@pytest.mark.parametrize("name", ZOO)
def test_a_sample_has_the_same_bounds_alone(name):
    model, x = ZOO[name]
    layer, ball = bound(model), LpBall(0.1, 2)
    axis, whole = layer.batch_axis(x), logit_bounds(layer, x, ball, probes=0)
    for index in range(B):
        chosen = torch.tensor([index])
        alone = tuple(pick_samples(value, chosen, axis) for value in as_tuple(x))
        found = logit_bounds(layer, alone, ball, probes=0)
        for side, both in zip(found, whole, strict=True):
            # Of two tilted planes on an octagon that are equally good, rounding picks one.
            torch.testing.assert_close(side, both[chosen], rtol=0, atol=1e-9)


@pytest.mark.one_in(2)
@in_turn("method", METHODS, PADDED, every=2)
def test_a_padded_sample_has_the_bounds_of_the_sample_at_its_own_length(name, method):
    model, (x, lengths) = ZOO[name]
    whole = logit_bounds(model, (x, lengths), LpBall(0.1), method=method, probes=0)
    for index, length in enumerate(lengths.tolist()):
        own = slice(index, index + 1)
        alone = (x[own, :length], lengths[own])
        found = logit_bounds(model, alone, LpBall(0.1), method=method, probes=0)
        for side, both in zip(found, whole, strict=True):
            torch.testing.assert_close(side, both[own], rtol=0, atol=1e-12)


@pytest.mark.one_in(20)
@pytest.mark.parametrize("name", PADDED)
def test_padding_never_moves_and_one_trace_serves_other_lengths(name):
    model, (x, lengths) = ZOO[name]
    before = logit_bounds(model, (x, lengths), LpBall(0.1), probes=0)
    for other in ([5, 4, 1], [3, 3, 3], [4, 2, 2]):
        here = (x[:, : max(other)], torch.tensor(other))
        low, high = logit_bounds(model, here, LpBall(0.0), probes=0)
        case = bound(model).instance(here)
        torch.testing.assert_close(low, case.logits(case.center), rtol=0, atol=1e-12)
        torch.testing.assert_close(high, low, rtol=0, atol=1e-12)
    if x.is_floating_point():
        x = x.clone()
        for row, length in zip(x, lengths.tolist(), strict=True):
            row[length:] = 7.0
        after = logit_bounds(model, (x, lengths), LpBall(0.1), probes=0)
        torch.testing.assert_close(after, before)


@pytest.mark.one_in(8)
@pytest.mark.parametrize("name", ZOO)
def test_gradients_of_the_loss_are_finite(name):
    model, x = ZOO[name]
    model.zero_grad()
    loss = CertifiedLoss(0.05, kappa=0.3, alpha=0.7, attack_steps=2)
    loss(model, x, torch.zeros(B, dtype=torch.long)).backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


class Fitted(pl.LightningModule):
    """What makes a LightningModule of a model of the zoo."""

    def __init__(self, net):
        super().__init__()
        self.net, self.loss = net, CertifiedLoss(0.01, kappa=0.5)

    def training_step(self, batch, batch_idx):
        return self.loss(self.net, *unpack(batch))

    def validation_step(self, batch, batch_idx):
        """Nothing beside the monitor."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def unpack(batch):
    return tuple(batch[:-1]), batch[-1]


def packed(rows):
    x, y = zip(*rows, strict=True)
    return [pack_sequence(x, enforce_sorted=False), torch.stack(y)]


def batches(inputs, axis):
    """Two batches with the same samples, in the user's layout."""
    if isinstance(inputs[0], PackedSequence):
        samples = [(one, torch.tensor(0)) for one in unpack_sequence(inputs[0])]
        return DataLoader(samples * 2, B, collate_fn=packed)
    places = [min(axis, value.ndim - 1) for value in inputs]
    samples = [
        (*[v.select(at, i) for v, at in zip(inputs, places, strict=True)], torch.tensor(0))
        for i in range(B)
    ]

    def collate(rows):
        columns = zip(zip(*rows, strict=True), (*places, 0), strict=True)
        return [torch.stack(column, at) for column, at in columns]

    return DataLoader(samples * 2, B, collate_fn=collate)


@pytest.mark.one_in(48, first=4)
@pytest.mark.parametrize("name", ZOO)
def test_a_fit_is_monitored(name):
    model, x = zoo()[name]
    inputs, axis = as_tuple(x), bound(model).batch_axis(x)
    monitor = CertifiedRadiusMonitor(model="net", samples=4, unpack=unpack, rtol=0.1)
    trainer = pl.Trainer(callbacks=[monitor], max_epochs=1, logger=False, **QUIET)
    trainer.fit(Fitted(model.train()), batches(inputs, axis), batches(inputs, axis))
    assert len(monitor.last.radii) == 4
    for row in monitor.last.answered:
        assert (row.radius > 0) == (row.prediction == row.label)


@pytest.mark.one_in(8)
@pytest.mark.parametrize("name", ZOO)
def test_a_trace_is_remembered(name, monkeypatch):
    model, x = ZOO[name]
    bound(model).instance(x)
    monkeypatch.setattr(planning, "record", None)  # a second recording would fail
    bound(model).instance(x, check=False)
