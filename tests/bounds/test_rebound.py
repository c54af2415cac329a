"""Re-bounding under the assumption that the class flips: sound, whatever it assumes."""

import math

import pytest
import torch

from popqorn_train import LpBall, bound, certified_radius, certify
from popqorn_train.bounds.backward import ancestors, minimum
from popqorn_train.bounds.contradiction import refute
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.methods import METHODS, Popqorn, TightPopqorn
from popqorn_train.bounds.node import Nonlinear
from popqorn_train.bounds.rebound import BadRegion, Budget
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.certificates.margins import margin_rows
from popqorn_train.certificates.pgd import attack
from popqorn_train.perturbations.region import Bounds, dual_norm
from popqorn_train.relaxations.products import PRODUCTS
from tests.problems import (
    CELLS,
    F64,
    SOME_CELLS,
    build,
    margins,
    points_inside,
    predicted,
    sequences,
)

EVERYTHING = Budget(rounds=6, units=None, frames=None)
TIGHT, TIGHTEST = METHODS["popqorn-tight"], METHODS["popqorn-tightest"]
RELAXATION = Relaxation("tilted", tuple(PRODUCTS))
cells = pytest.mark.parametrize("cell", SOME_CELLS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64])


def attacked(model, x, y, ball, seed=0):
    """Points ``(P, B, T, N)`` that an attack reached, one a restart."""
    found = [attack(model, x, y, ball, steps=20, restarts=1, seed=seed + k).moved for k in range(4)]
    return torch.stack(found)


def shifted(model, x, y, ball, by):
    """Raise the label's logits until the worst point attacked has a margin of ``by``."""
    points = attacked(model, x, y, ball)
    with torch.no_grad():
        for sample in range(len(x)):
            others = margins(model(points[:, sample]), y[sample].repeat(len(points))).amin()
            assert len(x) == 1
            model.head.bias[y[sample]] -= others - by
    return points


def region_of(model, x, y, ball, against):
    """The region in which the margin against one class is not positive, of every sample."""
    case = bound(model).instance(x)
    output = case.graph(ball)
    rows = margin_rows(y, output.shape[0], case.value, against[:, None])[:, 0]
    found = enclose(output, relax=RELAXATION, backward=True)
    lower, minus_upper = (minimum(output, sign * rows[:, None], found)[:, 0] for sign in (1, -1))
    bounds = Bounds(lower, -minus_upper)
    return BadRegion.of(output, found, torch.arange(len(y)), rows, bounds), output, found, rows


def values_at(model, point, like):
    """What every node of a graph is at a point, as a dictionary over the nodes of ``like``."""
    output = bound(model).instance(point).graph(LpBall(0.0))
    new = dict(zip(ancestors(like), ancestors(output), strict=True))
    found = enclose(output)
    return {node: found.ranges[twin] for node, twin in new.items() if twin in found.ranges}


