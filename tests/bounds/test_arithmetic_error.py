"""What one operation in float32 may be off by: rules, and what they assume of torch's kernels."""

import os
import subprocess
import sys

import pytest
import torch

import popqorn_train.bounds as package
from popqorn_train.bounds import node as nodes
from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.affine import Linear, Matrix, Sum
from popqorn_train.bounds.arithmetic_error import FLOAT32, RULES, ULPS, Seen, inexact, rule_of
from popqorn_train.bounds.computed import Computed, deployed
from popqorn_train.bounds.constant import Constant
from popqorn_train.bounds.node import Logits, Root
from popqorn_train.bounds.recurrent import project
from popqorn_train.bounds.single_reads import Affine
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.curves import CURVES

F64 = torch.float64
FUNCTIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "exp": torch.exp}
WITHOUT = {  # nodes that confirm="deployed" refuses
    "LinearMap", "LogSumExp", "Norm", "Normal", "Parts", "Peak", "Placed", "Powers", "Quadratic",
}  # fmt: skip


def every(stride):
    """Every so manieth float32 number, positive and negative, up to 120."""
    last = torch.tensor(120.0).view(torch.int32).item()
    positive = torch.arange(0, last, stride, dtype=torch.int32).view(torch.float32)
    return torch.cat([positive, -positive])


def in_units(name, x):
    """The error of a function in units in the last place of its value, where that is normal."""
    found, real = FUNCTIONS[name](x).double(), FUNCTIONS[name](x.double())
    wrong = (found - real).abs()
    lost = wrong[real.abs() < FLOAT32.tiny]
    assert not len(lost) or lost.max() <= FLOAT32.tiny
    normal = (real.abs() >= FLOAT32.tiny) & (real.abs() < torch.finfo(torch.float32).max)
    return max((wrong / (2 * FLOAT32.unit * real.abs()))[normal].tolist(), default=0.0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_as_precise_as_assumed(name):
    x = every(20_011)
    assert in_units(name, x) <= ULPS
    loop = torch.empty(2 * len(x), dtype=torch.float32)[::2].copy_(x)  # not in one piece
    assert in_units(name, loop) <= ULPS
    assert max(in_units(name, part) for part in x[-1024:].split(3)) <= ULPS


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["", "default", "avx2"])
def test_ten_million_values_on_every_kind_of_kernel(capability):
    code = (
        "from tests.bounds.test_arithmetic_error import *\n"
        "worst = {n: max(in_units(n, x) for x in every(211).split(2**20)) for n in FUNCTIONS}\n"
        "print(worst); assert max(worst.values()) <= ULPS"
    )
    own = {"ATEN_CPU_CAPABILITY": capability} if capability else {}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **own}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)


def kinds(base):
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_every_node_has_a_rule_or_is_refused():
    assert package
    moves = {"Root", "Logits", "Negative", "Stack", "Concat", "Select", "Frame", "Span"}
    moves |= {"NodeSlice", "Projected", "Nonlinear", "Mixing", "Reduction", "Computed"}
    ours = {kind for kind in kinds(nodes.Node) if kind.__module__.startswith("popqorn_train")}
    assert {kind.__name__ for kind in ours} - moves - WITHOUT == {kind.__name__ for kind in RULES}


def root(x):
    return Root(LpBall(0.0).around(x))


def seen(node, *values):
    bounds = [Bounds(value, value) for value in values]
    return Seen(node, bounds, node.range(*bounds), FLOAT32)


