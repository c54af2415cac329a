"""The joint bound of all gaps: sound on whatever an attack finds, and larger than planes alone."""

import math

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, bound, certified_radius, certify
from popqorn_train.bounds import attempts
from popqorn_train.bounds.backward import minimum
from popqorn_train.bounds.dual import Lowest
from popqorn_train.bounds.ellipsoid import Ellipsoid
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.identity import linear_part
from popqorn_train.bounds.joint import Jointly, JointRegion, refute_jointly
from popqorn_train.bounds.joint_pass import JointPass, Read
from popqorn_train.bounds.joint_rows import Rows
from popqorn_train.bounds.popqorn import Popqorn
from popqorn_train.bounds.quadratics import Margin, quadratic_of
from popqorn_train.bounds.tight import TightPopqorn
from popqorn_train.certificates.margins import margin_rows
from popqorn_train.certificates.pgd import attack
from popqorn_train.relaxations.paraboloids import Axis
from tests.bounds.test_rebound import RELAXATION, attacked, shifted, values_at
from tests.problems import CELLS, F64, SOME_CELLS, build, predicted, sequences

JOINT = TightPopqorn(budgets=(Jointly(rounds=6, hope=math.inf, trials=12),))
cells = pytest.mark.parametrize("cell", SOME_CELLS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64])
NORMS = pytest.mark.parametrize("p", [2, math.inf])


def graph_of(model, x, ball, y, against):
    """Logits, rows, and ranges that hold on the ball."""
    case = bound(model).instance(x)
    output = case.graph(ball)
    rows = margin_rows(y, output.shape[0], case.value, against[:, None])[:, 0]
    return output, rows, enclose(output, relax=RELAXATION, backward=True)


def form_of(output, rows, found):
    """The quadratic function, and the pass it was made of."""
    joint = JointPass(output, found.ranges, {}, RELAXATION)
    return Margin(output, rows, joint).below(), joint


@pytest.mark.one_in(2)
@cells
@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_the_identity_holds_at_attacked_inputs(cell, layers):
    model, x = build(cell, num_layers=layers), sequences(1, 3)
    y, ball = predicted(model, x), LpBall(0.2)
    output, rows, found = graph_of(model, x, ball, y, (y + 1) % 3)
    joint = JointPass(output, found.ranges, {}, RELAXATION)
    enclosure = joint.run()
    constant, on_input, slopes = linear_part(output, rows, enclosure)
    with torch.enable_grad():
        points = attacked(model, x, y, ball)
    for point in points[:, 0]:
        truth = values_at(model, point[None], output)
        total = constant + (on_input * point.flatten()[None, : on_input.shape[1]]).sum(1)
        for node, slope in slopes.items():
            if node in enclosure.relaxations:
                inputs = [truth[parent].lower for parent in node.inputs]
                below, above = node.at(enclosure.relaxations[node], *inputs)
                assert torch.equal(below, above)  # one linear function
                total = total + (slope * (truth[node].lower - below).flatten(1)).sum(1)
        margin = model(point[None]) @ rows[0]
        assert (margin - total).abs() < 1e-9 * (1 + margin.abs())


@pytest.mark.one_in(2)
@cells
@NORMS
@torch.no_grad()
def test_quadratics_and_arguments_hold_at_attacked_inputs(cell, p):
    model, x = build(cell, seed=1), sequences(1, 3, seed=1)
    y, ball = predicted(model, x), LpBall(0.2, p)
    output, rows, found = graph_of(model, x, ball, y, (y + 1) % 3)
    form, joint = form_of(output, rows, found)
    slopes = linear_part(output, rows, joint.found)[2]
    with torch.enable_grad():
        points = attacked(model, x, y, ball)
    for point in points[:, 0]:
        truth = values_at(model, point[None], output)
        for gap, arguments in form.rows:
            slope = slopes[gap.place[0]]
            quadratic, _ = quadratic_of(gap, slope)
            at = [row.read.sign * truth[row.read.node].lower for row in arguments]
            places = [(z - r.axis.middle) / r.axis.half for z, r in zip(at, arguments, strict=True)]
            for row, place in zip(arguments, places, strict=True):
                reach = row.data.abs().sum(-1) + row.own + 1e-12
                assert (place.abs() <= 1).all()
                assert ((place - row.center).abs() <= reach).all()
            u, v = (*places, torch.zeros_like(slope))[:2]
            one, on_u, on_v, uu, uv, vv = quadratic
            low = one + on_u * u + on_v * v + uu * u * u + uv * u * v + vv * v * v
            if gap.product is None:
                value = gap.place[0].curve.value(at[0])
                plane = gap.strip.slope * at[0] + gap.strip.middle
            else:
                value = gap.product.value(*at)
                plane = gap.strip.x * at[0] + gap.strip.y * at[1] + gap.strip.middle
            assert (slope * (value - plane) >= low - 1e-12).all()


