"""Toy classifiers, and points inside a ball to hold against their bounds.

B: batch, T: frames, N: features, C: classes, P: points.
"""

import functools
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import dropout, linear, log_softmax, relu

from popqorn_train import LpBall
from popqorn_train.certificates.pgd import attack

CELLS = ("tanh", "relu", "lstm", "gru")
# For what is done alike with every cell: one with gates and one without are in the fast run.
SOME_CELLS = ("tanh", "gru", *(pytest.param(cell, marks=pytest.mark.slow) for cell in CELLS[1:3]))
METHODS = ("ibp", "crown-ibp", "popqorn-fast", "popqorn")
NORMS = (1, 2, math.inf)
F64 = torch.float64
FEATURES, HIDDEN, CLASSES = 3, 4, 3


def recurrent(cell, features, hidden, **options):
    if cell in ("tanh", "relu"):
        return nn.RNN(features, hidden, nonlinearity=cell, **options)
    return {"lstm": nn.LSTM, "gru": nn.GRU}[cell](features, hidden, **options)


class Classifier(nn.Module):
    """A recurrent layer, a way to read it, and a linear head."""

    def __init__(self, cell, *, read="last", hidden=HIDDEN, classes=CLASSES, **options):
        super().__init__()
        self.rnn = recurrent(cell, FEATURES, hidden, batch_first=True, **options)
        self.head = nn.Linear(hidden, classes)
        self.read, self.cell = read, cell

    def forward(self, x):
        out, state = self.rnn(x)
        if self.read == "state":
            h_n = state[0] if self.cell == "lstm" else state
            return self.head(h_n[-1])
        if self.read == "mean":
            return self.head(out.mean(dim=1))
        return self.head(out[:, -1] if self.read == "last" else out.sum(1))


def build(cell, *, seed=0, gain=1.5, **options):
    """A float64 classifier with weights large enough to leave the linear range."""
    torch.manual_seed(seed)
    model = Classifier(cell, **options).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(gain)
        if cell == "relu" and model.rnn.bias:
            model.rnn.bias_hh_l0.add_(1)  # so that few units are dead
    return model


def sequences(batch=2, time=3, features=FEATURES, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, features, generator=generator, dtype=F64)


@torch.no_grad()
def predicted(model, x):
    return model(x).argmax(1)


def margins(logits, target):
    """The label's logit minus each other one, ``+inf`` at the label."""
    own = nn.functional.one_hot(target, logits.shape[-1]).bool()
    return (logits[own][:, None] - logits).masked_fill(own, math.inf)


def steepest(gradient, p):
    """The step of p-norm 1 in every frame along which a linear function rises fastest."""
    if p == math.inf:
        return gradient.sign()
    if p == 1:
        top = nn.functional.one_hot(gradient.abs().argmax(-1), gradient.shape[-1])
        return top * gradient.sign()
    step = gradient.sign() * gradient.abs() ** (1 / (p - 1))
    return step / torch.linalg.vector_norm(step, p, dim=-1, keepdim=True).clamp(min=1e-300)


def steps_inside(shape, p, *, seed=0):
    """Steps ``(P, T, N)`` of p-norm at most 1 a frame: corners, the sphere, and the interior."""
    generator = torch.Generator().manual_seed(seed)
    third = shape[0] // 3
    noise = torch.randn(shape, generator=generator, dtype=F64)
    corners = steepest(noise[:third], 1 if p == 1 else math.inf)
    corners = corners / torch.linalg.vector_norm(corners, p, dim=-1, keepdim=True)
    size = torch.linalg.vector_norm(noise[third:], p, dim=-1, keepdim=True)
    sphere = noise[third:] / size
    sphere[third:] *= torch.rand(sphere[third:].shape[:-1], generator=generator).to(F64)[..., None]
    return torch.cat([corners, sphere])


def minimisers(model, x, epsilon, p):
    """For every logit, the points of the ball where its linearisation is least and greatest."""
    x = x.clone().requires_grad_()
    logits = model(x)
    found = []
    for column in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, column].sum(), x, retain_graph=True)
        step = epsilon * steepest(gradient, p)
        found += [x.detach() + step, x.detach() - step]
    return torch.stack(found)


def points_inside(model, x, epsilon, p, *, count, seed=0):
    """Points ``(P, B, T, N)`` of the per-frame balls: sampled, at corners, and found by search."""
    batch = len(x)
    steps = steps_inside((count * batch, *x.shape[1:]), p, seed=seed)
    sampled = x + epsilon * steps.view(count, batch, *x.shape[1:])
    ball, target = LpBall(epsilon, p), predicted(model, x)
    attacked = [attack(model, x, target, ball, steps=8, restarts=2, seed=seed).moved]
    return torch.cat([sampled, minimisers(model, x, epsilon, p), torch.stack(attacked)])


