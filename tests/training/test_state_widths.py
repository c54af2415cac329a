"""Widths of states: those of the cells' own intervals, and the same for every way to write them."""

import math

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, bound
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.training.state_widths import drowned, widths
from tests.problems import F64, build, sequences
from tests.zoo import zoo

gated = pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])


def enclosed(model, inputs, epsilon=0.1):
    return enclose(bound(model).instance(inputs).graph(LpBall(epsilon)))


def states(model, x):
    """Hidden states ``(B, T, H)`` of the clean inputs."""
    return model.rnn(x)[0]


@gated
def test_with_epsilon_zero_the_spread_is_that_of_the_states(cell):
    model, x = build(cell), sequences(6, 4)
    found = widths(enclosed(model, x, 0.0), "h")
    torch.testing.assert_close(found.radius, torch.zeros(4, dtype=F64), atol=1e-12, rtol=0)
    expected = states(model, x).std(0, correction=0).mean(-1)
    torch.testing.assert_close(found.spread, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.ratio, torch.zeros(4, dtype=F64), atol=1e-9, rtol=0)


@gated
def test_the_radius_covers_what_samples_reach(cell):
    model, x = build(cell), sequences(3, 4)
    found = widths(enclosed(model, x), "h")
    moved = x + 0.1 * torch.sign(torch.randn(200, *x.shape, dtype=F64))
    reached = states(model, moved.flatten(0, 1)).unflatten(0, (200, 3))
    half = (reached.amax(0) - reached.amin(0)) / 2
    assert (found.radius >= half.mean((0, 2)) - 1e-12).all()


@gated
def test_both_are_means_over_the_intervals_of_the_last_state(cell):
    model, x = build(cell), sequences(5, 4)
    ranges = enclosed(model, x)
    last = next(b for node, b in ranges.ranges.items() if node.state == ("h", 3))
    found = widths(ranges, "h")
    half, middle = (last.upper - last.lower) / 2, (last.upper + last.lower) / 2
    torch.testing.assert_close(found.radius[3], half.mean())
    torch.testing.assert_close(found.spread[3], middle.std(0, correction=0).mean())
    assert found.wide[3] == (half > 0.95).double().mean()


def test_cell_states_are_those_of_an_lstm():
    model, x = build("lstm"), sequences(4, 4)
    found = enclosed(model, x, 0.0)
    _, (_, c) = model.rnn(x)
    torch.testing.assert_close(widths(found, "c").spread[-1], c[0].std(0, correction=0).mean())
    assert widths(enclosed(build("gru"), x), "c") is None


def test_layers_and_directions_are_averaged_step_by_step():
    model, x = build("gru", num_layers=2, read="sum"), sequences(4, 3)
    found = widths(enclosed(model, x, 0.0), "h")
    assert found.radius.shape == (3,)
    first = nn.GRU(3, 4, batch_first=True, dtype=F64)
    second = nn.GRU(4, 4, batch_first=True, dtype=F64)
    with torch.no_grad():
        for name, weight in model.rnn.named_parameters():
            layer = first if name.endswith("l0") else second
            layer.get_parameter(name[:-1] + "0").copy_(weight)
    below = first(x)[0]
    both = torch.cat([below, second(below)[0]], -1)
    torch.testing.assert_close(found.spread, both.std(0, correction=0).mean(-1))


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("name", "steps"),
    [("GRUCellLoop", 5), ("LSTMCellLoop", 5), ("BiGRUMasked", 5), ("StackedSensors", 5)],
)
def test_loops_of_cells_and_packed_sequences_have_their_steps(name, steps):
    model, inputs = zoo()[name]
    found = widths(enclosed(model, inputs), "h")
    assert found.radius.shape == (steps,)
    assert (found.radius > 0).all()


def test_no_recurrent_layer_has_no_widths():
    model, x = (
        nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3)),
        sequences(2, 4),
    )
    assert widths(enclosed(model.double(), x), "h") is None


def test_gradients_are_finite_where_nothing_differs():
    model, x = build("gru"), sequences(1, 4)
    found = widths(enclosed(model, x), "h")
    assert (found.ratio > 1e3).all()
    found.ratio.log().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.rnn.parameters())
    assert math.isfinite(found.ratio[0].item())


@pytest.mark.parametrize("tolerance", [0.03, 0.2])
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_what_drowns_is_the_logarithm_of_the_ratio_above_the_tolerance(cell, tolerance):
    found = enclosed(build(cell), sequences(5, 4))
    expected = torch.zeros((), dtype=F64)
    for kind in "hc":
        states = widths(found, kind)
        if states is not None:
            for ratio in states.ratio.tolist():
                expected = expected + max(0.0, math.log(ratio / tolerance))
    assert expected > 0
    torch.testing.assert_close(drowned(found, tolerance), expected)
    assert drowned(found, 1e6) == 0


def test_one_sample_or_no_recurrent_layer_drowns_nothing():
    assert drowned(enclosed(build("gru"), sequences(1, 4))) == 0
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    assert drowned(enclosed(model, sequences(3, 4))) == 0


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_a_step_against_its_gradient_narrows_intervals_beside_the_signal(cell):
    model, x = build(cell), sequences(8, 4)
    before = drowned(enclosed(model, x), 0.1)
    weights = list(model.rnn.parameters())
    gradients = torch.autograd.grad(before, weights)
    step, moved = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight += sign * step * gradient
            moved.append(drowned(enclosed(model, x), 0.1).item())
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= sign * step * gradient
    square = sum(gradient.square().sum().item() for gradient in gradients)
    assert moved[1] < before.item() < moved[0]
    assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(square, rel=1e-4)