@pytest.mark.one_in(2)
@dtypes
@cells
@NORMS
def test_no_attacked_margin_lies_below_the_joint_bound(cell, p, dtype):
    gains = []
    for seed in range(4):
        layers = 1 + seed % 2
        model, x = build(cell, seed=seed, num_layers=layers), sequences(2, 3, seed=seed)
        y, ball = predicted(model, x), LpBall(0.3, p)
        points = attacked(model, x, y, ball)
        model, x, points = model.to(dtype), x.to(dtype), points.to(dtype)
        with torch.no_grad():
            against = (y + 1 + seed % 2) % 3
            output, rows, found = graph_of(model, x, ball, y, against)
            planes = minimum(output, rows[:, None], found)[:, 0]
            region = JointRegion(
                output, rows, found, threshold=torch.zeros_like(planes), relaxation=RELAXATION
            )
            logits = model(points.flatten(0, 1)).view(len(points), 2, -1)
            reached = (logits * rows).sum(-1).amin(0)
            slack = 1e-9 if dtype == F64 else 2e-5 * (1 + reached.abs())
            assert (region.least_margin <= reached + slack).all()
            gains.append((region.least_margin - planes).mean().item())
        model.double()
    assert cell == "relu" or max(gains) > 0  # below a kink, a quadratic gains little or nothing


@pytest.mark.one_in(2)
@dtypes
@cells
@NORMS
def test_every_bad_input_stays_within_what_the_ellipsoid_leaves(cell, p, dtype):
    cut = 0
    for seed in range(3):
        model, x = build(cell, seed=seed, num_layers=1 + seed % 2), sequences(1, 3, seed=seed)
        y, ball = predicted(model, x), LpBall(0.25, p)
        points = shifted(model, x, y, ball, by=-1e-3)
        model, x, points = model.to(dtype), x.to(dtype), points.to(dtype)
        with torch.no_grad():
            logits = model(points[:, 0])
            bad = (logits[:, y] - logits).argmin(1)[(logits[:, y] - logits).amin(1).argmin()]
            output, rows, found = graph_of(model, x, ball, y, bad[None])
            worst = points[:, 0][(logits @ rows[0]) <= 0]
            assert len(worst)
            zero = torch.zeros(1, dtype=dtype)
            region = JointRegion(output, rows, found, threshold=zero, relaxation=RELAXATION)
            for _ in range(5):
                cut += bool(region.tighten().any())
                assert region.least_margin <= (logits @ rows[0]).amin() + 1e-5
            for point in worst:
                truth = values_at(model, point[None], output)
                for _, arguments in region._form.rows:
                    for row in arguments:
                        value = truth[row.read.node]
                        low, high = region._ranges[row.read.node]
                        slack = 1e-9 if dtype == F64 else 2e-4
                        assert (value.lower >= low - slack).all()
                        assert (value.upper <= high + slack).all()
        model.double()
    assert cut


@pytest.mark.one_in(2)
@dtypes
@cells
@pytest.mark.parametrize("by", [-1e-4, -1e-6])
def test_nothing_is_certified_that_an_attack_just_breaks(cell, by, dtype):
    for seed in range(4):
        model, x = build(cell, seed=seed, gain=1.5 + seed % 2), sequences(1, 3, seed=seed)
        y, ball = predicted(model, x), LpBall(0.1 + 0.1 * (seed % 3), (2, math.inf)[seed % 2])
        points = shifted(model, x, y, ball, by=by)
        model = model.to(dtype)
        with torch.no_grad():
            broken = (model(points[:, 0].to(dtype)).argmax(1) != y).any()
        found = certify(model, x.to(dtype), y, ball, method=JOINT, confirm=None)
        assert not broken or not found.certified.any()
        assert broken or dtype == torch.float32


@pytest.mark.one_in(4)
@dtypes
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("gate", [1e-6, 0.0])
@pytest.mark.parametrize("bias", [5.0, -90.0, 107.6, 500.0])
def test_dead_gates_and_single_moved_frames_prove_nothing_false(cell, gate, bias, dtype):
    model, x = build(cell, gain=2.0), sequences(1, 3)
    with torch.no_grad():
        first = slice(0, 4)
        model.rnn.weight_ih_l0[first] *= gate
        model.rnn.weight_hh_l0[first] *= gate
        model.rnn.bias_ih_l0[first] = bias
    y = predicted(model, x)
    for p in (2, math.inf):
        ball = LpBall(0.3, p, frames=torch.tensor([False, False, True]))
        shifted(model, x, y, ball, by=-1e-4)
        found = certify(model.to(dtype), x.to(dtype), y, ball, method=JOINT, confirm=None)
        assert not found.certified.any()
        model.double()


