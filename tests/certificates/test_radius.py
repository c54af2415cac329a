"""Radii: proved, close to the largest provable one, and found in few evaluations."""

import math

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, certified_radius, certify
from popqorn_train.bounds.methods import Popqorn
from popqorn_train.certificates.brackets import Brackets
from popqorn_train.certificates.radius import search_radius
from popqorn_train.perturbations.region import dual_norm
from tests.problems import (
    CELLS,
    F64,
    METHODS,
    NORMS,
    SOME_CELLS,
    build,
    margins,
    predicted,
    sequences,
)

RTOL = 1e-3
cells = pytest.mark.parametrize("cell", CELLS)
some_cells = pytest.mark.parametrize("cell", SOME_CELLS)
norms = pytest.mark.parametrize("p", NORMS)
methods = pytest.mark.parametrize("method", METHODS)


class Linear(nn.Module):
    """Logits that are linear in the whole sequence."""

    def __init__(self, time=3, features=3, classes=4):
        super().__init__()
        self.head = nn.Linear(time * features, classes, dtype=F64)

    def forward(self, x):
        return self.head(x.flatten(1))


def problem(cell, batch=24, time=4, **options):
    model, x = build(cell, **options), sequences(batch, time, seed=5)
    return model, x, predicted(model, x)


@pytest.mark.one_in(2)
@norms
@methods
@cells
def test_every_radius_is_proved_and_a_little_more_is_not(cell, method, p):
    model, x, y = problem(cell, num_layers=2)
    radius = certified_radius(model, x, y, p=p, method=method)
    assert (radius > 0).all()
    assert certify(model, x, y, LpBall(radius, p), method=method).certified.all()
    more = LpBall(radius * (1 + 2 * RTOL), p)
    beyond = certify(model, x, y, more, method=method).certified.double().mean()
    assert beyond <= (0.1 if method == "popqorn" else 0)  # searched slopes jump with the box


@pytest.mark.one_in(3)
@norms
@some_cells
def test_at_most_12_evaluations_on_average(cell, p):
    model, x, y = problem(cell, batch=64, time=6)
    counts = search_radius(model, x, y, LpBall(0.0, p), rtol=RTOL).evaluations.double()
    assert 2 <= counts.mean() <= 12  # two to four of them above the first epsilon that fails


@pytest.mark.one_in(2, first=1)
@pytest.mark.parametrize(("rtol", "most"), [(1e-3, 7.5), (1e-2, 7)])
@some_cells
def test_few_evaluations_on_average_from_the_last_radius(cell, rtol, most):
    model, x, y = problem(cell, batch=64, time=6)
    generator = torch.Generator().manual_seed(0)
    drift = (0.05 * torch.randn(64, generator=generator, dtype=F64)).exp()
    smooth = Popqorn("lambda", ())  # searched slopes jump with the box, and the margin with them
    cold = search_radius(model, x, y, LpBall(0.0, 2), rtol=RTOL, method=smooth)
    start = cold.radius * drift
    warm = search_radius(model, x, y, LpBall(0.0, 2), rtol=rtol, start=start, method=smooth)
    # So do the lines of relu; a jump takes halving.
    assert warm.evaluations.double().mean() <= (most + 1 if cell == "relu" else most)
    # It can even cross 0 more than once.
    close = torch.isclose(warm.radius, cold.radius, rtol=rtol, atol=0).double().mean()
    assert close >= (0.95 if cell == "relu" else 1)


SHAPES = {
    "a line": lambda r: 1 - r,
    "an exponential": lambda r: 2 - (3 * r).exp(),
    "a square root": lambda r: 1 - r.sqrt(),
    "rising at first": lambda r: 1 + r - 3 * r**2,
    "flat far away": lambda r: 1 - 5 * ((r - 0.6) * 20).sigmoid(),
    "a jump": lambda r: torch.where(r < 0.3, 1.0, -1.0).to(r),
    "two roots more": lambda r: (0.2 - r) * (0.5 - r) * (0.6 - r) * 20,
    "NaN beyond": lambda r: torch.where(r < 0.4, 1 - r, torch.nan),
    "steep at the end": lambda r: 1 - r - (40 * (r - 0.7)).exp(),
}


