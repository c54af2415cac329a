"""Gradients of popqorn-fast, whose margin is the larger of that of forms and that of intervals."""

import pytest
import torch

from popqorn_train import LpBall, bound
from popqorn_train.bounds import popqorn
from popqorn_train.bounds.method import CrownIBP
from popqorn_train.bounds.methods import TRAINING
from popqorn_train.bounds.outline import Outline
from popqorn_train.certificates.margins import margin_rows, other_classes
from tests.problems import build, predicted, sequences

FAST = TRAINING["popqorn-fast"]


def both(model, x, y, epsilon):
    """The margin, and what it is the larger of."""
    graph = bound(model).instance(x).graph(LpBall(epsilon))
    rows = margin_rows(y, 3, x, other_classes(y, 3))
    forms, _ = FAST.from_forms(graph, rows, Outline(graph))
    return FAST.bounded(graph, rows)[0], forms, CrownIBP(1).lower(graph, rows)


@pytest.mark.parametrize(("epsilon", "wins"), [(0.01, False), (1.0, True)])
def test_the_gradient_is_that_of_the_larger_margin(epsilon, wins):
    model, x = build("tanh"), sequences(16, 5)
    y, weights = predicted(model, x), list(model.parameters())
    margins, forms, intervals = both(model, x, y, epsilon)
    assert (intervals > forms).any() == wins
    assert (forms > intervals).any()
    largest = torch.maximum(forms, intervals)
    assert torch.equal(margins, largest)
    one, other = (
        torch.autograd.grad(found.sum(), weights, retain_graph=True) for found in (margins, largest)
    )
    for found, wanted in zip(one, other, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("epsilon", "wins"), [(0.01, False), (1.0, True)])
def test_intervals_get_a_gradient_only_where_they_are_larger_somewhere(epsilon, wins, monkeypatch):
    asked, intervals = [], popqorn._of_intervals

    def recorded(*args):
        asked.append(torch.is_grad_enabled())
        return intervals(*args)

    model, x = build("tanh"), sequences(16, 5)
    monkeypatch.setattr(popqorn, "_of_intervals", recorded)
    both(model, x, predicted(model, x), epsilon)
    assert asked == ([False, True] if wins else [False])
