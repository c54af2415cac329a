"""What a frame is, whatever lies between the tensor that is passed and the recurrent layer.

At a small epsilon a bound is the linear one of its set, so it tells which entries share a ball:

    (logit - lower) / epsilon  ->  sum over the frames t that move of ||gradient[t]||_2

B: batch, T: frames, N: features.
"""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import pack_padded_sequence

from popqorn_train import (
    Box,
    LpBall,
    Substitutions,
    UnsupportedModelError,
    bound,
    certify,
    empirical_radius,
    frame_radii,
    logit_bounds,
)
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.pgd import attack

B, T, N, H = 2, 4, 3, 3


class Net(nn.Module):
    """A classifier whose forward is ``run(net, x)``."""

    def __init__(self, run):
        super().__init__()
        self.run, self.start = run, nn.Buffer(torch.zeros(1, H))
        self.gru, self.wide = nn.GRU(N, H, batch_first=True), nn.GRU(T, H, batch_first=True)
        self.cell, self.by_time = nn.GRUCell(N, H), nn.GRU(N, H)
        self.bn, self.conv, self.norm = nn.BatchNorm1d(N), nn.Conv1d(N, N, 1), nn.LayerNorm(N)
        self.flatten, self.words, self.mix = nn.Flatten(1, 2), nn.Embedding(6, N), nn.Linear(N, N)
        self.head, self.skip = nn.Linear(H, 2), nn.Linear(T * N, 2)

    def forward(self, x):
        return self.run(self, x)

    def last(self, sequence):
        return self.head(self.gru(sequence)[0][:, -1])

    def packed(self, sequence):
        lengths = torch.full((sequence.shape[0],), T)
        return self.head(self.gru(pack_padded_sequence(sequence, lengths, True))[1][-1])

    def cells(self, frames):
        h = self.start.expand(frames[0].shape[0], H)
        for frame in frames:
            h = self.cell(frame, h)
        return self.head(h)

    def by_hand(self, frames):
        h = self.start.expand(frames[0].shape[0], H)
        for frame in frames:
            h = torch.tanh(self.mix(frame) + linear(h, self.cell.weight_hh[:H]))
        return self.head(h)


def turned(x):
    return x.transpose(1, 2)


def picked(x, axis):
    return [x.select(axis, t) for t in range(T)]


# What is passed, and from there to (B, T, N).
LAYOUTS = {
    "batch first": ((B, T, N), lambda x: x),
    "time first": ((T, B, N), lambda x: x.transpose(0, 1)),
    "image": ((B, 1, T, N), lambda x: x.squeeze(1)),
    "channels": ((B, N, T), turned),
    "flat": ((B, T * N), lambda x: x.reshape(-1, T, N)),
}
FRONTS = {
    "none": lambda net, s: net.last(s),
    "scaled": lambda net, s: net.last((s - 0.1) / 0.5),
    "conv": lambda net, s: net.last(turned(net.conv(turned(s)))),
    "cells": lambda net, s: net.cells(picked(s, 1)),
    "packed": lambda net, s: net.packed(s),
    "skip": lambda net, s: net.last(s) + net.skip(s.flatten(1)),
    "bn": lambda net, s: net.last(turned(net.bn(turned(s)))),
    "tanh": lambda net, s: net.last(turned(turned(s).tanh())),
    "clamp": lambda net, s: net.last(s.clamp(-9, 9).reshape(s.shape)),
    "layer norm": lambda net, s: net.last(net.norm(s)),
    "residual": lambda net, s: net.last(s + net.mix(s)),
    "by hand": lambda net, s: net.by_hand(s.unbind(1)),
}
READ = ("none", "scaled", "conv", "cells", "packed", "skip")  # layout changes alone lead there
# The axis as passed that holds frames, behind READ and behind the others; "rows" lie on none.
AXES = {
    "batch first": (1, 1),
    "time first": (0, 0),
    "image": (2, None),
    "channels": (2, 1),
    "flat": ("rows", 1),
}
OPEN = {("channels", "cells"), ("channels", "by hand")}  # a loop over another axis than axis 1


def case(layout, front):
    shape, arranged = LAYOUTS[layout]
    axis = None if (layout, front) in OPEN else AXES[layout][front not in READ]
    return lambda net, x: FRONTS[front](net, arranged(x)), shape, axis


