"""Ranges of affine nodes, by columns and by rows."""

import math

import pytest
import torch
from torch import nn

from popqorn_train import LpBall
from popqorn_train.bounds import affine_matrix
from popqorn_train.bounds.affine import Linear, Negative, Scale, Sum
from popqorn_train.bounds.affine_matrix import affine_range, affine_ranges
from popqorn_train.bounds.concatenation import Concat, Stack, frames
from popqorn_train.bounds.contraction import Contraction
from popqorn_train.bounds.coordinates import value_of
from popqorn_train.bounds.linear_map import LinearMap
from popqorn_train.bounds.node import Root
from popqorn_train.bounds.single_reads import Affine
from popqorn_train.bounds.total import Total

BATCH, TIME, SIZE = 4, 3, 2


def root(p=math.inf, dtype=torch.float64):
    torch.manual_seed(0)
    value = torch.randn(BATCH, TIME, SIZE, dtype=torch.float64).to(dtype)
    return Root(LpBall(0.3, p).around(value, None, None))


def wide(x, *, own=False):
    """Two layers, of more entries than the input has, through every kind of affine node."""
    torch.manual_seed(1)
    like = x.region.value
    weight, mixed = torch.randn(5, SIZE).to(like), torch.randn(TIME, TIME).to(like)
    factor = torch.randn(BATCH if own else 1, TIME, 5).to(like)
    u = Linear(x, weight, weight[:, 0])
    parts = frames(u)
    u = Sum([u, Negative(Stack(parts[::-1]))], factor[:, :, :1].expand(-1, -1, 5))
    scaled = Affine(lambda v: v.flip(1) * factor - 1.5, [u], (TIME, 5), 0)
    mixture = Contraction(lambda v, w: torch.einsum("ts,bsf->btf", w, v), u, [mixed],
                          shape=(TIME, 5), batch_axis=0)  # fmt: skip
    both = Concat([Scale(mixture, factor[:1], factor[:1]), scaled])
    kernel = torch.randn(4, TIME, 2).to(like)
    layer = LinearMap(nn.functional.conv1d, both, kernel, kernel[:, 0, 0],
                      shape=(4, 9), batch_axis=0)  # fmt: skip
    return [layer, Sum([both]), Total(both, [0], 0.5, keepdim=False)]


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("own", [False, True])
def test_columns_are_worth_rows(p, own):
    nodes = wide(root(p), own=own)
    found = affine_ranges(nodes)
    for node in nodes:
        lower, upper = affine_range(node)
        torch.testing.assert_close(found[node].lower, lower)
        torch.testing.assert_close(found[node].upper, upper)
        assert (lower <= upper).all()
        assert (lower < upper).any()


@pytest.mark.parametrize("own", [False, True])
def test_only_coefficients_of_a_sample_keep_columns_away(own):
    x = root()
    nodes = wide(x, own=own)
    known = [affine_matrix._columns(nodes)[node] is not None for node in nodes]
    assert known == [not own] * 3


@pytest.mark.parametrize("own", [False, True])
def test_ends_are_those_of_the_matrix(own):
    x = root()
    for node in wide(x, own=own):
        box = x.region.box[1].reshape(BATCH, -1)
        moved = x.region.value.clone().requires_grad_()
        image = value_of(node, moved).reshape(BATCH, -1)
        for k in (0, image.shape[1] - 1):
            (slope,) = torch.autograd.grad(image[:, k].sum(), moved, retain_graph=True)
            reach = (slope.reshape(BATCH, -1).abs() * box).sum(1)
            found = affine_ranges([node])[node]
            torch.testing.assert_close(found.upper.reshape(BATCH, -1)[:, k], image[:, k] + reach)
            torch.testing.assert_close(found.lower.reshape(BATCH, -1)[:, k], image[:, k] - reach)


def test_float32_is_near_float64():
    pairs = zip(wide(root(dtype=torch.float32)), wide(root()), strict=True)
    for one, two in pairs:
        found, exact = affine_ranges([one])[one], affine_ranges([two])[two]
        torch.testing.assert_close(found.lower.double(), exact.lower, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_weights_by_columns_as_by_rows():
    x = root()
    weight = torch.randn(9, SIZE, dtype=torch.float64, requires_grad=True)
    node = Sum([Linear(x, weight)])
    found = [affine_ranges([node])[node], affine_range(node)]
    one, two = (torch.autograd.grad((b.upper * 2 - b.lower).sum(), weight)[0] for b in found)
    torch.testing.assert_close(one, two)
    assert one.abs().min() > 0


def test_a_ball_of_size_0_is_a_point():
    torch.manual_seed(0)
    value = torch.randn(BATCH, TIME, SIZE, dtype=torch.float64)
    x = Root(LpBall(0.0).around(value, None, None))
    for node, (lower, upper) in affine_ranges(wide(x)).items():
        torch.testing.assert_close(lower, upper)
        torch.testing.assert_close(lower, value_of(node, value))