@pytest.mark.one_in(2)
@cells
@NORMS
def test_joint_bounds_certify_more_and_never_less(cell, p):
    model, x = build(cell, seed=2, hidden=6), sequences(12, 3, seed=2)
    y = predicted(model, x)
    ball = LpBall(1.05 * certified_radius(model, x, y, p=p, method=Popqorn()), p)
    cheap, joint = (certify(model, x, y, ball, method=method) for method in (Popqorn(), JOINT))
    assert (joint.certified >= cheap.certified).all()
    assert (joint.margins >= cheap.margins - 1e-12).all()
    assert joint.certified.sum() > cheap.certified.sum()


@pytest.mark.one_in(2)
@cells
def test_samples_labels_and_epsilons_do_not_mix(cell):
    model, x = build(cell, seed=4, hidden=6, classes=4), sequences(3, 3, seed=4)
    y = predicted(model, x)
    epsilon = certified_radius(model, x, y) * torch.tensor([1.02, 1.1, 0.9], dtype=F64)
    whole = certify(model, x, y, LpBall(epsilon), method=JOINT)
    for i in range(3):
        alone = certify(model, x[i : i + 1], y[i : i + 1], LpBall(epsilon[i].item()), method=JOINT)
        assert alone.certified.item() == whole.certified[i].item()
        # Multipliers are learned in float32, where the last bits depend on the size of a batch.
        torch.testing.assert_close(alone.margins[0], whole.margins[i], rtol=0, atol=1e-2)


@pytest.mark.parametrize(("p", "epsilon"), [(1, 2.0), (3, 1.0)])
def test_other_norms_fall_back_on_the_cheaper_method(p, epsilon, monkeypatch):
    monkeypatch.setattr("popqorn_train.bounds.attempts.JointRegion", None)  # none is made
    model, x = build("lstm", seed=2), sequences(3, 3, seed=2)
    y, ball = predicted(model, x), LpBall(epsilon, p)
    fine = TightPopqorn(budgets=())
    one, other = (certify(model, x, y, ball, method=method) for method in (fine, JOINT))
    assert not one.certified.all()  # or there would be nothing to try
    assert torch.equal(one.margins, other.margins)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ranges_in_an_ellipsoid_are_reached(sign):
    """On its border, z . xi is as large as the square root of z . inverse(H) z room."""
    torch.manual_seed(0)
    half, room = torch.randn(2, 5, 5, dtype=F64), torch.tensor([0.3, 2.0], dtype=F64)
    matrix = half @ half.mT + torch.eye(5, dtype=F64)
    point, data = torch.randn(2, 5, dtype=F64), torch.randn(2, 3, 5, dtype=F64)
    ellipsoid = Ellipsoid(Lowest(room, point, matrix, torch.linalg.cholesky(matrix)), room)
    zero = torch.zeros(2, 3, dtype=F64)
    axis = Axis(zero + 0.5, zero + 2)
    (found,), ellipse = ellipsoid.within([Rows(Read(None, None, sign), axis, zero, data, zero)])
    assert ellipse is None
    reach = (data @ torch.linalg.solve(matrix, data.mT)).diagonal(dim1=1, dim2=2)
    reach = (reach * room[:, None]).sqrt()
    middle = (data @ point[..., None])[..., 0]
    ends = [sign * (0.5 + 2 * (middle + way * reach)) for way in (-sign, sign)]
    torch.testing.assert_close([*found], ends, rtol=0, atol=1e-7)
    assert (found.lower <= ends[0]).all()
    assert (found.upper >= ends[1]).all()


def test_without_a_perturbation_the_bound_is_the_margin():
    model, x = build("lstm"), sequences(2, 3)
    y = predicted(model, x)
    for p in (2, math.inf):
        output, rows, found = graph_of(model, x, LpBall(0.0, p), y, (y + 1) % 3)
        with torch.no_grad():
            zero = torch.zeros(2, dtype=F64)
            region = JointRegion(output, rows, found, threshold=zero, relaxation=RELAXATION)
            margin = (model(x) * rows).sum(1)
            assert (region.least_margin <= margin).all()
            torch.testing.assert_close(region.least_margin, margin, rtol=0, atol=1e-6)


def test_nan_is_never_certified():
    model, x = build("lstm"), sequences(2, 3)
    y = predicted(model, x)
    with torch.no_grad():
        output, rows, found = graph_of(model, x, LpBall(0.1), y, (y + 1) % 3)
        zero = torch.zeros(2, dtype=F64)
        for odd in (math.nan, math.inf):
            region = JointRegion(output, rows * odd, found, threshold=zero, relaxation=RELAXATION)
            best = refute_jointly(region, zero - 1, rounds=3)
            assert not (best > 0).any()