# Forward, shape as passed, and the axis of its frames; None where it has to be named.
CASES = {f"{layout}, {front}": case(layout, front) for layout in LAYOUTS for front in FRONTS}
CASES |= {
    "cells on axis 2": (lambda net, x: net.cells(picked(x, 2)), (B, N, T), None),
    "by hand on axis 2": (lambda net, x: net.by_hand(picked(x, 2)), (B, N, T), None),
    "cells, permuted": (lambda net, x: net.cells([*x.permute(2, 0, 1)]), (B, N, T), None),
    "by hand, permuted": (lambda net, x: net.by_hand([*x.permute(2, 0, 1)]), (B, N, T), None),
    "a layer by time": (lambda net, x: net.head(net.by_time(x)[0][-1]), (T, B, N), 0),
    "columns": (lambda net, x: net.last(turned(x[:, 0])), (B, 1, N, T), 3),
    "viewed": (lambda net, x: net.last(x.view(x.shape[0], T, N)), (B, 1, T, N), 2),
    "a module flattens": (lambda net, x: net.last(net.flatten(x)), (B, 1, T, N), 2),
    "reversed": (lambda net, x: net.last(x.flip(1)), (B, T, N), 1),
    "both ways": (lambda net, x: net.last(x.flip(1)) + net.last(x), (B, T, N), 1),
    "a part": (lambda net, x: net.last(x[:, 1:]) + net.skip(x.flatten(1)), (B, T, N), 1),
    "two layouts": (
        lambda net, x: net.last(x) + net.head(net.wide(turned(x))[0][:, -1]),
        (B, T, N),
        1,
    ),
    "a layer a frame": (
        lambda net, x: sum(net.last(x[:, t : t + 1]) for t in range(T)),
        (B, T, N),
        1,
    ),
    "features apart": (
        lambda net, x: net.last(torch.stack([x[..., 0], 2 * x[..., 1], x[..., 2]], -1)),
        (B, T, N),
        1,
    ),
}


def problem(name):
    torch.manual_seed(1)
    run, shape, axis = CASES[name]
    net = Net(run).double().eval()
    net.bn.running_mean.uniform_(-1, 1)
    net.bn.running_var.uniform_(0.5, 2)
    return net, torch.randn(shape, dtype=torch.float64), axis


def normed_image():
    """For the command line."""
    return problem("image, bn")[0]


def frames(x, axis):
    """``(B, T', N')`` of a tensor as passed."""
    if axis == "rows":
        return x.reshape(B, T, N)
    x = x.movedim((x.shape.index(B), axis), (0, 1))
    return x.reshape(B, x.shape[1], -1)


def as_passed(moved, like, axis):
    """The tensor whose frames these are."""
    places = frames(torch.arange(like.numel()).view(like.shape), axis)
    return moved.flatten()[places.flatten().argsort()].view(like.shape)


def check(layer, net, x, axis, *, tight=True):
    """Frames along an axis, and no others, move in balls of their own."""
    slopes = torch.autograd.functional.jacobian(lambda x: net(x).sum(0), x)
    slopes = torch.stack([frames(slope, axis) for slope in slopes])  # (2, B, T', N')
    length = slopes.shape[2]
    masked = torch.arange(length) % 3 == 0
    uneven = torch.linspace(0.5, 1.5, B * length, dtype=torch.float64).view(B, length)
    masks = masked.double().expand(B, length), masked
    asked = ((1e-5, *masks), (1e-5, uneven, None), (0.3, uneven, None))
    balls = [LpBall(e if m is not None else e * sizes, 2, frames=m) for e, sizes, m in asked]
    with undisturbed(net):  # one trace for all balls
        found = [logit_bounds(layer, x, ball, method="crown-ibp") for ball in balls]
    for (epsilon, sizes, _), (lower, upper) in zip(asked, found, strict=True):
        steps = slopes / slopes.norm(dim=-1, keepdim=True).clamp(min=1e-12) * sizes[..., None]
        for step in (*steps, *-steps):  # as far as the set goes
            logits = net(x + epsilon * as_passed(step, x, axis))
            assert (logits >= lower - 1e-9).all()
            assert (logits <= upper + 1e-9).all()
        if epsilon < 1e-3 and tight:
            reach = (slopes.norm(dim=-1) * sizes).sum(-1).T
            torch.testing.assert_close((net(x) - lower) / epsilon, reach, rtol=1e-2, atol=1e-5)


@pytest.mark.one_in(12)
@pytest.mark.parametrize("name", CASES)
def test_a_ball_of_every_frame_is_one_of_the_axis_that_the_rule_names(name):
    net, x, axis = problem(name)
    tight = "norm" not in name  # its bound is loose at every epsilon
    if axis is not None:
        check(net, net, x, axis, tight=tight)
        return
    with pytest.raises(UnsupportedModelError, match=r"'x'.*frame_axis="):
        logit_bounds(net, x, LpBall(0.1, 2))
    for named in (x.ndim - 2, -1):
        layer = bound(net, frame_axis=named)
        check(layer, net, x, named % x.ndim, tight=tight)


NAMED = ("batch first, none", "time first, bn", "channels, none", "channels, tanh", "image, skip")


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", NAMED)
def test_the_axis_that_is_named_holds_the_frames(name):
    net, x, _ = problem(name)
    batch = 1 if name.startswith("time") else 0
    for axis in {*range(x.ndim)} - {batch}:
        check(bound(net, frame_axis=axis), net, x, axis)