@pytest.mark.one_in(2)
@dtypes
@cells
@pytest.mark.parametrize("layers", [1, 2])
def test_every_bad_input_stays_in_the_boxes_of_the_bad_region(cell, layers, dtype):
    shrunk = []
    for seed in range(2):
        model, x = build(cell, seed=seed, num_layers=layers), sequences(1, 3, seed=seed)
        y, ball = predicted(model, x), LpBall(0.15)
        points = shifted(model, x, y, ball, by=-1e-3)
        model, x, points = model.to(dtype), x.to(dtype), points.to(dtype)
        with torch.no_grad():
            logits = model(points[:, 0])
            bad = (logits[:, y] - logits).argmin(1)[(logits[:, y] - logits).amin(1).argmin()]
            region, output, found, rows = region_of(model, x, y, ball, bad[None])
            worst = points[:, 0][(logits @ rows[0]) <= 0]
            assert len(worst)
            for index in range(6):
                region.tighten(RELAXATION, EVERYTHING, 1 + 2 * 0.75**index)
            assert not region.empty.any()
            assert (region.least_margin() <= (logits @ rows[0]).amin() + 1e-5).all()
            for point in worst[:: max(1, len(worst) // 12)]:
                truth = values_at(model, point[None], region._output)
                for node, box in region._found.ranges.items():
                    if any(node in reader.inputs for reader in region._found.relaxations):
                        value = (truth[node].lower + truth[node].upper) / 2
                        slack = 1e-9 if dtype == F64 else 2e-4
                        assert (value >= box.lower - slack).all()
                        assert (value <= box.upper + slack).all()
            reads = [n for r in region._found.relaxations for n in r.inputs if n.time >= 0]
            twins = dict(zip(ancestors(region._output), ancestors(output), strict=True))
            shrunk += [width(region._found, n) / width(found, twins[n]) for n in reads]
    assert min(shrunk) < (0.3 if layers == 1 else 0.7)  # the boxes really shrink


def width(found, node):
    lower, upper = found.ranges[node]
    return float((upper - lower).mean() / 2 + 1e-12)


@pytest.mark.one_in(2)
@cells
def test_planes_of_the_bad_region_hold_at_every_bad_input(cell):
    model, x = build(cell, seed=5), sequences(1, 4, seed=5)
    y, ball = predicted(model, x), LpBall(0.15)
    points = shifted(model, x, y, ball, by=-1e-2)
    with torch.no_grad():
        logits = model(points[:, 0])
        bad = (logits[:, y] - logits).argmin(1)[(logits[:, y] - logits).amin(1).argmin()]
        region, _, _, rows = region_of(model, x, y, ball, bad[None])
        for index in range(6):
            region.tighten(RELAXATION, EVERYTHING, 1 + 2 * 0.75**index)
        for point in points[:, 0][(logits @ rows[0]) <= 0]:
            truth = values_at(model, point[None], region._output)
            for node, relaxation in region._found.relaxations.items():
                value = truth[node].lower
                inputs = [truth[parent].lower for parent in node.inputs]
                for side, sign in zip(node.sides(relaxation), (1, -1), strict=True):
                    plane = sum((a * v for a, v in zip(side[:-1], inputs, strict=True)), side[-1])
                    assert (sign * (value - plane) >= -1e-9).all()


@pytest.mark.one_in(2)
@dtypes
@cells
@pytest.mark.parametrize("method", [TIGHT, TIGHTEST], ids=["tight", "tightest"])
def test_nothing_is_certified_that_an_attack_just_breaks(cell, method, dtype):
    for seed in range(3):
        model, x = build(cell, seed=seed, gain=2.0), sequences(1, 3, seed=seed)
        y = predicted(model, x)
        ball = LpBall(0.1 + 0.1 * (seed % 3), (1, 2, math.inf)[seed % 3])
        shifted(model, x, y, ball, by=-1e-4)
        found = certify(model.to(dtype), x.to(dtype), y, ball, method=method, confirm=None)
        assert not found.certified.any()


@pytest.mark.one_in(2)
@cells
def test_tighter_methods_certify_all_that_cheaper_ones_do_and_more(cell):
    model, x = build(cell, seed=2, hidden=6), sequences(12, 3, seed=2)
    y = predicted(model, x)
    radius = certified_radius(model, x, y, method=Popqorn())
    counts = []
    for factor in (1.03, 1.1):
        ball = LpBall(factor * radius)
        cheap, tight, tightest = (
            certify(model, x, y, ball, method=method) for method in (Popqorn(), TIGHT, TIGHTEST)
        )
        assert (tight.certified >= cheap.certified).all()
        assert (tightest.certified >= tight.certified).all()
        assert (tight.margins >= cheap.margins).all()
        counts.append((tight.certified & ~cheap.certified).sum().item())
    assert sum(counts) > 2


def test_contradictions_alone_certify_more():
    """What they prove is a margin above 0, without joint bounds."""
    model, x = build("tanh", seed=2, hidden=6), sequences(12, 3, seed=2)
    y = predicted(model, x)
    ball = LpBall(1.03 * certified_radius(model, x, y, method=Popqorn()))
    cheap, tight = (
        certify(model, x, y, ball, method=method)
        for method in (Popqorn(), TightPopqorn(budgets=(EVERYTHING,)))
    )
    assert (tight.certified & ~cheap.certified).sum() > 2


@pytest.mark.slow
@pytest.mark.one_in(4, first=1)
@pytest.mark.parametrize("cell", CELLS)
def test_radii_of_the_tight_method_are_proved_and_not_smaller(cell):
    model, x = build(cell, seed=3), sequences(4, 3, seed=3)
    y = predicted(model, x)
    cheap = certified_radius(model, x, y)
    tight = certified_radius(model, x, y, method="popqorn-tight")
    assert (tight >= cheap * (1 - 2e-3)).all()
    assert tight.mean() > cheap.mean() * 1.01
    assert certify(model, x, y, LpBall(tight), method="popqorn-tight").certified.all()
    points = points_inside(model, x, 1.0, math.inf, count=200)
    inside = x + tight[:, None, None] * (points - x)
    logits = model(inside.flatten(0, 1)).view(len(points), 4, -1)
    for sample in range(4):
        assert (logits[:, sample].argmax(1) == y[sample]).all()


@cells
def test_samples_labels_and_epsilons_do_not_mix(cell):
    model, x = build(cell, seed=4, hidden=6, classes=4), sequences(3, 3, seed=4)
    y = predicted(model, x)
    epsilon = certified_radius(model, x, y) * torch.tensor([1.02, 1.1, 0.9], dtype=F64)
    whole = certify(model, x, y, LpBall(epsilon), method=TIGHTEST)
    for i in range(3):
        alone = certify(
            model, x[i : i + 1], y[i : i + 1], LpBall(epsilon[i].item()), method=TIGHTEST
        )
        assert alone.certified.item() == whole.certified[i].item()
        torch.testing.assert_close(alone.margins[0], whole.margins[i], rtol=0, atol=1e-6)


def test_a_bad_region_is_no_enclosure():
    model, x = build("lstm"), sequences(2, 3)
    y = predicted(model, x)
    with torch.no_grad():
        region, output, _, rows = region_of(model, x, y, LpBall(0.1), (y + 1) % 3)
        assert not hasattr(region, "ranges")
        with pytest.raises(AttributeError):
            minimum(output, rows[:, None], region)


@pytest.mark.one_in(4)
@dtypes
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("gate", [1e-6, 0.0])
@pytest.mark.parametrize("bias", [5.0, -90.0, 107.6, 500.0])
def test_dead_gates_and_single_moved_frames_are_not_taken_for_empty(cell, gate, bias, dtype):
    model, x = build(cell, gain=2.0), sequences(1, 3)
    with torch.no_grad():
        first = slice(0, 4)
        model.rnn.weight_ih_l0[first] *= gate
        model.rnn.weight_hh_l0[first] *= gate
        model.rnn.bias_ih_l0[first] = bias
    y = predicted(model, x)
    ball = LpBall(0.3, frames=torch.tensor([False, False, True]))
    shifted(model, x, y, ball, by=-1e-4)
    found = certify(model.to(dtype), x.to(dtype), y, ball, method=TIGHTEST, confirm=None)
    assert not found.certified.any()


@pytest.mark.slow
@pytest.mark.one_in(2)
@dtypes
def test_a_state_that_a_saturated_gate_keeps_is_not_taken_for_empty(dtype):
    # 1 - z is 2e-8 there: less than float32 can take from 1, which the intervals do.
    model = build("gru", seed=2000124, gain=10.0, num_layers=2, hidden=3)
    x, ball = sequences(1, 2, seed=2000124), LpBall(0.03, 2)
    with torch.no_grad():
        model.rnn.weight_ih_l0[:3] *= 1e-6
    y = predicted(model, x)
    for by in (-4.2e-3, -4.2e-5):
        shifted(model, x, y, ball, by=by)
        for method in (TIGHT, TIGHTEST):
            found = certify(model.to(dtype), x.to(dtype), y, ball, method=method, confirm=None)
            assert not found.certified.any()
        model.double()


@pytest.mark.one_in(2)
@dtypes
def test_numbers_that_underflow_when_squared_are_not_taken_for_empty(dtype):
    # A gate at -58 makes a cell of 3e-26, on which the input has a slope of 1e-32.
    model = build("lstm", seed=2000174, gain=10.0, num_layers=2, hidden=4)
    x = sequences(1, 2, seed=2000174)
    with torch.no_grad():
        model.rnn.weight_ih_l0[:4] *= 1e-6
        model.rnn.bias_ih_l0[::3] -= 60
    y, ball = predicted(model, x), LpBall(0.3, 2, frames=torch.tensor([True, False]))
    for by in (-1e-2, -1e-4):
        shifted(model, x, y, ball, by=by)
        for method in (TIGHT, TIGHTEST):
            found = certify(model.to(dtype), x.to(dtype), y, ball, method=method, confirm=None)
            assert not found.certified.any()
        model.double()


def test_reach_of_tiny_slopes_does_not_underflow():
    slope = torch.full((1, 4), 1e-30)
    for p in (1.5, 2, 3):
        found = dual_norm(slope, p)
        torch.testing.assert_close(found, dual_norm(slope.double(), p).float(), rtol=1e-5, atol=0)


@dtypes
def test_bands_far_from_the_origin_do_not_cut_the_other_argument(dtype):
    # A gate weight of 6.3e-6 at bias 107.6: its band cancels in float32 (frontier.md 10).
    model = torch.nn.Module()
    rnn, head = torch.nn.LSTM(1, 1, batch_first=True), torch.nn.Linear(1, 2)
    with torch.no_grad():
        for weight in rnn.parameters():
            weight.zero_()
        rnn.weight_ih_l0[:, 0] = torch.tensor([6.3e-6, 0.0, 3.2, 0.0])
        rnn.bias_ih_l0.copy_(torch.tensor([107.6, 0.0, 0.384, 3.0]))
        head.weight.copy_(torch.tensor([[1.0], [0.0]]))
        x = torch.tensor([[[-0.49]]])
        least = (
            torch.tanh(torch.tanh(torch.tensor(3.2 * (-0.49 - 0.6) + 0.384)))
            * torch.tensor(3.0).sigmoid()
        )
        head.bias.copy_(torch.stack([-least - 1e-5, torch.tensor(0.0)]))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = rnn, head

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    del model
    net = Net().to(dtype)
    for method in ("popqorn", "popqorn-tight", "popqorn-tightest"):
        found = certify(
            net, x.to(dtype), torch.tensor([0]), LpBall(0.6), method=method, confirm=None
        )
        assert not found.certified.any()
        assert found.margin.item() <= 1e-6


def test_nan_is_never_certified():
    model, x = build("lstm"), sequences(3, 3)
    y = predicted(model, x)
    with torch.no_grad():
        model.head.weight[(y[0] + 1) % 3] = math.nan
        region, *_ = region_of(model, x[:1], y[:1], LpBall(0.1), (y[:1] + 1) % 3)
        lower = torch.tensor([-1.0], dtype=F64)
        best = refute(region, lower, relaxation=RELAXATION, budget=EVERYTHING)
        assert not (best > 0).any()


def test_budgets_bound_what_is_done_again():
    model, x = build("lstm", hidden=6), sequences(2, 4)
    y = predicted(model, x)
    with torch.no_grad():
        region, output, found, _ = region_of(model, x, y, LpBall(0.3), (y + 1) % 3)
        region.tighten(RELAXATION, Budget(rounds=1, units=2, frames=1), 2.0)
        twins = dict(zip(ancestors(region._output), ancestors(output), strict=True))
        for node, planes in region._found.relaxations.items():
            old = found.relaxations[twins[node]]
            changed = (planes.lower.intercept != old.lower.intercept).sum(1)
            assert (changed <= (2 if node.time == 3 else 0)).all()
            assert isinstance(node, Nonlinear)


@pytest.mark.slow
def test_no_certificate_beyond_the_attacked_radius_of_a_thousand_networks():
    method = TightPopqorn(budgets=(EVERYTHING,))
    for seed in range(1000):
        cell = CELLS[seed % 4]
        model, x = build(cell, seed=seed, gain=1 + seed % 3), sequences(1, 3, seed=seed)
        y, p = predicted(model, x), (1, 2, math.inf)[seed % 3]
        low, high = 0.0, 4.0
        for _ in range(8):
            middle = (low + high) / 2
            broken = (
                attack(model, x, y, LpBall(middle, p), steps=15, restarts=2, seed=seed).margin <= 0
            )
            low, high = (low, middle) if broken else (middle, high)
        assert (
            high == 4.0
            or not certify(model, x, y, LpBall(1.05 * high, p), method=method).certified.any()
        )
