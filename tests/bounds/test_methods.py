"""The options of the methods: policies of slopes, octagons, and what they are refused for."""

import math
from types import SimpleNamespace

import pytest
import torch

from popqorn_train import CertifiedLoss, LpBall, certified_radius, certify, logit_bounds
from popqorn_train.bounds import popqorn
from popqorn_train.bounds.methods import (
    METHODS,
    TRAINING,
    FastPopqorn,
    Popqorn,
    TightPopqorn,
    method_named,
)
from popqorn_train.bounds.rebound import Budget
from popqorn_train.relaxations.products import PRODUCTS
from popqorn_train.relaxations.slopes import POLICIES
from tests.problems import (
    CELLS,
    F64,
    build,
    logits_at,
    points_inside,
    predicted,
    sampled_problem,
    sequences,
)

OPTIONS = {
    f"{slopes}-{len(octagons)}": Popqorn(slopes, octagons)
    for slopes in (*POLICIES, "best")
    for octagons in ((), tuple(PRODUCTS))
}
cells = pytest.mark.parametrize("cell", ["lstm", "gru"])  # the cells with products
options = pytest.mark.parametrize("method", OPTIONS.values(), ids=OPTIONS)


@pytest.mark.one_in(6)
@options
@cells
def test_every_policy_encloses_the_points_of_the_ball(cell, method):
    model, x, logits = sampled_problem(cell, 2, 2, 5, epsilon=0.1)
    lower, upper = logit_bounds(model, x, LpBall(0.1, 2), method=method)
    assert (logits >= lower - 1e-12).all()
    assert (logits <= upper + 1e-12).all()


@pytest.mark.one_in(2)
@options
@cells
@pytest.mark.parametrize("epsilon", [1e-9, 100.0])
def test_tiny_and_huge_balls_are_enclosed(cell, method, epsilon):
    model, x = build(cell, seed=6, gain=3.0), sequences(3, 3, seed=6)
    logits = logits_at(model, points_inside(model, x, epsilon, math.inf, count=100))
    lower, upper = logit_bounds(model, x, LpBall(epsilon), method=method)
    assert (logits >= lower - 1e-12).all()
    assert (logits <= upper + 1e-12).all()


@pytest.mark.one_in(6)
@options
@cells
def test_epsilon_zero_gives_the_clean_logits(cell, method):
    model, x = build(cell, num_layers=2), sequences(3, 5)
    for end in logit_bounds(model, x, LpBall(0.0), method=method):
        torch.testing.assert_close(end, model(x), rtol=0, atol=1e-12)


@pytest.mark.one_in(6)
@options
@cells
def test_float32_bounds_stay_close_to_float64_ones(cell, method):
    model, x = build(cell, seed=7), sequences(4, 4, seed=7)
    exact = logit_bounds(model, x, LpBall(0.1), method=method)
    single = logit_bounds(model.float(), x.float(), LpBall(0.1), method=method)
    width = (exact.upper - exact.lower).mean()
    for one, two in zip(single, exact, strict=True):
        assert (one.double() - two).abs().max() < 0.05 * width  # searched slopes may jump


@pytest.mark.one_in(6)
@options
@cells
def test_a_sample_has_the_same_bounds_alone_and_in_a_batch(cell, method):
    model, x = build(cell), sequences(5, 4)
    epsilon = torch.linspace(0.01, 0.3, 5, dtype=F64)
    whole = logit_bounds(model, x, LpBall(epsilon), method=method)
    alone = logit_bounds(model, x[3:4], LpBall(epsilon[3].item()), method=method)
    for one, two in zip(alone, whole, strict=True):
        torch.testing.assert_close(one, two[3:4], rtol=0, atol=1e-9)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_best_is_the_better_of_lambda_and_tilted(cell):
    model, x = build(cell), sequences(6, 4)
    y, ball = predicted(model, x), LpBall(0.15)
    one, two, best = (
        certify(model, x, y, ball, method=Popqorn(slopes, ())).margins
        for slopes in ("lambda", "tilted", "best")
    )
    torch.testing.assert_close(best, torch.maximum(one, two))
    assert not torch.equal(one, two)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_planes_beat_lines_which_beat_constants_and_octagons_beat_boxes(cell):
    model, x = build(cell, hidden=8), sequences(16, 5)
    ball = LpBall(0.05)

    def width(slopes, octagons=()):
        lower, upper = logit_bounds(model, x, ball, method=Popqorn(slopes, octagons))
        return (upper - lower).mean()

    assert width("tilted", tuple(PRODUCTS)) < width("tilted") < width("line") < width("constant")
    assert width("lambda") < width("line")


