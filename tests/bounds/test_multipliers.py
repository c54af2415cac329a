"""Multipliers and products of sides: any bound the margin, and learned ones bound it better."""

import math

import pytest
import torch

from popqorn_train import LpBall
from popqorn_train.bounds import ascent
from popqorn_train.bounds.dual import lowest
from popqorn_train.bounds.gated import Blend
from popqorn_train.bounds.joint import JointRegion
from popqorn_train.bounds.joint_pass import JointPass
from popqorn_train.bounds.multipliers import Gaps
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.quadratics import NONE, Margin, Multipliers
from popqorn_train.bounds.sides import Part, sides_of
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.paraboloids import Axis
from tests.bounds.test_joint import graph_of
from tests.bounds.test_rebound import RELAXATION, attacked, values_at
from tests.problems import F64, SOME_CELLS, build, predicted, sequences

cells = pytest.mark.parametrize("cell", SOME_CELLS)


def margin_of(cell, *, p=math.inf, layers=1, dtype=F64):
    """A margin in parts, with everything that it was made of."""
    model, x = build(cell, seed=3, num_layers=layers), sequences(1, 3, seed=3)
    y, ball = predicted(model, x), LpBall(0.25, p)
    points = attacked(model, x, y, ball)
    model, x, points = model.to(dtype), x.to(dtype), points.to(dtype)
    with torch.no_grad():
        output, rows, found = graph_of(model, x, ball, y, (y + 1) % 3)
        margin = Margin(output, rows, JointPass(output, found.ranges, {}, RELAXATION))
    return margin, output, rows, found, points[:, 0], model


def random_multipliers(margin, size):
    unit = torch.stack([term.slope.abs().mean() for term in margin.terms]).mean()
    torch.manual_seed(0)
    halves = {node: size * unit * error.half for node, error in margin.errors.items()}
    return Multipliers(
        {node: size * unit * torch.randn_like(half) for node, half in halves.items()},
        {node: half * torch.rand_like(half) for node, half in halves.items()},
    )


def symbols_of(margin, point, gaps):
    """The vector of symbols at one input."""
    vector = margin.vector
    xi = point.new_zeros(vector.total, dtype=F64)
    xi[: vector.inputs] = (point.flatten() - vector.center[0]) / vector.reach[0]
    for error in margin.errors.values():
        own = sum(gaps[place] for place in error.places) / error.half
        assert (own.abs() <= 1 + 1e-9).all()
        xi[error.symbols] = own[0]
    return xi


def missed(margin, truth):
    """What a term misses at one input."""
    found = []
    for gap, *_ in margin.terms:
        at = [read.sign * truth[read.node].lower for read in gap.reads]
        strip = gap.strip
        if gap.product is None:
            found.append(gap.place[0].curve.value(at[0]) - strip.slope * at[0] - strip.middle)
        else:
            plane = strip.x * at[0] + strip.y * at[1] + strip.middle
            found.append(gap.product.value(*at) - plane)
    return found


@pytest.mark.one_in(2)
@cells
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("p", [2, math.inf])
@torch.no_grad()
def test_any_multipliers_bound_the_margin(cell, layers, p):
    with torch.enable_grad():
        margin, output, rows, _, points, model = margin_of(cell, p=p, layers=layers)
    assert margin.errors
    known = [random_multipliers(margin, size) for size in (0.5, 3.0)]
    known += [NONE, known[0]._replace(shifts={}), known[1]._replace(products={})]
    for multipliers in known:
        form = margin.below(multipliers)
        for point in points:
            xi = symbols_of(margin, point, missed(margin, values_at(model, point[None], output)))
            value = form.constant + form.linear @ xi + xi @ form.matrix[0] @ xi
            exact = model(point[None]) @ rows[0]
            assert value <= exact + 1e-9 * (1 + exact.abs())


