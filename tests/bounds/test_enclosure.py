"""Ranges of what nonlinearities read."""

import pytest

from popqorn_train import LpBall, bound
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.relaxer import Relaxation
from tests.problems import CELLS, build, sequences


@pytest.mark.parametrize("epsilon", [0.1, 1.0])
@pytest.mark.parametrize("cell", CELLS)
def test_backward_ranges_lie_inside_the_intervals(cell, epsilon):
    model, x = build(cell, gain=2.0), sequences(2, 4)
    output = bound(model).instance(x).graph(LpBall(epsilon))
    intervals = enclose(output, relax=Relaxation()).ranges
    backward = enclose(output, relax=Relaxation(), backward=True).ranges
    assert intervals.keys() <= backward.keys()
    narrower = []
    for node, (lower, upper) in intervals.items():
        assert (backward[node].lower >= lower - 1e-12).all()
        assert (backward[node].upper <= upper + 1e-12).all()
        narrower.append((backward[node].lower > lower + 1e-6).any())
    assert any(narrower)