@pytest.mark.parametrize(
    ("name", "length"),
    [("batch first, bn", T), ("time first, tanh", T), ("channels, bn", N), ("flat, none", T)],
)
def test_radii_and_masks_have_the_length_of_the_axis(name, length):
    net, x, _ = problem(name)
    y = net(x).argmax(1)
    found = frame_radii(net, x, y, p=2, method="ibp", rtol=0.1, max_radius=1.0)
    assert found.shape == (B, length)
    wrong = torch.ones(length + 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=rf"`frames` must be \({length},\)"):
        certify(net, x, y, LpBall(0.1, frames=wrong))
    with pytest.raises(ValueError, match=rf"`epsilon`.*\({B}, {length}\)"):
        certify(net, x, y, LpBall(torch.ones(B, length + 1)))


BALLS = {
    "l_inf": (LpBall(0.1), False),
    "an epsilon per sample": (LpBall(torch.tensor([0.1, 0.2])), False),
    "one ball": (LpBall(0.1, 2, scope="sequence"), False),
    "a domain": (LpBall(0.1, low=-9.0, high=torch.full((B, 1, 1), 9.0)), False),
    "a box": (Box(-9.0, 9.0), False),
    "balls of frames": (LpBall(0.1, 2), True),
    "a mask": (LpBall(0.1, frames=torch.ones(B, 1, dtype=torch.bool)), True),
    "an epsilon per frame": (LpBall(torch.ones(B, 1)), True),
    "ends of features": (LpBall(0.1, low=torch.full((T * N,), -9.0)), True),
    "a box of features": (Box(torch.full((T * N,), -9.0), 9.0), True),
}


@pytest.mark.parametrize(("ball", "refused"), BALLS.values(), ids=BALLS)
def test_what_speaks_of_no_frame_needs_no_axis(ball, refused):
    net, x, _ = problem("image, bn")
    y = net(x).argmax(1)
    for ask in (
        lambda: logit_bounds(net, x, ball, method="ibp"),
        lambda: attack(net, x, y, ball, steps=1, restarts=1),
    ):
        if refused:
            with pytest.raises(UnsupportedModelError, match=r"4 axes.*frame_axis="):
                ask()
        else:
            ask()


def test_radii_of_frames_need_an_axis():
    net, x, _ = problem("image, bn")
    y = net(x).argmax(1)
    for ask in (frame_radii, lambda *p: empirical_radius(*p, p=2)):
        with pytest.raises(UnsupportedModelError, match="frame_axis="):
            ask(net, x, 1 - y)  # also where every radius is 0


@pytest.mark.parametrize("axis", [0, 3, -3, -4])
def test_an_axis_that_is_none_or_the_batch_is_refused(axis):
    net, x, _ = problem("batch first, none")
    with pytest.raises(ValueError, match=rf"`frame_axis`.*'x'.*batch axis 0 \(1, 2\).*{axis}"):
        logit_bounds(bound(net, frame_axis=axis), x, LpBall(0.1))


@pytest.mark.parametrize("axis", [True, 1.0, "1"])
def test_an_axis_is_a_whole_number(axis):
    with pytest.raises(TypeError, match="`frame_axis` must be"):
        bound(problem("batch first, none")[0], frame_axis=axis)


def test_a_bound_model_takes_an_axis_and_keeps_what_moves():
    net, x, _ = problem("channels, bn")
    layer = bound(bound(net, perturb="bn"), frame_axis=1)
    assert (layer.perturb, layer.frame_axis) == ("bn", 1)
    assert bound(layer) is layer
    assert bound(layer, perturb="x").frame_axis is None
    assert layer.instance(x).center.shape == (B, N, T)
    assert bound(layer, perturb="bn").instance(x).center.shape == (B, T, N)  # the layer reads it
    assert bound(net).instance(x).center.shape == (B, N, T)


def test_frames_of_an_embedding_are_tokens_whatever_follows():
    torch.manual_seed(0)
    net = Net(lambda net, x: net.last(turned(net.bn(turned(net.words(x)))))).double().eval()
    tokens, words = torch.tensor([[0, 1, 2, 3], [3, 1, 1, 0]]), {1: [4, 5], 3: [5]}
    lower, upper = logit_bounds(net, tokens, Substitutions(words), method="crown-ibp")
    for sample, place in ((s, t) for s in range(B) for t in range(T)):
        for other in words.get(int(tokens[sample, place]), ()):
            changed = tokens.clone()
            changed[sample, place] = other
            assert (net(changed) >= lower - 1e-9).all()
            assert (net(changed) <= upper + 1e-9).all()
    with pytest.raises(UnsupportedModelError, match="one token"):
        logit_bounds(bound(net, frame_axis=2), tokens, Substitutions(words))


def test_one_number_a_sample_holds_no_frame():
    net = Net(lambda net, x: net.last(x[:, None, None].expand(-1, T, N))).double().eval()
    with pytest.raises(UnsupportedModelError, match=r"'x'.*one number.*perturb="):
        logit_bounds(net, torch.randn(B, dtype=torch.float64), LpBall(0.1))
