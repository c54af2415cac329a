"""Passes over one graph may share its outline."""

import pytest
import torch

from popqorn_train import LpBall, bound
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.methods import METHODS
from popqorn_train.bounds.outline import Outline, from_ball
from popqorn_train.bounds.relaxer import Relaxation
from tests.problems import F64, build, sequences


@pytest.fixture(params=["tanh", "lstm", "gru"])
def output(request):
    return bound(build(request.param)).instance(sequences(3, 2)).graph(LpBall(0.1))


def test_what_is_shared_changes_no_range(output):
    outline = Outline(output)
    for _ in range(2):
        shared, alone = enclose(output, outline=outline).ranges, enclose(output).ranges
        assert shared.keys() == alone.keys()
        for node, ends in alone.items():
            torch.testing.assert_close(tuple(shared[node]), tuple(ends), rtol=0, atol=0)


def test_affine_ranges_are_those_of_nodes_that_are_read(output):
    outline = Outline(output)
    assert outline.affine.keys() == {node for node in outline.read if from_ball(node)}
    assert outline.affine is outline.affine
    assert outline.nodes[-1] is output


def test_margins_of_forms_are_at_least_those_of_intervals(output):
    rows = torch.eye(output.shape[0], dtype=F64)[None]
    found = METHODS["popqorn-fast"].lower(output, rows)
    relaxed = enclose(output, relax=Relaxation(), outline=Outline(output))
    assert set(relaxed.relaxations) == set(Outline(output).nonlinear)
    assert (found >= METHODS["crown-ibp"].lower(output, rows)).all()
