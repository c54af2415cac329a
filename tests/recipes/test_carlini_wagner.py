"""C&W-Ada: what it finds does change the class, and no certificate reaches that far."""

import math

import pytest
import torch

from popqorn_train import certified_radius
from popqorn_train.recipes.experiments.carlini_wagner import attacked_distance
from tests.problems import build, predicted, sequences
from tests.recipes.test_clever import Linear


@pytest.mark.one_in(2)
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
@pytest.mark.parametrize("p", [2.0, math.inf])
def test_no_certified_radius_reaches_what_the_attack_found(cell, p):
    net, x = build(cell), sequences(6, 4)
    y, against = net(x).topk(2).indices.T
    proved = certified_radius(net, x, y, p=p, against=against)
    found = attacked_distance(net, x, y, against=against, p=p, steps=300, learning_rate=0.02)
    assert (found >= proved).all()
    assert found.isfinite().any()


def test_on_a_linear_margin_the_attack_comes_near_the_least_distance():
    net, x = Linear(), sequences(6, 4)
    y = predicted(net, x)
    against = (y + 1) % 3
    rows = (net.head.weight[y] - net.head.weight[against]).view(6, 4, 3).detach()
    logits = net(x).detach()
    margin = (logits.gather(1, y[:, None]) - logits.gather(1, against[:, None]))[:, 0]
    exact = margin / torch.linalg.vector_norm(rows, 2, dim=-1).sum(1)
    found = attacked_distance(net, x, y, against=against, p=2.0, steps=800, learning_rate=0.01)
    assert (found >= exact * (1 - 1e-9)).all()
    assert (found <= 1.6 * exact).all()


def test_where_nothing_helps_the_distance_is_infinite():
    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 0.0]]) + 0 * x.sum((1, 2))[:, None]

    x, y = torch.zeros(2, 3, 2), torch.zeros(2, dtype=torch.long)
    found = attacked_distance(Constant(), x, y, against=y + 1, p=2.0, steps=3)
    assert found.isinf().all()