@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-4])
@pytest.mark.parametrize("guess", [1e-6, 0.01, 0.2, 0.7, 5.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_root_of_any_margin_is_found(shape, guess, rtol):
    start = torch.tensor([guess], dtype=F64)
    one = torch.ones_like(start)
    state = Brackets(one, one, 10 * one, start, rtol)
    while len(chosen := state.open()):
        state.tell(chosen, shape(state.next))
    assert state.evaluations.item() <= 40
    grid = torch.linspace(0, 10, 100001, dtype=F64)
    held = shape(grid) > 0
    left = grid[1:][held[:-1] & ~held[1:]]  # where margins stop being positive
    assert shape(state.lower) > 0
    assert (((left + 1e-4) / state.lower - 1).abs() <= 1.1 * rtol + 2e-4 / left).any()


@pytest.mark.parametrize("scope", ["frame", "sequence"])
@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_radius_of_a_linear_classifier_is_known(p, scope):
    model, x = Linear(), sequences(16, 3)
    y = predicted(model, x)
    rows = (model.head.weight[y][:, None] - model.head.weight).view(16, 4, 3, 3)
    rows = rows.flatten(2)[:, :, None] if scope == "sequence" else rows
    expected = (margins(model(x), y) / dual_norm(rows, p).sum(-1)).amin(1)
    found = certified_radius(model, x, y, p=p, scope=scope)
    assert (found <= expected * (1 + 1e-12)).all()
    torch.testing.assert_close(found, expected.detach(), rtol=RTOL, atol=0)


@methods
@some_cells
def test_a_wrong_prediction_has_radius_0(cell, method):
    model, x, y = problem(cell)
    wrong = torch.arange(24) % 2 == 0
    radius = certified_radius(model, x, torch.where(wrong, (y + 1) % 3, y), method=method)
    assert (radius[wrong] == 0).all()
    assert (radius[~wrong] > 0).all()


def test_a_constant_model_is_capped_and_says_so():
    model, x, _ = problem("tanh")
    with torch.no_grad():
        model.head.weight.zero_()
    y = predicted(model, x)
    found = search_radius(model, x, y, LpBall(0.0), max_radius=2.5)
    assert found.capped.all()
    assert (found.radius == 2.5).all()


def test_a_radius_is_never_rounded_up():
    model, x, _ = problem("gru")
    with torch.no_grad():
        model.head.weight.zero_()
    y, model, x = predicted(model, x), model.float(), x.float()
    for cap in (0.1, 0.3, 0.7):  # float32(0.1) and float32(0.3) lie above
        radius = certified_radius(model, x, y, max_radius=cap)
        assert (radius.double() <= cap).all()
        assert (radius.double() > cap * (1 - 1e-6)).all()


def test_a_radius_below_the_cap_is_not_called_capped():
    model, x, y = problem("tanh")
    free = certified_radius(model, x, y)
    cap = free.median().item()
    found = search_radius(model, x, y, LpBall(0.0), max_radius=cap)
    assert (found.capped == (free > cap)).sum() >= 23  # the median itself may fall either way
    assert (found.radius <= cap).all()


@pytest.mark.parametrize(("p", "width"), [(1, 3.0), (2, 3**0.5), (math.inf, 1.0)])
def test_the_cap_of_a_clipped_radius_is_the_norm_of_the_domain(p, width):
    model, x, _ = problem("tanh")
    with torch.no_grad():
        model.head.weight.zero_()
    found = certified_radius(model, x.sigmoid(), predicted(model, x), p=p, low=0.0, high=1.0)
    torch.testing.assert_close(found, torch.full_like(found, width))


@pytest.mark.one_in(3)
@norms
@some_cells
def test_a_domain_makes_radii_larger(cell, p):
    model, x, _ = problem(cell)
    x = x.clamp(-1, 1)
    y = predicted(model, x)
    domain = {"p": p, "low": -1.0, "high": 1.0}
    for method in ("ibp", "popqorn"):
        free = certified_radius(model, x, y, p=p, method=method)
        cut = certified_radius(model, x, y, method=method, **domain)
        assert certify(model, x, y, LpBall(cut, **domain), method=method).certified.all()
        # Slopes chosen for a smaller box are not always better ones; intervals are.
        assert (cut >= free * (1 - RTOL if method == "ibp" else 0.95)).all()
        assert cut.mean() > free.mean()


def test_one_class_to_keep_apart_from_never_lowers_the_radius():
    model, x, y = problem("tanh")
    method = Popqorn("lambda", ())
    each = [certified_radius(model, x, y, against=(y + k) % 3, method=method) for k in (1, 2)]
    least = torch.minimum(*each)
    both = certified_radius(model, x, y, method=method)
    torch.testing.assert_close(least, both, rtol=2 * RTOL, atol=0)


def test_one_frame_moving_has_a_larger_radius_than_all():
    model, x, y = problem("tanh")
    every = certified_radius(model, x, y)
    for t in range(4):
        one = certified_radius(model, x, y, frames=torch.arange(4) == t)
        assert (one > every).all()


@some_cells
def test_a_sample_has_the_same_radius_alone_and_in_a_batch(cell):
    model, x, y = problem(cell)
    whole = certified_radius(model, x, y, p=2)
    alone = torch.cat([certified_radius(model, x[i : i + 1], y[i : i + 1], p=2) for i in (0, 9)])
    torch.testing.assert_close(alone, whole[[0, 9]], rtol=1e-9, atol=0)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-4, 1e-6])
def test_the_answer_is_within_the_relative_precision_asked(rtol):
    model, x, y = problem("tanh")
    smooth = Popqorn("lambda", ())
    best = certified_radius(model, x, y, rtol=1e-9, method=smooth)
    found = certified_radius(model, x, y, rtol=rtol, method=smooth)
    assert (found <= best * (1 + 1e-9)).all()
    assert (found >= best * (1 - rtol)).all()


@pytest.mark.one_in(2)
@norms
@cells
def test_float32_radii_are_rounded_down_to_what_float64_proves(cell, p):
    model, x, y = problem(cell)
    x = x.float()
    method = Popqorn("lambda", ())
    exact = certified_radius(model, x.double(), y, p=p, rtol=1e-6, method=method)
    found = certified_radius(model.float(), x, y, p=p, rtol=1e-6, method=method)
    assert found.dtype == torch.float32
    assert (found.double() <= exact * (1 + 1e-5)).all()
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=0)
    proof = certify(model.double(), x.double(), y, LpBall(found.double(), p), method=method)
    assert proof.certified.all()
