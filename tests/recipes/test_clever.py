"""CLEVER-RNN: exact where the margin is linear, between proof and attack where it is told so."""

import math

import pytest
import torch
from torch import nn

from popqorn_train import certified_radius
from popqorn_train.recipes.experiments.clever import clever_estimate
from tests.problems import build, predicted, sequences


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(12, 3).double()

    def forward(self, x):
        return self.head(x.flatten(1))


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_a_linear_margin_is_estimated_exactly(p):
    net, x = Linear(), sequences(5, 4)
    y = predicted(net, x)
    against = (y + 1) % 3
    largest = torch.full((5,), 100.0)
    found = clever_estimate(net, x, y, against=against, p=p, largest=largest, samples=3)
    rows = (net.head.weight[y] - net.head.weight[against]).view(5, 4, 3)
    slopes = torch.linalg.vector_norm(rows, {1.0: math.inf, 2.0: 2, math.inf: 1}[p], dim=-1)
    logits = net(x)
    margin = logits.gather(1, y[:, None]) - logits.gather(1, against[:, None])
    torch.testing.assert_close(found, (margin[:, 0] / slopes.sum(1)).detach())


def test_more_samples_never_raise_the_estimate_and_it_never_exceeds_the_ball():
    net, x = build("lstm"), sequences(6, 4)
    y = predicted(net, x)
    options = {"against": (y + 1) % 3, "p": 2.0, "largest": torch.full((6,), 0.3).double()}
    few = clever_estimate(net, x, y, samples=2, **options)
    many = clever_estimate(net, x, y, samples=40, **options)
    assert (many <= few).all()
    assert (few <= options["largest"]).all()


def test_the_estimate_is_seldom_below_a_certified_radius():
    net, x = build("gru"), sequences(8, 3)
    y = predicted(net, x)
    against = (y + 1) % 3
    proved = certified_radius(net, x, y, p=2, against=against)
    found = clever_estimate(net, x, y, against=against, p=2.0, largest=10 * proved, samples=5)
    assert (found > 0).all()
    wrong = clever_estimate(net, x, against, against=y, p=2.0, largest=proved, samples=5)
    assert (wrong == 0).all()
