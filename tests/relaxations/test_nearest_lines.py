"""Lines chosen for every row: they enclose their activation, are closest at the point, and pay."""

import math

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, bound, certified_radius, certify, logit_bounds
from popqorn_train.bounds.backward import minimum
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.methods import Popqorn
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.relaxations.lines import SIGMOID, TANH
from popqorn_train.relaxations.nearest_lines import closest_relu, closest_sigmoid, closest_tanh
from tests.problems import F64, build, predicted, sequences

pytestmark = pytest.mark.usefixtures("loops")

CURVES = {
    "tanh": (torch.tanh, closest_tanh),
    "sigmoid": (torch.sigmoid, closest_sigmoid),
    "relu": (torch.relu, closest_relu),
}
S_SHAPED = {"tanh": (*CURVES["tanh"], TANH), "sigmoid": (*CURVES["sigmoid"], SIGMOID)}
curves = pytest.mark.parametrize(("f", "lines"), CURVES.values(), ids=CURVES)
OWN, SAME = Popqorn("lambda", ()), Popqorn("lambda", (), own_lines=False)


def problem(width, count=200, *, spread=3.0):
    """Ends ``(1, 1, H)``, and a point for each of 6 rows, some of them outside."""
    center = spread * torch.randn(1, 1, count, dtype=F64)
    half = width * torch.rand(1, 1, count, dtype=F64) / 2
    point = center + 1.2 * half * (2 * torch.rand(1, 6, count, dtype=F64) - 1)
    return center - half, center + half, point


def across(lower, upper, count=401):
    x = torch.lerp(lower, upper, torch.linspace(0, 1, count, dtype=F64).view(-1, 1, 1, 1))
    return torch.minimum(torch.maximum(x, lower), upper)


def gaps(f, lines, x):
    """How far the lower line lies below f, and the upper one above."""
    low, low_intercept, high, high_intercept = (field.double() for field in lines)
    return f(x) - low * x - low_intercept, high * x + high_intercept - f(x)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("spread", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("width", [0.0, 1e-12, 1e-6, 1e-3, 1.0, 20.0, 300.0])
@curves
def test_lines_enclose_the_activation_wherever_the_point_lies(f, lines, width, spread, dtype):
    lower, upper, point = (part.to(dtype) for part in problem(width, spread=spread))
    for gap in gaps(f, lines(lower, upper, point), across(lower.double(), upper.double())):
        assert (gap >= -1e-16 * max(1, spread + width)).all()


@pytest.mark.parametrize(("f", "lines", "curve"), S_SHAPED.values(), ids=S_SHAPED)
def test_lines_enclose_the_activation_where_chord_and_tangent_meet(f, lines, curve):
    # There a slope that is off by its last bit would cut a far end off.
    lower, upper = -torch.logspace(0, 4, 4000)[None, None], torch.full((1, 1, 4000), 30.0)
    meeting = curve.touching(lower, upper)
    point = torch.cat([meeting * (1 + k * 1e-7) for k in range(6)], 1)
    for low, high, at in ((lower, upper, point), (-upper, -lower, -point)):
        x = torch.stack([low, high]).double()
        for gap in gaps(f, lines(low, high, at), x):
            assert (gap >= 0).all()


@pytest.mark.parametrize("width", [1e-3, 1.0, 8.0])
@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_no_other_line_is_closer_at_the_point(name, width):
    f, lines = CURVES[name]
    lower, upper, point = problem(width, 40)
    point = point.clamp(lower, upper)
    x = across(lower, upper, 2001)
    above = gaps(f, lines(lower, upper, point), point)[1]
    slopes = torch.linspace(0, 1, 400, dtype=F64).view(-1, 1, 1, 1)
    others = ((f(x)[:, None] - slopes * x[:, None]).amax(0) + slopes * point - f(point)).amin(0)
    assert (above <= others + 1e-3 * width**2).all()  # the grid of slopes is coarse


def test_the_line_below_relu_turns_without_a_jump():
    lower, upper = torch.tensor([[[-1.0]]], dtype=F64), torch.tensor([[[2.0]]], dtype=F64)
    point = torch.linspace(-1, 2, 3001, dtype=F64).view(1, -1, 1)
    slope = closest_relu(lower, upper, point).lower_slope.flatten()
    assert (slope.diff() >= 0).all()
    assert slope.diff().max() <= 0.011
    assert (slope[0], slope[-1]) == (0, 1)


@pytest.mark.parametrize("cell", ["tanh", "relu"])
def test_own_lines_mostly_raise_a_margin(cell):
    model, x = build(cell, num_layers=2), sequences(16, 5)
    y = predicted(model, x)
    own, same = (certify(model, x, y, LpBall(1.0, 2), method=m).margin for m in (OWN, SAME))
    assert (own >= same - 0.02 * same.abs()).all()  # other ranges lead to other shared lines
    assert (own > same + 1e-6).double().mean() > 0.8


@pytest.mark.one_in(2)
@pytest.mark.parametrize("cell", ["tanh", "relu"])
def test_own_lines_make_radii_larger(cell):
    model, x = build(cell, gain=2.0, hidden=16), sequences(16, 6)
    y = predicted(model, x)
    own, same = (certified_radius(model, x, y, p=2, method=m) for m in (OWN, SAME))
    assert own.median() > 1.02 * same.median()


class OneUnit(nn.Module):
    """Logits ``relu(x) + x / 2`` and 0."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(1, 1, nonlinearity="relu", batch_first=True, dtype=F64)
        for name, weight in self.rnn.named_parameters():
            nn.init.constant_(weight, float(name == "weight_ih_l0"))

    def forward(self, x):
        h = self.rnn(x)[0][:, -1]
        return torch.cat([h + x[:, -1] / 2, torch.zeros_like(h)], 1)


def test_a_row_takes_the_line_that_its_worst_input_asks_for():
    x, ball = torch.full((1, 1, 1), 0.25, dtype=F64), LpBall(0.75)  # on [-1/2, 1]
    logits = bound(OneUnit()).instance(x).graph(ball)
    row = torch.tensor([[[1.0, 0.0]]], dtype=F64)
    same, own = (
        minimum(logits, row, enclose(logits, relax=Relaxation(), chosen=chosen)).item()
        for chosen in (False, True)
    )
    assert same == pytest.approx(-0.75)  # the line of least area has slope 1
    assert own == pytest.approx(-0.25)  # exact, by slope 0


@pytest.mark.parametrize("cell", ["tanh", "relu"])
def test_gradients_pass_through_own_lines(cell):
    model, x = build(cell), sequences(2, 3)
    bounds = logit_bounds(model, x, LpBall(0.1, math.inf), method=OWN)
    (bounds.upper - bounds.lower).sum().backward()
    for weight in model.parameters():
        assert weight.grad.isfinite().all()
        with torch.no_grad():
            weight -= 1e-3 * weight.grad
    tighter = logit_bounds(model, x, LpBall(0.1, math.inf), method=OWN)
    assert (tighter.upper - tighter.lower).sum() < (bounds.upper - bounds.lower).sum()


def test_rows_that_are_given_get_no_gradient():
    model, x = build("tanh"), sequences(2, 3)
    with torch.no_grad():
        bounds = logit_bounds(model, x, LpBall(0.1), method=OWN)
    assert not bounds.lower.requires_grad