def test_the_error_of_a_sum_counts_its_terms():
    x = torch.ones(1, 1, 5, dtype=F64)
    weight = torch.tensor([[1.0, -2.0, 4.0, -8.0, 16.0]], dtype=F64)
    error = RULES[Linear](seen(Linear(root(x), weight), x))
    torch.testing.assert_close(error, torch.full((1, 1, 1), FLOAT32.gamma(7) * 31, dtype=F64))
    bias, parts = torch.zeros(1, dtype=F64), (torch.full((1,), 50.0, dtype=F64),) * 2
    error = RULES[Linear](seen(Linear(root(x), weight, bias, (parts[0], -parts[1])), x))
    torch.testing.assert_close(error, torch.full((1, 1, 1), FLOAT32.gamma(9) * 131, dtype=F64))
    assert FLOAT32.gamma(2**24) == torch.inf


def test_what_was_rounded_before_goes_through_the_weights():
    x = torch.ones(1, 1, 2, dtype=F64)
    first = Linear(root(x), torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64))
    last = Linear(first, torch.tensor([[1000.0, -1000.0]], dtype=F64))
    logits = Logits(Affine(lambda x: x[:, 0], [last], (1,), 0), lambda chosen: logits)
    (computed,) = deployed(logits).inputs
    gamma, more = FLOAT32.gamma(4), FLOAT32.gamma(4) * 1e4
    expected = torch.tensor([[gamma * 1e4 + more * (1 + gamma)]], dtype=F64)
    torch.testing.assert_close(computed.drift, expected)


def test_numbers_that_are_moved_or_replaced_are_not_rounded():
    x = torch.randn(1, 2, 3, dtype=F64)
    mask = torch.tensor([True, False, False])
    moved = Affine(lambda x: x.flip(2).masked_fill(mask, -1e9), [root(x)], (2, 3), 0)
    assert not RULES[Affine](seen(moved, x)).any()
    tenth = Affine(lambda x: x.masked_fill(mask, 0.1), [root(x)], (2, 3), 0)
    error = RULES[Affine](seen(tenth, x))[0]
    assert (error[:, 0] > 1e-9).all()  # float32 has another tenth
    assert not error[:, 1:].any()
    for step in (lambda x: x * 3, lambda x: x + 1, lambda x: x + 2.0**70, lambda x: 0.5 - x):
        node = Affine(step, [root(x)], (2, 3), 0)
        assert (RULES[Affine](seen(node, x)) > 0).all()


def test_curves_of_straight_pieces_have_a_rule_and_others_none():
    x = root(torch.randn(1, 2, 3, dtype=F64))
    assert rule_of(Activation(CURVES["leaky_relu"](0.1), x)) is not None
    assert rule_of(Activation(CURVES["gelu"](), x)) is None
    assert rule_of(Activation("tanh", x)) is not None


def test_what_a_layer_makes_of_a_state_is_worked_out():
    """Exactly 1/2 over the real numbers; float32 loses it beside 2^26."""
    weight = Matrix(torch.tensor([[2.0**26, 0.5, -(2.0**26)]], dtype=F64))
    state = torch.ones(1, 3, dtype=F64)
    assert inexact(project(Constant(state), weight))
    assert not inexact(project(Constant(0 * state), weight))
    assert not inexact(Constant(state))


def test_constants_that_float32_has_not_are_seen():
    x = root(torch.ones(1, 1, 1, dtype=F64))
    tenth = torch.tensor([[0.1]], dtype=F64)
    assert inexact(Linear(x, tenth))
    assert not inexact(Linear(x, tenth.float().double()))
    assert inexact(Sum([x], torch.ones(1, 1, 1, dtype=F64)))
    assert not inexact(Sum([x], torch.zeros(1, 1, 1, dtype=F64)))


def test_a_computed_value_lies_around_its_node():
    x = torch.zeros(2, 1, 3, dtype=F64)
    drift = torch.tensor([[[1.0, 2.0, 3.0]]], dtype=F64)
    node = Computed(root(x), drift)
    low, high = node.range(Bounds(x, x))
    torch.testing.assert_close(high, drift.expand(2, 1, 3))
    torch.testing.assert_close(low, -high)
    below, above = node.at(node.relax(None, Bounds(x, x)), x)
    torch.testing.assert_close((below, above), (low, high))