@pytest.mark.one_in(4)
@cells
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@torch.no_grad()
def test_multipliers_that_are_learned_raise_the_bound_and_stay_below_attacks(cell, dtype):
    gains = []
    for p in (2, math.inf):
        with torch.enable_grad():
            _, output, rows, found, points, model = margin_of(cell, p=p, dtype=dtype)
        high = torch.full((1,), 100.0, dtype=dtype)  # out of reach: the search goes on
        plain, learned = (
            JointRegion(output, rows, found, threshold=high, relaxation=RELAXATION, trials=n)
            for n in (0, 24)
        )
        assert learned.least_margin >= plain.least_margin
        gains.append((learned.least_margin - plain.least_margin).item())
        reached = (model(points) @ rows[0]).amin()
        slack = 1e-9 if dtype == F64 else 2e-5 * (1 + reached.abs())
        assert learned.least_margin <= reached + slack
    assert cell == "relu" or max(gains) > 0


@pytest.mark.one_in(2)
@cells
@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_an_error_lies_between_its_sides(cell, layers):
    with torch.enable_grad():
        margin, output, _, _, points, model = margin_of(cell, layers=layers)
    nearest = []
    for point in points:
        xi = symbols_of(margin, point, missed(margin, values_at(model, point[None], output)))
        for low, high in margin.sides.values():
            for side in (low, high):
                value = side.constant + side.data @ xi
                assert (value >= -side.off - 1e-12 * side.size).all()
                assert (value.abs() <= side.size * (1 + 1e-12)).all()
            width = low.constant + high.constant + (low.data + high.data) @ xi
            nearest.append((width[low.size > 0] / 2).amin())
    assert cell == "relu" or min(nearest) < 0.9  # of a half width: closer than -half and half


@torch.no_grad()
def test_the_sides_of_tanh_are_its_lines():
    with torch.enable_grad():
        margin, *_ = margin_of("tanh")
    node, error = next(iter(margin.errors.items()))
    (term,) = [margin.terms[place] for place in error.places]
    lines = node.curve.lines(*term.gap.domain)
    (row,), xi = term.rows, torch.linspace(-1, 1, margin.vector.total, dtype=F64)
    z = row.axis.middle + row.axis.half * (row.center + row.data @ xi)
    strip, symbol = term.gap.strip, error.half * xi[error.symbols]
    line = strip.slope * z + strip.middle
    for side, far in zip(
        margin.sides[node],
        (
            symbol - (lines.lower_slope * z + lines.lower_intercept - line),
            lines.upper_slope * z + lines.upper_intercept - line - symbol,
        ),
        strict=True,
    ):
        torch.testing.assert_close(side.constant + side.data @ xi, far / error.half)


@torch.no_grad()
def test_products_of_units_that_do_not_move_are_left_out():
    half, rest = torch.tensor([[0.0, 1.0, 1.0]], dtype=F64), torch.tensor([[0.0, 0.0, 1.0]])
    with torch.enable_grad():
        margin, *_ = margin_of("tanh")
    row = margin.terms[0].rows[0]
    row = row._replace(center=row.center[:, :3], data=row.data[:, :3], own=row.own[:, :3])
    row = row._replace(axis=Axis(*[part[:, :3] for part in row.axis]))
    flat_line = [torch.zeros_like(half)] * 2
    part = Part(flat_line, (flat_line, flat_line), [row])
    for side in sides_of(half, rest.double(), 0, [part]):
        assert (side.data[:, [0, 2]] == 0).all()
        assert (side.data[:, 1] != 0).any()
        assert torch.equal(side.off > 0, torch.zeros_like(half, dtype=torch.bool))


