"""The fused loss: an upper bound on the cross entropy in the whole ball, from one backward row."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from popqorn_train import LpBall, bound, certify, objectives
from popqorn_train.bounds.backward import minimum
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.certificates.margins import margin_rows, other_classes
from popqorn_train.perturbations.region import Bounds
from popqorn_train.training.loss_fusion import fused_cross_entropy
from tests.problems import (
    F64,
    NORMS,
    SOME_CELLS,
    build,
    logits_at,
    points_inside,
    predicted,
    sequences,
)

EPSILON = 0.1
cells = pytest.mark.parametrize("cell", SOME_CELLS)
norms = pytest.mark.parametrize("p", NORMS)


def problem(cell="gru", batch=5, **options):
    model, x = build(cell, **options), sequences(batch, 3)
    wrong = torch.arange(batch) % 3 == 0
    return model, x, (predicted(model, x) + wrong) % model.head.out_features


def fused(model, x, y, epsilon=EPSILON, p=math.inf, **domain):
    case = bound(model).instance(x)
    return fused_cross_entropy(case.graph(LpBall(epsilon, p, **domain)), y, case.value)


def margin_ranges(model, x, y, epsilon, *, intervals):
    """Bounds of margins ``(B, C - 1)`` from below and above."""
    case = bound(model).instance(x)
    output = case.graph(LpBall(epsilon))
    found = enclose(output, relax=Relaxation())
    classes = output.shape[0]
    rows = margin_rows(y, classes, x, other_classes(y, classes))
    low, minus_high = (minimum(output, r, found, intervals=intervals) for r in (rows, -rows))
    return Bounds(low, -minus_high)


@norms
@pytest.mark.parametrize("epsilon", [0.02, 0.3, 2.0])
@cells
def test_no_point_of_the_ball_has_a_larger_cross_entropy(cell, epsilon, p):
    for classes in (2, 3, 10):
        model, x, y = problem(cell, batch=3, classes=classes)
        found = fused(model, x, y, epsilon, p)
        logits = logits_at(model, points_inside(model, x, epsilon, p, count=300))
        worst = torch.stack([cross_entropy(at, y, reduction="none") for at in logits]).amax(0)
        assert (worst <= found.linear + 1e-12).all()
        assert (found.linear <= found.interval).all()


@norms
def test_a_domain_is_respected_and_makes_it_smaller(p):
    model, x, y = problem("lstm", batch=3)
    x = x.clamp(-1, 1)
    found = fused(model, x, y, 0.4, p, low=-1.0, high=1.0).linear
    points = points_inside(model, x, 0.4, p, count=300).clamp(-1, 1)
    logits = logits_at(model, points)
    worst = torch.stack([cross_entropy(at, y, reduction="none") for at in logits]).amax(0)
    assert (worst <= found + 1e-12).all()
    assert (found < fused(model, x, y, 0.4, p).linear).all()


@cells
def test_epsilon_zero_gives_the_cross_entropy(cell):
    for classes in (2, 10):
        model, x, y = problem(cell, classes=classes)
        expected = cross_entropy(model(x), y, reduction="none")
        torch.testing.assert_close(fused(model, x, y, 0.0).linear, expected)


@cells
def test_it_grows_with_epsilon(cell):
    model, x, y = problem(cell)
    found = torch.stack([fused(model, x, y, e).linear for e in (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)])
    assert (found.diff(dim=0) > 0).all()


@cells
def test_two_classes_have_the_chord_of_the_exponential(cell):
    model, x, y = problem(cell, classes=2)
    outer = margin_ranges(model, x, y, EPSILON, intervals=True)
    inner = margin_ranges(model, x, y, EPSILON, intervals=False).lower
    least, most = (-outer.lower).exp(), (-outer.upper).exp()
    share = (inner - outer.lower) / (outer.upper - outer.lower)
    chord = torch.minimum(least + share * (most - least), least)
    expected = torch.log1p(chord)[:, 0]
    torch.testing.assert_close(fused(model, x, y).linear, expected)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("p", [2, math.inf])
@cells
def test_a_sample_is_bounded_alone_as_in_a_batch(cell, p):
    for classes in (3, 10):  # as many as samples, and more
        model, x, y = problem(cell, classes=classes)
        whole = fused(model, x, y, p=p)
        parts = [fused(model, x[i : i + 1], y[i : i + 1], p=p) for i in range(len(x))]
        torch.testing.assert_close(whole.linear, torch.cat([part.linear for part in parts]))
        torch.testing.assert_close(whole.interval, torch.cat([part.interval for part in parts]))


@cells
def test_float32_agrees_with_float64(cell):
    model, x, y = problem(cell, classes=10)
    expected = fused(model, x, y)
    found = fused(model.float(), x.float(), y)
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other.float(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("epsilon", [0.0, 1e-9, 1e-3, 0.1, 3.0])
@pytest.mark.parametrize("scale", [1e-3, 1e2, 1e4])
def test_large_logits_neither_overflow_nor_fall_below_the_cross_entropy(scale, epsilon):
    model, x, y = problem("lstm", classes=10)
    with torch.no_grad():
        model.head.weight.mul_(scale)
    model, x = model.float(), x.float()
    found = fused(model, x, y, epsilon)
    clean = cross_entropy(model(x), y, reduction="none")
    assert found.linear.isfinite().all()
    assert (found.linear >= clean * (1 - 1e-5) - 1e-6).all()
    found.linear.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("epsilon", [0.0, 1e-4, 0.1, 1.0])
@pytest.mark.parametrize("classes", [2, 10])
@cells
def test_gradients_are_those_of_finite_differences(cell, classes, epsilon):
    model, x, y = problem(cell, batch=3, classes=classes)
    loss = objectives.crown_ibp(epsilon, beta=0.6, fused=True)
    loss(model, x, y).backward()
    weights = list(model.parameters())
    generator = torch.Generator().manual_seed(1)
    steps = [1e-6 * torch.randn(w.shape, generator=generator, dtype=F64) for w in weights]
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for weight, step in zip(weights, steps, strict=True):
                weight += sign * step
            values.append(loss(model, x, y).item())
    slope = sum((w.grad * step).sum().item() for w, step in zip(weights, steps, strict=True))
    assert slope == pytest.approx((values[0] - values[1]) / 2, rel=1e-3)


@cells
def test_beta_mixes_it_with_the_cross_entropy_of_the_intervals(cell):
    model, x, y = problem(cell)
    found = fused(model, x, y)
    interval = objectives.ibp(EPSILON)(model, x, y)
    torch.testing.assert_close(found.interval.mean(), interval)
    for beta in (0.0, 0.3, 1.0):
        loss = objectives.crown_ibp(EPSILON, beta=beta, fused=True)
        expected = beta * found.linear.mean() + (1 - beta) * interval
        torch.testing.assert_close(loss(model, x, y), expected)


def test_what_counts_as_certified_is_certified():
    model, x, y = problem("tanh", batch=40, classes=2)
    strong = weak = 0
    for epsilon in (0.03, 0.1, 0.2, 0.3):
        found = fused(model, x, y, epsilon)
        ball = LpBall(epsilon)
        by_intervals = certify(model, x, y, ball, method="ibp").certified
        by_planes = certify(model, x, y, ball, method="crown-ibp").certified
        assert not (by_intervals & ~found.certified).any()
        assert not (found.certified & ~by_planes).any()
        strong, weak = strong + found.certified.sum(), weak + by_intervals.sum()
        parts = objectives.crown_ibp(epsilon, fused=True).parts(model, x, y)
        assert parts.certified == found.certified.float().mean()
    assert strong > weak > 0


def test_a_tie_is_not_certified():
    model, x, y = problem("gru", classes=2)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    for kind in (model.float(), model.double()):
        assert not fused(kind, x.to(kind.head.weight), y, 0.0).certified.any()


def test_an_input_that_is_nan_gives_nan():
    model, x, y = problem()
    x[1, 0, 0] = math.nan
    found = fused(model, x, y)
    assert found.linear.isnan().tolist() == [False, True, False, False, False]
    assert not found.certified[1]
