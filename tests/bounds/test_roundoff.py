"""What rounding may change is taken off a bound, whichever lines its rows choose."""

import math

import pytest
import torch

from popqorn_train import LpBall, bound
from popqorn_train.bounds.backward import Enclosure, lower_bound, sizes_of
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.node import Root
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.bounds.roundoff import rounding_error
from tests.problems import build, sequences


@pytest.mark.parametrize("chosen", [False, True], ids=["shared lines", "own lines"])
def test_a_bound_with_sizes_lies_below_the_one_without(chosen):
    model, x = build("tanh").float(), sequences(4, 3).float()
    output = bound(model).instance(x).graph(LpBall(0.5))
    found = enclose(output, relax=Relaxation(), backward=True, chosen=chosen)
    rows = torch.randn(1, 8, 3)
    sizes = sizes_of(output, found)
    plain = lower_bound([(output, rows)], found)
    lowered = lower_bound([(output, rows)], found, sizes=sizes)
    # The allowances of all nodes before the output come on top of its own.
    assert (plain - lowered >= rounding_error(rows, sizes[output])).all()


def test_a_bound_with_sizes_lies_below_products_that_underflow():
    x = torch.tensor([[[-1e-25]]])
    root = Root(LpBall(0.0).around(x))
    found = Enclosure({root: root.range()}, {})
    slope = torch.tensor([[[[1e-25]]]])
    assert lower_bound([(root, slope)], found).item() == 0  # in float32
    lowered = lower_bound([(root, slope)], found, sizes=sizes_of(root, found))
    assert lowered.item() <= -1e-50


@pytest.mark.parametrize("count", [256, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_allowance_is_that_of_two_sums_which_exceed_it_once_in_1e13(count, dtype):
    ones = torch.ones(1, 1, count, dtype=dtype)
    allowance = rounding_error(ones, ones[0]).item()
    once = math.sqrt(2 * math.log(2 / 1e-13)) * math.sqrt(count) * torch.finfo(dtype).eps * count
    assert 2 * once <= allowance <= 4 * once
