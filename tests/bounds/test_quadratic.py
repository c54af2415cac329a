"""Energies of filters of a wave: true, tight, and the same in every precision and batch.

B: batch, L: samples of a wave, P: points.
"""

import functools
import math

import pytest
import torch
from torch import nn

from popqorn_train import CertifiedLoss, LpBall, bound, logit_bounds
from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.quadratic import Quadratic
from tests.problems import F64, METHODS

B, L = 2, 29
BALLS = {
    "box": LpBall(0.05),
    "cut": LpBall(0.05, low=-0.6, high=0.6),
    "ball": LpBall(0.15, p=2, scope="sequence"),
    "one": LpBall(0.2, p=1, scope="sequence"),
    "samples": LpBall(0.05, p=2),
    "cube": LpBall(0.1, p=3, scope="sequence"),
    "still": LpBall(0.05, frames=[True] * 20 + [False] * 9),
}


class Energies(nn.Module):
    """What filters let through of windows that overlap, and what a network makes of it."""

    def __init__(self, bias=False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.filters = nn.Linear(9, 12, bias=bias)
        self.mel = nn.Parameter(torch.rand(12, 4, generator=generator))
        self.rnn, self.out = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def energies(self, wave):
        return self.filters(wave.unfold(1, 9, 5)).square() @ self.mel

    def forward(self, wave):
        features = torch.log(self.energies(wave) + 0.01)
        return self.out(self.rnn(features)[0][:, -1])


class EnergiesAlone(Energies):
    def forward(self, wave):
        return self.energies(wave).flatten(1)


class Both(Energies):
    def forward(self, wave):
        return torch.cat([super().forward(wave), self.energies(wave).flatten(1)], 1)


@functools.cache
def problem(kind=Energies, bias=False):
    torch.manual_seed(0)
    net = kind(bias).double().eval()
    return net, (0.5 * torch.randn(B, L)).clamp(-0.6, 0.6).to(F64)


def points(x, ball, count, generator):
    d = torch.randn(count, *x.shape, dtype=F64, generator=generator)
    if ball.p == math.inf or ball.scope == "frame":
        d[: count // 2] = d[: count // 2].sign()
        d = d.clamp(-1, 1) * ball.epsilon
    else:
        d = d * (torch.rand(*d.shape, generator=generator) < 0.3)
        norm = torch.linalg.vector_norm(d, ball.p, dim=-1, keepdim=True)
        d = ball.epsilon * d / norm.clamp(min=1e-9)
    if ball.frames is not None:
        d = d * ball.frames
    return x + d if ball.low is None else (x + d).clamp(ball.low, ball.high)


def attacked(net, x, ball, generator):
    """Points that raise and lower one output each, of energies or of logits."""
    moved = points(x, ball, 8, generator).flatten(0, 1)
    with torch.enable_grad():
        for _ in range(4):
            moved = moved.detach().requires_grad_()
            out = net(moved)
            pick = torch.randint(out.shape[1], (len(out), 1), generator=generator)
            sign = 2.0 * torch.randint(2, (len(out), 1), generator=generator) - 1
            (g,) = torch.autograd.grad((sign * out.gather(1, pick)).sum(), moved)
            d = ball.epsilon * g.sign()
            if ball.p != math.inf and ball.scope == "sequence":
                d = ball.epsilon * g / torch.linalg.vector_norm(g, ball.p, dim=-1, keepdim=True)
                if ball.p == 1:
                    d = torch.zeros_like(g).scatter(1, g.abs().argmax(1, True), 1.0) * d.sign()
                    d = d * ball.epsilon
            d = d if ball.frames is None else d * ball.frames
            moved = x.repeat(8, 1) + d
            moved = moved if ball.low is None else moved.clamp(ball.low, ball.high)
    return moved.detach().view(8, *x.shape)


@pytest.mark.parametrize("name", BALLS)
@pytest.mark.parametrize("method", METHODS)
def test_no_point_leaves_the_bounds(method, name):
    (net, x), ball = problem(Both, name == "box"), BALLS[name]
    lower, upper = logit_bounds(net, x, ball, method=method)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for moved in (points(x, ball, 2000, generator), attacked(net, x, ball, generator)):
            values = net(moved.flatten(0, 1)).view(len(moved), B, -1)
            assert torch.maximum(lower - values, values - upper).max() <= 1e-10


def test_energies_of_a_million_points_stay_in_their_bounds():
    net, x = problem(EnergiesAlone)
    generator = torch.Generator().manual_seed(1)
    lower, upper = logit_bounds(net, x, BALLS["box"], method="popqorn")
    with torch.no_grad():
        for _ in range(20):
            moved = points(x, BALLS["box"], 1250, generator)
            values = net(moved.flatten(0, 1)).view(len(moved), B, -1)  # 50 000 numbers
            assert (values >= lower).all()
            assert (values <= upper).all()


def node_of(net, x, ball):
    graph = bound(net).instance(x).graph(ball)
    return next(node for node in ancestors(graph) if isinstance(node, Quadratic))


def test_squares_of_filters_become_one_node_and_others_do_not():
    net, x = problem()
    assert node_of(net, x, LpBall(0.1)).shape == (5, 4)
    signed = EnergiesAlone().double().eval()
    with torch.no_grad():
        signed.mel[0, 0] = -1.0
    with pytest.raises(StopIteration):
        node_of(signed, x, LpBall(0.1))


def test_the_bounds_are_those_of_one_constant_and_no_looser_than_of_single_squares():
    net, x = problem(EnergiesAlone)

    class Apart(EnergiesAlone):
        def energies(self, wave):
            return (self.filters(wave.unfold(1, 9, 5)).square() + 0.0 * self.mel[:, 0]) @ self.mel

    apart = Apart().double().eval()
    apart.load_state_dict(net.state_dict())
    one, other = (logit_bounds(n, x, LpBall(0.05), method="ibp") for n in (net, apart))
    assert ((one.upper - one.lower) < (other.upper - other.lower)).all()


def test_a_single_sample_that_moves_has_exact_bounds():
    torch.manual_seed(0)
    net, x = EnergiesAlone().double().eval(), torch.randn(1, 9, dtype=F64)
    frames = [True] + [False] * 8
    lower, upper = logit_bounds(net, x, LpBall(0.1, frames=frames), method="ibp")
    grid = torch.linspace(-0.1, 0.1, 2001, dtype=F64)
    moved = x.repeat(2001, 1)
    moved[:, 0] += grid
    values = net(moved).detach()
    assert (values.amax(0) <= upper[0]).all()
    assert (values.amin(0) >= lower[0]).all()
    gap = 0.01 * net.mel.T @ net.filters.weight[:, 0].square()  # delta^2 M[0, 0]
    assert (values.amin(0) - lower[0] <= gap + 1e-9).all()


def test_without_a_perturbation_the_bounds_are_the_energies():
    net, x = problem(EnergiesAlone)
    for side in logit_bounds(net, x, LpBall(0.0), method="popqorn"):
        torch.testing.assert_close(side, net(x).detach(), rtol=0, atol=1e-11)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", ["ibp", "popqorn", "popqorn-fast"])
def test_bounds_in_float32_hold_those_of_float64_give_or_take_rounding(method):
    net, x = problem()
    single = Energies().eval()
    single.load_state_dict(net.state_dict())
    double = logit_bounds(net, x, LpBall(0.05), method=method)
    found = logit_bounds(single, x.float(), LpBall(0.05), method=method)
    for one, two in zip(found, double, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-3, atol=1e-4)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["box", "ball"])
@pytest.mark.parametrize("method", METHODS)
def test_a_sample_alone_and_a_wave_of_another_length_have_their_bounds(method, name):
    net, x = problem()
    layer = bound(net)
    both = logit_bounds(layer, x, BALLS[name], method=method)
    alone = logit_bounds(layer, x[1:], BALLS[name], method=method)
    for one, two in zip(both, alone, strict=True):
        torch.testing.assert_close(one[1:], two, rtol=0, atol=1e-9)
    shorter = logit_bounds(layer, x[:, :20], BALLS[name], method=method)
    fresh = logit_bounds(net, x[:, :20], BALLS[name], method=method)
    for one, two in zip(shorter, fresh, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_learned_filters_get_the_gradient_of_their_bounds():
    net, x = problem()
    y, loss, weight = torch.tensor([0, 1]), CertifiedLoss(epsilon=0.02), net.filters.weight
    value = loss(net, x, y)
    (gradient,) = torch.autograd.grad(value, weight)
    step = 1e-6
    with torch.no_grad():
        weight.mul_(1 + step)
        more = loss(net, x, y)
        weight.div_(1 + step)
        expected = step * (gradient * weight).sum()
    torch.testing.assert_close(more - value.detach(), expected, rtol=2e-2, atol=1e-9)