class Bounded:
    """A region of pairs that shrinks once, with what is then known of the margin."""

    def __init__(self, first, then, threshold):
        self.least_margin, self.then = first, then
        self.threshold = torch.full_like(first, threshold)

    def tighten(self):
        self.least_margin = self.then
        return torch.ones_like(self.then, dtype=torch.bool)


def test_what_holds_in_the_region_alone_is_no_bound_on_the_margin():
    first = torch.tensor([0.7, -1.0, -1.0, -1.0, -1.0, math.nan], dtype=F64)
    then = torch.tensor([9.0, 9.0, -0.5, 1e-9, math.inf, 9.0], dtype=F64)
    best = refute_jointly(Bounded(first, then, 1e-9), first - 1, rounds=2)
    exact = torch.tensor([0.7, 1e-9, -0.5, 1e-9, -1.0, -math.inf], dtype=F64)
    torch.testing.assert_close(best, exact, rtol=0, atol=0, equal_nan=True)


class OneNumber(nn.Module):
    """Its last nonlinearities read and give one number a sample."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        number = 3 * self.head(self.rnn(x)[0][:, -1])[:, 0]
        return torch.tanh(number) + 0.3 * number


@pytest.mark.one_in(2)
@dtypes
def test_nodes_of_one_number_are_bounded(dtype):
    torch.manual_seed(1)
    model, x = OneNumber().to(dtype).eval(), torch.randn(6, 3, 2).to(dtype)
    single = bound(model, output_is="logit")
    y = (model(x) > 0).long()
    known = certified_radius(single, x, y, rtol=0.02)
    for share in (1.05, 3.0):
        ball = LpBall(share * known)
        plain = certify(single, x, y, ball, method="popqorn")
        joint = certify(single, x, y, ball, method=JOINT)
        assert (joint.certified | ~plain.certified).all()
        reached = attack(single, x, y, ball, steps=30, restarts=3).margin
        assert (reached > 0)[joint.certified].all()


@pytest.mark.parametrize(("cell", "tried"), [("tanh", True), ("lstm", False), ("gru", False)])
def test_networks_with_gates_can_be_left_out(cell, tried, monkeypatch):
    model, x = build(cell, gain=3.0), sequences(2, 3, seed=5)
    y, asked = predicted(model, x), []
    ball = LpBall(1.3 * certified_radius(model, x, y, rtol=0.02))

    def refute(region, lower, **options):
        asked.append(options)
        return lower

    monkeypatch.setattr(attempts, "refute_jointly", refute)
    budget = Jointly(rounds=1, hope=math.inf, gates=False)
    certify(model, x, y, ball, method=TightPopqorn(budgets=(budget,)))
    assert bool(asked) == tried


@pytest.mark.parametrize("options", [{"rounds": 0, "hope": 1.0}, {"rounds": 1, "hope": 0.0}])
def test_rounds_and_hope_are_positive(options):
    with pytest.raises(ValueError, match=r"`(rounds|hope)` must be"):
        Jointly(**options)


def nets(seeds):
    for seed in seeds:
        cell = CELLS[seed % 4]
        model, x = build(cell, seed=seed, gain=1 + seed % 3), sequences(1, 3, seed=seed)
        y, p = predicted(model, x), (2, math.inf)[seed % 2]
        low, high = 0.0, 4.0
        for _ in range(8):
            middle = (low + high) / 2
            ball = LpBall(middle, p)
            broken = attack(model, x, y, ball, steps=15, restarts=2, seed=seed).margin <= 0
            low, high = (low, middle) if broken else (middle, high)
        if high < 4:
            yield model, x, y, LpBall(1.05 * high, p)


@pytest.mark.parametrize(
    "seeds", [range(4), pytest.param(range(4, 1000), marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_no_certificate_beyond_the_attacked_radius(seeds):
    for model, x, y, ball in nets(seeds):
        assert not certify(model, x, y, ball, method=JOINT).certified.any()


@pytest.mark.parametrize(
    "pooled", [lambda x: x.mean(1), lambda x: x.amax(1), lambda x: x.abs().sum(1)]
)
def test_what_has_no_quadratics_keeps_its_planes(pooled):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 3)

        def forward(self, x):
            return self.head(pooled(x))

    torch.manual_seed(0)
    model, x = Pooled().to(F64).eval(), torch.randn(3, 4, 2, dtype=F64)
    y, ball = model(x).argmax(1), LpBall(0.5)
    planes, tightest = (
        certify(model, x, y, ball, method=name).margins for name in ("popqorn", "popqorn-tightest")
    )
    assert torch.equal(planes, tightest)