@cells
def test_a_bound_rises_with_its_multipliers_as_is_said(cell):
    margin, *_ = margin_of(cell)
    gaps, known = Gaps(margin, torch.ones(1, dtype=F64)), random_multipliers(margin, 0.3)
    shift, weight = (gaps.in_a_row(part).float().requires_grad_() for part in known)
    torch.manual_seed(0)
    point = torch.rand(1, margin.vector.total) - 0.5
    constant, linear, matrix = gaps.form(shift, weight)
    value = constant + (linear * point).sum(1) + ((point @ matrix[0]) * point).sum(1)
    on_shift, on_weight = torch.autograd.grad(value.sum(), (shift, weight))
    torch.testing.assert_close(gaps.rise(shift, point), on_shift, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(-gaps.product(point), on_weight, rtol=1e-4, atol=1e-4)


@cells
@torch.no_grad()
def test_both_precisions_add_the_same_up(cell):
    with torch.enable_grad():
        margin, *_ = margin_of(cell)
    known = random_multipliers(margin, 0.3)
    gaps, form = Gaps(margin, torch.ones(1, dtype=F64)), margin.below(known)
    rows = [gaps.in_a_row(part) for part in known]
    constant, linear, matrix = gaps.form(*[row.float() for row in rows])
    for one, other in ((linear, form.linear), (matrix, form.matrix), (constant, form.constant)):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    for row, part in zip(rows, known, strict=True):
        back = gaps.by_node(row)
        assert all(torch.equal(back[node], values) for node, values in part.items())


@pytest.mark.parametrize("kind", [0, 1])
@torch.no_grad()
def test_multipliers_that_are_no_numbers_prove_nothing(kind):
    with torch.enable_grad():
        margin, *_ = margin_of("lstm")
    known = list(random_multipliers(margin, 1.0))
    known[kind] = {node: part * math.nan for node, part in known[kind].items()}
    form = margin.below(Multipliers(*known))
    weights = torch.full((1, margin.vector.total), 1e3, dtype=F64)
    assert lowest(form.linear, form.matrix, weights, form.group).value == -math.inf


@torch.no_grad()
def test_products_raise_a_learned_bound(monkeypatch):
    with torch.enable_grad():
        _, output, rows, found, *_ = margin_of("lstm")
    high = torch.full((1,), 100.0, dtype=F64)
    values = []
    for share in (0.0, ascent._SHARE):
        monkeypatch.setattr(ascent, "_SHARE", share)
        region = JointRegion(output, rows, found, threshold=high, relaxation=RELAXATION, trials=24)
        values.append(region.least_margin.item())
    assert values[1] > values[0]


@torch.no_grad()
def test_a_state_that_is_less_than_the_rounding_of_its_candidate_is_in_its_range():
    gate = torch.linspace(10, 40, 301)[:, None]
    candidate, none = torch.full_like(gate, 19.4), torch.zeros_like(gate)
    inputs = [Bounds(x, x) for x in (gate, candidate, none)]
    node = Blend(*[Node([], (1,)) for _ in inputs])
    lower, upper = (end.double() for end in node.range(*inputs))
    exact = torch.sigmoid(-gate.double()) * torch.tanh(candidate.double())
    assert ((lower <= exact) & (exact <= upper)).all()
    assert (upper - lower <= 2e-6).all()


class Recorded(JointPass):
    """A pass that keeps the form of every node with a name."""

    def _made(self, node):
        made = super()._made(node)
        self.__dict__.setdefault("kept", {})[node] = made
        return made


@pytest.mark.parametrize("cell", ["gru", "lstm", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@torch.no_grad()
def test_what_is_missed_is_the_symbol_of_a_form_give_or_take_the_rest(cell, dtype):
    with torch.enable_grad():
        _, output, rows, found, points, model = margin_of(cell, layers=2, dtype=dtype)
    joint = Recorded(output, found.ranges, {}, RELAXATION)
    margin, point = Margin(output, rows, joint), points[0].double()
    truth = values_at(model.double(), point[None], output)
    gaps, symbols = missed(margin, truth), torch.zeros(joint.symbols.count, dtype=F64)
    move = (point.flatten() - margin.vector.center[0]) / margin.vector.reach[0]
    for node, error in margin.errors.items():
        form, name = joint.kept[node], joint.names[node]
        value = form.center[0].double()
        for block, known in ((form.inputs, move), (form.noise, symbols)):
            if block is not None:
                value = value + known[block.start : block.stop] @ block.data[:, 0].double()
        own = truth[node].lower[0] - value
        rest = (own - sum(gaps[place][0] for place in error.places)).abs()
        assert (rest <= error.rest[0] + 1e-14).all()
        symbols[name.first :][: len(own)] = own / error.half[0]
    assert (symbols.abs() <= 1 + 1e-9).all()
