"""What is a contradiction, and what is rounding."""

import pytest
import torch

from popqorn_train import LpBall
from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.affine import Linear
from popqorn_train.bounds.backward import Enclosure
from popqorn_train.bounds.gated import Blend
from popqorn_train.bounds.node import Root
from popqorn_train.bounds.witness import contradiction, sizes_of, values_at
from popqorn_train.perturbations.region import Bounds
from tests.problems import F64


def linear(weight, bias):
    x = torch.full((1, 1, 2), 1e-6, dtype=F64)
    root = Root(LpBall(0.0).around(x))
    return root, Linear(root, torch.tensor([weight], dtype=F64), torch.tensor([bias], dtype=F64)), x


def moved(node, values, by):
    bounds = Bounds(values[node] + by, values[node] + 2 * by)
    return contradiction(Enclosure({node: bounds}, {}), values, sizes_of(values))


def test_what_cancels_out_is_rounded_as_its_terms_are():
    for weight, bias in (((1e5, -1e5), 0.0), ((1e5, 0.0), -0.1)):
        _, node, x = linear(weight, bias)
        values = values_at(node, x)
        assert values[node].abs().max() < 1e-15
        assert moved(node, values, 1e-17) is None
        assert "leaves its range" in moved(node, values, 1e-10)


def test_a_node_that_is_0_is_rounded_as_what_it_comes_from():
    _, nothing, x = linear((0.0, 0.0), 0.0)
    node = Linear(nothing, torch.ones(1, 1, dtype=F64), torch.zeros(1, dtype=F64))
    values = values_at(node, x)
    assert moved(node, values, 1e-36) is None  # inputs are 1e-6
    assert "leaves its range" in moved(node, values, 1e-32)


def nearly_open():
    """A blend of 1 and 0 by a gate that is nearly open: 4e-21, or 0 by rounding."""
    x = torch.tensor([[[60.0, 47.0]]], dtype=F64)
    root = Root(LpBall(0.0).around(x))
    rows = ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0))
    gate, one, state = (Linear(root, torch.tensor([row], dtype=F64)) for row in rows)
    return Linear(Blend(gate, one, state), torch.ones(1, 1, dtype=F64)), x


def test_what_cancels_out_in_a_nonlinearity_is_rounded_so_in_whatever_reads_it():
    node, x = nearly_open()
    values = values_at(node, x)
    assert values[node].abs().max() < 1e-15
    assert moved(node, values, 4e-21) is None
    assert "leaves its range" in moved(node, values, 1e-9)


@pytest.mark.parametrize("curves", [("relu",), ("tanh",), ("relu", "tanh")])
def test_what_is_left_of_it_behind_nonlinearities_is_rounding_too(curves):
    node, x = nearly_open()
    for curve in curves:
        node = Linear(Activation(curve, node), torch.ones(1, 1, dtype=F64))
    values = values_at(node, x)
    assert moved(node, values, 4e-21) is None
    assert "leaves its range" in moved(node, values, 1e-9)


def test_what_stands_beside_other_numbers_behind_a_nonlinearity_is_no_rounding():
    """Numbers of 60 that do not cancel out do not make 1e-6 into their rounding."""
    x = torch.tensor([[[60.0, 1e-3]]], dtype=F64)
    root = Root(LpBall(0.0).around(x))
    row = torch.tensor([[1.0, 1.0], [-1.0, 0.0]], dtype=F64)
    shifted = Linear(root, row, torch.tensor([-60.0, 60.0], dtype=F64))
    node = Linear(Activation("tanh", shifted), torch.ones(1, 2, dtype=F64))
    values = values_at(node, x)
    assert "leaves its range" in moved(node, values, 1e-13)
