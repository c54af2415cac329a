"""Rows of softmax and of attention, as operations and as a layer; see rows.py."""

import torch
from torch import nn
from torch.nn import functional

from tests.operations.rows import F, T

_dot_product = functional.scaled_dot_product_attention


def _scored(m, a):
    """Scores ``(B, T)`` of both signs."""
    return 2 * (a * m.c).sum(2)


ATTENTION_ROWS = {
    "log_softmax": [
        lambda m, a, b: functional.log_softmax(a, -1),
        lambda m, a, b: torch.log_softmax(3 * (a - b), dim=1, dtype=a.dtype),
        lambda m, a, b: (a.log_softmax(1).exp() * b).sum(1),
        lambda m, a, b: a.transpose(0, 1).log_softmax(0).transpose(0, 1),
    ],
    "softmax": [
        lambda m, a, b: torch.softmax(a, 1),
        lambda m, a, b: functional.softmax(3 * (a - b), dim=-1),
        lambda m, a, b: a.transpose(0, 1).softmax(0).transpose(0, 1),
        lambda m, a, b: (_scored(m, a).softmax(1)[..., None] * b).sum(1),
        lambda m, a, b: (b * torch.softmax(a[..., :1], 1, dtype=a.dtype)).mean(1, keepdim=True),
        lambda m, a, b: torch.bmm(_scored(m, a).softmax(1)[:, None], b),
        lambda m, a, b: b.transpose(1, 2) @ (a * m.c).softmax(1),
        lambda m, a, b: torch.einsum("bt,bth->bh", _scored(m, a).softmax(-1), b),
        lambda m, a, b: torch.einsum("th,bt->bh", m.table, _scored(m, a).softmax(-1)),
        lambda m, a, b: a.softmax(1).transpose(1, 2) @ m.table,
        lambda m, a, b: a.masked_fill(m.mask, -torch.inf).softmax(1).transpose(1, 2) @ b,
        lambda m, a, b: ((a - 1e9 * m.mask.to(a.dtype)).softmax(1) * b).sum(1),
        lambda m, a, b: (a.softmax(1) * m.c + b).sum(1),
        lambda m, a, b: a[:, :1].softmax(1),
        lambda m, a, b: torch.einsum("btf,btf->bt", a[:, :2].softmax(1), b[:, 2:]),
        lambda m, a, b: (a[:, :2].softmax(1) * b[:, 2:]).sum(2),
    ],
    "scaled_dot_product_attention": [
        lambda m, a, b: _dot_product(a, b, a - b),
        lambda m, a, b: _dot_product(3 * a, b, b, is_causal=True, scale=2.0),
        lambda m, a, b: _dot_product(a[:, None], b[:, None], a[:, None], m.mask[:, [0, 1, 0, 1]])[
            :, 0
        ],
        lambda m, a, b: _dot_product(a, a, b, attn_mask=m.table @ m.table.T),
        lambda m, a, b: _dot_product(m.weight.expand(len(a), 3, F), a, b),
        lambda m, a, b: _dot_product(a, b, m.table.expand(len(a), T, 3)),
    ],
}


def attended(layer, a, b):
    """Self attention, and the shares of the keys."""
    x = a - b if layer.batch_first else (a - b).transpose(0, 1)
    found, shares = layer(x, x, x)
    return found if layer.batch_first else found.transpose(0, 1), shares


def asked(layer, a, b):
    """A query and a mask that do not move, and every head's shares."""
    query = torch.linspace(-2, 1, 2 * F).view(1, 2, F).expand(len(a), 2, F).to(a)
    hidden = torch.tensor([False, False, True, False]).expand(len(a), T)
    return layer(query, a, b, key_padding_mask=hidden, average_attn_weights=False)


def causal(layer, a, b):
    """A mask of keys that each frame does not see."""
    mask = torch.ones(T, T).triu(1).bool()
    return (layer(a, b, b, attn_mask=mask, need_weights=False)[0],)


def attention_layers():
    """See ``layer_rows``."""
    return {
        nn.LogSoftmax: [(lambda layer, a, b: layer(a - b), nn.LogSoftmax(1))],
        nn.Softmax: [
            (lambda layer, a, b: layer(a - b), nn.Softmax(1)),
            (lambda layer, a, b: layer(3 * a), nn.Softmax(-1)),
        ],
        nn.MultiheadAttention: [
            (attended, nn.MultiheadAttention(F, 2, batch_first=True)),
            (attended, nn.MultiheadAttention(F, 1, add_bias_kv=True, add_zero_attn=True)),
            (asked, nn.MultiheadAttention(F, 2, batch_first=True)),
            (asked, nn.MultiheadAttention(F, 2, bias=False, kdim=F, vdim=F, batch_first=True)),
            (causal, nn.MultiheadAttention(F, 1, batch_first=True)),
        ],
    }