@torch.no_grad()
def logits_at(model, points):
    """Logits ``(P, B, C)`` of points ``(P, B, T, N)``, in one call of the model."""
    return model(points.flatten(0, 1)).view(*points.shape[:2], -1)


@functools.cache
def sampled_problem(cell, layers, p, time, epsilon):
    """A network, its inputs, and logits at 1e4 points of the ball around them."""
    model, x = build(cell, num_layers=layers, seed=time), sequences(2, time, seed=time)
    points = points_inside(model, x, epsilon, p, count=5000, seed=time)
    return model, x, logits_at(model, points)


class Base(nn.Module):
    """What the models of the zoo share: as people write them, every one can be bounded."""

    def __init__(self, rnn=None):
        super().__init__()
        self.rnn = rnn or nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)
        self.mean, self.std = nn.Buffer(torch.arange(3.0)), nn.Buffer(torch.ones(3) / 2)
        self.start = nn.Parameter(torch.randn(2, 1, HIDDEN))

    def last(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class ByHand(Base):
    def forward(self, x):
        if x.dim() == 2:
            x = x.unsqueeze(1)
        assert x.shape[-1] == FEATURES
        h = torch.zeros(x.shape[0], HIDDEN, dtype=x.dtype)
        w, u = self.rnn.weight_ih_l0[:HIDDEN], self.rnn.weight_hh_l0[:HIDDEN]
        for t in range(x.size(1)):
            h = torch.tanh(linear(x[:, t], w) + linear(h, u))
        for frame in x.unbind(1):
            h = (linear(frame, w) + h).sigmoid()
        return self.head(h)


class Image(Base):
    def forward(self, x):
        return self.last(x.view(x.size(0), -1, FEATURES))


class Channels(Base):
    def forward(self, x):
        return self.last(x.squeeze(1).transpose(1, 2))


class Normalised(Base):
    def forward(self, x):
        return self.last((x - self.mean) / self.std)


class TimeFirst(Base):
    def __init__(self):
        super().__init__(nn.LSTM(FEATURES, HIDDEN))

    def forward(self, x):
        out, (h_n, c_n) = self.rnn(x)
        return self.head(out[-1] + h_n[-1] - 0.5 * c_n[0])


class Permuted(TimeFirst):
    def forward(self, x):
        return super().forward(x.permute(1, 0, 2).contiguous())


class Tokens(Base):
    def __init__(self):
        super().__init__(nn.LSTM(FEATURES, HIDDEN, batch_first=True))
        self.words = nn.Embedding(9, FEATURES)

    def forward(self, tokens):
        return self.last(self.words(tokens))


class Started(Base):
    def __init__(self):
        super().__init__(nn.LSTM(FEATURES, HIDDEN, 2, batch_first=True, dropout=0.3))

    def forward(self, x):
        h0, c0 = (s.expand(-1, x.shape[0], -1).contiguous() for s in (self.start, -self.start))
        return self.head(self.rnn(x, (h0, c0))[1][0][-1])


class Joined(Base):
    def __init__(self):
        super().__init__()
        layers = nn.Linear(4 * HIDDEN, 6), nn.ReLU(), nn.Dropout(0.5), nn.Identity()
        self.top = nn.Sequential(*layers, nn.Linear(6, CLASSES))

    def forward(self, x):
        out, h_n = self.rnn(x, torch.zeros(1, x.size(0), HIDDEN, dtype=x.dtype))
        parts = [out.mean(1), h_n[0], out[:, :2].sum(dim=1), out.select(1, 0)]
        return self.top(torch.cat(parts, dim=1))


class Residual(Base):
    def forward(self, x):
        out = self.rnn(x)[0]
        deep = relu(out - 0.1) + 2 * out - out.tanh() / 4
        pair = torch.stack([1 - deep[:, 0], dropout(deep[:, -1], training=self.training)], 1)
        return log_softmax(self.head(pair.flatten(1)[:, 2:-2]), -1)


def zoo():
    """Name to ``(model, inputs)``, in float64; all inputs hold two sequences of four frames."""
    x = sequences(2, 4)
    inputs = {Image: x.view(2, 1, 2, 6), Channels: x.transpose(1, 2)[:, None]}
    inputs |= {Tokens: torch.tensor([[0, 3, 8, 1], [5, 5, 2, 7]]), TimeFirst: x.transpose(0, 1)}
    kinds = (ByHand, Image, Channels, Normalised, TimeFirst, Permuted, Tokens, Started)
    torch.manual_seed(3)
    return {k.__name__: (k().double().eval(), inputs.get(k, x)) for k in (*kinds, Joined, Residual)}
