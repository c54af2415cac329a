"""Softmax, pooling and products of matrices as nodes: their forms, their hulls, and what they read.

B: batch, P: points.
"""

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, bound, certified_radius, certify, empirical_radius, logit_bounds
from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.bilinear import Bilinear
from popqorn_train.bounds.matrix_product import MatrixProduct
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.softmax import Pooling, Softmax
from popqorn_train.errors import UnsupportedModelError
from popqorn_train.perturbations.region import Bounds
from tests.problems import F64, METHODS, sequences

WAYS = {
    "mul, sum": lambda w, h: (w[..., None] * h).sum(1),
    "mul, mean": lambda w, h: (h * w[..., None]).mean(1, keepdim=True)[:, 0] * h.size(1),
    "bmm": lambda w, h: torch.bmm(w[:, None], h)[:, 0],
    "matmul": lambda w, h: (h.transpose(1, 2) @ w[..., None])[..., 0],
    "einsum": lambda w, h: torch.einsum("bt,bth->bh", w, h),
    "time first": lambda w, h: (w.T[..., None] * h.transpose(0, 1)).sum(0),
}


class Attentive(nn.Module):
    """States pooled in one of these ways."""

    def __init__(self, way, far=False):
        super().__init__()
        torch.manual_seed(2)
        self.rnn, self.score, self.head = (
            nn.GRU(3, 4, batch_first=True),
            nn.Linear(4, 1),
            nn.Linear(4, 3),
        )
        self.way, self.far = way, far

    def forward(self, x):
        h, _ = self.rnn(x)
        scores = 3 * self.score(h)[..., 0]
        if self.far:
            scores = scores + 500 * torch.tensor([0.0, 0.0, -1.0, 0.0, 1.0])[: x.size(1)]
        return self.head(WAYS[self.way](scores.softmax(1), h))


def nodes_of(model, x):
    return ancestors(bound(model).instance(x).graph(LpBall(0.1)))


@pytest.mark.one_in(6)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_pool_gives_the_same_bounds(way):
    x = sequences(2, 5)
    kinds = {type(node) for node in nodes_of(Attentive(way).double(), x)}
    assert Pooling in kinds
    assert not kinds & {Softmax, Bilinear, MatrixProduct}
    for method in METHODS:
        found = logit_bounds(Attentive(way).double(), x, LpBall(0.1), method=method)
        first = logit_bounds(Attentive("bmm").double(), x, LpBall(0.1), method=method)
        torch.testing.assert_close(found, first, rtol=0, atol=1e-9)


def test_certified_radii_are_near_the_attacked_ones():
    model, x = Attentive("bmm").double().eval(), 0.3 * sequences(2, 4)
    with torch.no_grad():
        for weight in model.rnn.parameters():
            weight.mul_(2)
        model.head.bias.sub_(model(x).mean(0))  # so that no class is far from the others
    y = model(x).argmax(1)
    found, reached = certified_radius(model, x, y, rtol=0.1), empirical_radius(model, x, y)
    assert (found > 1e-4).all()
    assert (found <= reached).all()
    assert (reached < 10 * found).all()


@pytest.mark.one_in(4, first=1)
@pytest.mark.parametrize("method", METHODS)
def test_scores_far_apart_leave_one_frame(method):
    model, x = Attentive("bmm", far=True).double().eval(), sequences(2, 5)
    h = model.rnn(x)[0]
    for epsilon in (0.0, 0.3):
        found = logit_bounds(model, x, LpBall(epsilon), method=method)
        alone = logit_bounds(nn.Sequential(Last(model)), x, LpBall(epsilon), method=method)
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-7)
    assert h.isfinite().all()


class Last(nn.Module):
    """The state that scores far apart leave."""

    def __init__(self, model):
        super().__init__()
        self.rnn, self.head = model.rnn, model.head

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, 4])


@pytest.mark.parametrize("node", ["softmax", "pooling", "product"])
@pytest.mark.parametrize("width", [0.0, 0.1, 2.0, 30.0])
def test_strips_and_relaxations_hold_every_point(node, width):
    generator = torch.Generator().manual_seed(1)
    shapes = {"softmax": [(3, 4)], "pooling": [(2, 3, 4), (2, 4, 2)]}.get(
        node, [(2, 3, 4), (2, 4, 2)]
    )
    inputs = [Node([], shape) for shape in shapes]
    made = {"softmax": Softmax, "pooling": Pooling, "product": MatrixProduct}[node](*inputs)
    boxes, points = [], []
    for shape in shapes:
        lower = torch.randn(2, *shape, generator=generator, dtype=F64)
        upper = lower + width * torch.rand(2, *shape, generator=generator, dtype=F64)
        share = torch.rand(60, 2, *shape, generator=generator, dtype=F64)
        share[:40] = share[:40].round()
        boxes.append(Bounds(lower, upper))
        points.append(torch.lerp(lower, upper, share))
    relaxation, strip, hull = made.relax(None, *boxes), made.strip(*boxes), made.range(*boxes)
    for x in zip(*points, strict=True):
        value = made.range(*[Bounds(part, part) for part in x]).lower
        low, high = made.at(relaxation, *x)
        middle = sum(linear.of(part) for linear, part in zip(strip.maps, x, strict=True))
        assert (low <= value + 1e-12).all()
        assert (value <= high + 1e-12).all()
        assert ((value - middle - strip.middle).abs() <= strip.half + 1e-12).all()
        assert ((hull.lower <= value + 1e-12) & (value <= hull.upper + 1e-12)).all()


def test_products_across_samples_are_refused():
    class Mixed(Attentive):
        def forward(self, x):
            h = self.rnn(x)[0][:, -1]
            return self.head((h @ h.T).softmax(1) @ h)

    with pytest.raises(UnsupportedModelError, match="samples"):
        certify(
            Mixed("bmm").double(), sequences(2, 5), torch.zeros(2, dtype=torch.long), LpBall(0.1)
        )


def test_a_product_of_three_that_move_is_refused_with_the_way_out():
    class Three(Attentive):
        def forward(self, x):
            h = self.rnn(x)[0]
            return self.head(torch.einsum("bth,bth,bth->bh", h, h, h))

    with pytest.raises(UnsupportedModelError, match="Multiply two of them at a time"):
        logit_bounds(Three("bmm").double(), sequences(2, 5), LpBall(0.1))


def test_a_query_that_sees_no_key_is_no_number():
    class Masked(Attentive):
        def __init__(self):
            super().__init__("bmm")
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x, hidden):
            h, _ = self.rnn(x)
            return self.head(self.attention(h, h, h, key_padding_mask=hidden)[0].mean(1))

    model, x = Masked().double().eval(), sequences(2, 5)
    hidden = torch.tensor([[False] * 4 + [True], [True] * 5])
    found = certify(model, (x, hidden), torch.zeros(2, dtype=torch.long), LpBall(0.01))
    assert not found.certified[1]
    alone = certify(model, (x[:1], hidden[:1]), torch.zeros(1, dtype=torch.long), LpBall(0.01))
    torch.testing.assert_close(found.margin[:1], alone.margin)
