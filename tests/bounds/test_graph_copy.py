"""Graphs over other tensors, and what tells their kinds apart."""

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, bound
from popqorn_train.bounds.graph_copy import UnlikeError, copied
from popqorn_train.bounds.methods import CrownIBP
from tests.problems import F64, SOME_CELLS, build, sequences

cells = pytest.mark.parametrize("cell", SOME_CELLS)


def graph_of(model, x, ball):
    return bound(model).instance(x).graph(ball)


@cells
def test_graphs_are_of_one_kind_if_only_numbers_differ(cell):
    model, x = build(cell), sequences(6, 2)
    kind = copied(graph_of(model, x, LpBall(0.1))).kind
    other = build(cell)
    for weight in other.parameters():
        weight.data.mul_(0.5)
    assert copied(graph_of(other, 2 * x, LpBall(0.2))).kind == kind
    balls = [LpBall(0.1, 2), LpBall(0.1, low=-9.0), LpBall(0.1, scope="sequence")]
    for unlike in (
        *[graph_of(model, x, ball) for ball in balls],
        graph_of(model, x[:5], LpBall(0.1)),
        graph_of(model, x[:, :1], LpBall(0.1)),
    ):
        assert copied(unlike).kind != kind


@cells
def test_a_copy_of_a_graph_has_the_same_bounds_and_other_tensors(cell):
    model, x = build(cell), sequences(6, 2)
    graph = graph_of(model, x, LpBall(0.1))
    found = copied(graph, torch.clone)
    assert not {id(t) for t in copied(found.graph).tensors} & {id(t) for t in found.tensors}
    rows = torch.eye(3, dtype=F64)[None]
    torch.testing.assert_close(*[CrownIBP().lower(one, rows) for one in (found.graph, graph)])


class Brought:
    """What a model brings along."""


def brought(value):
    return value


@pytest.mark.parametrize("thing", [Brought(), brought, nn.Linear(2, 2), torch.ones(2).to_sparse()])
def test_what_a_model_brings_along_has_no_kind(thing):
    model, x = build("gru"), sequences(6, 2)
    graph = graph_of(model, x, LpBall(0.1))
    graph.inputs[0].function = thing
    with pytest.raises(UnlikeError):
        copied(graph)


class Setting:
    """What a node of the library may hold."""

    def __init__(self, **values):
        vars(self).update(values)


@pytest.mark.parametrize("name", ["index", "pick", "slices", "_halves", "size"])
def test_settings_are_told_apart_whatever_they_are_called(name, monkeypatch):
    monkeypatch.setattr(Setting, "__module__", "popqorn_train.bounds")
    model, x = build("gru"), sequences(6, 2)
    kinds = set()
    for value in (1, 2):
        graph = graph_of(model, x, LpBall(0.1))
        graph.inputs[0].setting = Setting(**{name: value})
        found = copied(graph)
        assert vars(found.graph.inputs[0].setting) == {name: value}
        kinds.add(found.kind)
    assert len(kinds) == 2
