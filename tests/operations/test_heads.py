"""Attention with heads has the bounds of ``nn.MultiheadAttention``, however it is written."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from popqorn_train import LpBall, logit_bounds
from tests.problems import F64

B, T, F, HEADS, SIZE, C = 2, 4, 3, 2, 2, 3
H = HEADS * SIZE


def by_matmul(q, k, v):
    q, k, v = (x.view(len(x), -1, HEADS, SIZE).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-2, -1) / math.sqrt(SIZE)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def by_bmm(q, k, v):
    b, t, _ = q.shape
    q, k, v = (
        x.view(b, t, HEADS, SIZE).transpose(1, 2).reshape(b * HEADS, t, SIZE) for x in (q, k, v)
    )
    weights = functional.softmax(torch.bmm(q, k.transpose(1, 2)) * SIZE**-0.5, dim=-1)
    return torch.bmm(weights, v).view(b, HEADS, t, SIZE).transpose(1, 2).reshape(b, t, H)


def by_einsum(q, k, v):
    q, k, v = (x.unflatten(-1, (HEADS, SIZE)) for x in (q, k, v))
    weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k) / SIZE**0.5, -1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)


def head_by_head(q, k, v):
    parts = zip(*(x.split(SIZE, -1) for x in (q, k, v)), strict=True)
    return torch.cat([(a @ b.mT / math.sqrt(SIZE)).softmax(-1) @ c for a, b, c in parts], -1)


class Heads(nn.Module):
    """A GRU, heads over its states, the last frame."""

    def __init__(self, attend=None):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.GRU(F, H, batch_first=True), nn.Linear(H, C)
        self.attention, self.attend = nn.MultiheadAttention(H, HEADS, batch_first=True), attend

    def forward(self, x):
        h, layer = self.rnn(x)[0], self.attention
        if self.attend is None:
            found = layer(h, h, h, need_weights=False)[0]
        else:
            qkv = functional.linear(h, layer.in_proj_weight, layer.in_proj_bias)
            found = layer.out_proj(self.attend(*qkv.chunk(3, -1)))
        return self.head(found[:, -1])


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", ["crown-ibp", "popqorn-fast"])
@pytest.mark.parametrize("attend", [by_matmul, by_bmm, by_einsum, head_by_head])
def test_heads_by_hand_have_the_bounds_of_the_layer(attend, method):
    x = torch.randn(B, T, F, generator=torch.Generator().manual_seed(1), dtype=F64)
    one, two = (
        logit_bounds(Heads(how).double().eval(), x, LpBall(0.1), method=method)
        for how in (attend, None)
    )
    torch.testing.assert_close(tuple(one), tuple(two), rtol=0, atol=1e-9)