def test_tight_methods_bound_logits_like_popqorn():
    model, x = build("lstm"), sequences(3, 4)
    expected = logit_bounds(model, x, LpBall(0.1), method="popqorn")
    for name in ("popqorn-tight", "popqorn-tightest"):
        for one, two in zip(
            logit_bounds(model, x, LpBall(0.1), method=name), expected, strict=True
        ):
            assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slopes": "steep"}, "`slopes` must be one of 'lambda', 'tilted'.* got 'steep'"),
        ({"octagons": "reset"}, "`octagons` must be a tuple of .* got 'reset'"),
        ({"octagons": ("cube",)}, "`octagons` must be a tuple of .*cube"),
    ],
)
def test_unknown_options_are_refused(options, message):
    for kind in (Popqorn, TightPopqorn):
        with pytest.raises(ValueError, match=message):
            kind(**options)


@pytest.mark.parametrize("counts", [(0, 1, 1), (1, 0, 1), (1, 1, -1), (1.5, 1, 1), (None, 1, 1)])
def test_budgets_are_positive_counts(counts):
    with pytest.raises(ValueError, match="must be a positive whole number"):
        Budget(*counts)


def test_losses_know_no_method_without_gradients():
    assert set(TRAINING) < set(METHODS)
    with pytest.raises(ValueError, match=r"`method` must be one of .* got 'popqorn-tight'"):
        method_named("popqorn-tight", TRAINING)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("epsilon", [0.003, 0.03, 0.1])
def test_what_decides_proves_what_the_method_proves(cell, epsilon):
    """With bounds of intervals for samples of which a row is not positive, in any batch."""
    method, (model, x) = METHODS["popqorn-fast"], (build(cell, gain=3.0), sequences(6, 3))
    y = predicted(model, x)
    full, some = (
        certify(model, x, y, LpBall(epsilon), method=one) for one in (method, method.deciding)
    )
    assert (some.margin <= full.margin).all()
    assert some.certified.tolist() == full.certified.tolist()
    assert (some.margin == full.margin)[~full.certified].all()
    alone = certify(model, x[:1], y[:1], LpBall(epsilon), method=method.deciding)
    torch.testing.assert_close(alone.margin, some.margin[:1], rtol=1e-9, atol=1e-12)


def test_intervals_are_asked_of_samples_that_forms_do_not_prove(monkeypatch):
    method = METHODS["popqorn-fast"]
    bound = torch.tensor([[0.1, 0.2], [-0.1, 0.3]])
    monkeypatch.setattr(popqorn, "_of_intervals", lambda output, rows, _: torch.ones(len(rows), 2))
    monkeypatch.setattr(
        FastPopqorn, "from_forms", lambda self, output, rows, _: (bound[rows], None)
    )
    output = SimpleNamespace(region="moves")
    for rows, expected in (
        ([0, 1], [[0.1, 0.2], [1.0, 1.0]]),
        ([0], [[0.1, 0.2]]),
        ([1], [[1.0, 1.0]]),
    ):
        found = method.deciding.bounded(output, torch.tensor(rows))[0]
        torch.testing.assert_close(found, torch.tensor(expected))
        assert (method.bounded(output, torch.tensor(rows))[0] == 1).all()


def test_a_subclass_searches_with_bounds_of_its_own():
    class Half(FastPopqorn):
        def bounded(self, output, rows):
            bound, found = super().bounded(output, rows)
            return bound - 0.5 * bound.detach().abs() - 0.01, found

    assert Half().deciding == Half()
    model, x = build("gru"), sequences(4, 3)
    y, own = predicted(model, x), Half()
    radius = certified_radius(model, x, y, method=own, rtol=1e-2)
    assert certify(model, x, y, LpBall(radius), method=own).certified.all()
    assert not certify(model, x, y, LpBall(1.1 * radius), method=own).certified.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cell", ["tanh", "gru"])
def test_certificates_leave_nothing_behind_that_cannot_be_differentiated(cell, method):
    model, x = build(cell, gain=3.0), sequences(3, 3)
    y = predicted(model, x)
    found = certify(model, x, y, LpBall(0.03), method=method)
    assert not any(part.is_inference() for part in (found.margin, found.certified))
    found.margin.mul_(2)  # a tensor like any other
    for name in TRAINING:
        model.zero_grad()
        CertifiedLoss(0.03, method=name)(model, x, y).backward()
        assert all(weight.grad.isfinite().all() for weight in model.parameters())
