"""Rows of products with constants, blends, and the greater of two; see rows.py."""

import torch
from torch.nn import functional

from tests.operations.rows import F, T, greatest, times


def _cube(m):
    """Weights ``(3, F, F)``."""
    return m.weight[..., None] * m.c


PRODUCT_ROWS = {
    "mul": [
        *times(torch.mul),
        lambda m, a, b: -2 * a,
        lambda m, a, b: m.c.mul(a),
        lambda m, a, b: torch.sigmoid(a[..., :1]) * b,
        lambda m, a, b: a[:, :1] * b,
        lambda m, a, b: b[:, 0] * torch.sigmoid(a[:, 0, :1]),
        lambda m, a, b: torch.tanh(b[:, 0]) * torch.sigmoid(a[:, 0, 1:]),
        lambda m, a, b: a[:, :, None] * b[:, :, :, None],
    ],
    "multiply": [*times(torch.multiply), lambda m, a, b: torch.multiply(a[..., :1], b)],
    "matmul": [
        lambda m, a, b: a @ m.weight.T,
        lambda m, a, b: torch.matmul(b, -m.weight.T),
        lambda m, a, b: m.weight @ a.transpose(1, 2),
        lambda m, a, b: torch.matmul(a.transpose(1, 2), m.table.expand(len(a), T, 3)),
        lambda m, a, b: a @ m.c,
        lambda m, a, b: a @ b.transpose(1, 2),
        lambda m, a, b: a[:, None] @ b.unflatten(1, (2, 2)).transpose(2, 3),
        lambda m, a, b: (
            torch.matmul(a.transpose(0, 1)[:, :, None], b.transpose(0, 1)[..., None])[..., 0, 0].T
        ),
    ],
    "mm": [lambda m, a, b: torch.mm(a[:, 1], m.weight.T)],
    "bmm": [
        lambda m, a, b: torch.bmm(a, m.weight.T.expand(len(a), F, 3)),
        lambda m, a, b: m.table.T.expand(len(a), 3, T).bmm(a - b),
        lambda m, a, b: torch.bmm(a.transpose(1, 2), b),
        lambda m, a, b: a.bmm(a.mT),
    ],
    "addmm": [
        lambda m, a, b: torch.addmm(m.bias, a[:, 0], m.weight.T),
        lambda m, a, b: torch.addmm(b[:, 0, :1], a[:, 0], m.weight.T, beta=-2, alpha=0.5),
        lambda m, a, b: a[:, 1].addmm(m.c.expand(len(a), F), m.weight.T[:, :2], beta=3),
    ],
    "baddbmm": [
        lambda m, a, b: torch.baddbmm(m.bias, a, m.weight.T.expand(len(a), F, 3), alpha=-2),
        lambda m, a, b: torch.baddbmm(m.bias[:2], a.mT, b, beta=0.5),
        lambda m, a, b: torch.baddbmm(b, m.table[:, :2].expand(len(a), T, F), b[:, :2], beta=0.5),
    ],
    "einsum": [
        lambda m, a, b: torch.einsum("btf,of->bto", a, m.weight),
        lambda m, a, b: torch.einsum("ot,btf->bof", m.table.T, a - b),
        lambda m, a, b: torch.einsum("btf,to,f->bo", a, m.table, m.c),
        lambda m, a, b: torch.einsum("tbf,t->bf", [a.transpose(0, 1), m.k[:, 0]]),
        lambda m, a, b: torch.einsum("...f->...", a),
        lambda m, a, b: torch.einsum("btf,bsf->bts", a, b),
        lambda m, a, b: torch.einsum("btf,f,bth->bt", a, m.c, b[..., :1]),
        lambda m, a, b: torch.einsum("btf,tb->bf", a, b[..., 0].T),
    ],
    "bilinear": [
        lambda m, a, b: functional.bilinear(a, b, _cube(m), m.bias),
        lambda m, a, b: functional.bilinear(a[:, 0], m.c.expand(len(a), F), _cube(m)),
        lambda m, a, b: functional.bilinear(
            m.table.expand(len(a), T, 3), b, m.table[:, :, None] * m.c
        ),
    ],
    "cumsum": [
        lambda m, a, b: a.cumsum(1),
        lambda m, a, b: torch.cumsum(a - b, dim=-1),
        lambda m, a, b: a.transpose(0, 1).cumsum(0).transpose(0, 1),
    ],
    "diff": [
        lambda m, a, b: a.diff(dim=1),
        lambda m, a, b: torch.diff(a - b),
        lambda m, a, b: torch.diff(a, 2, 1),
    ],
    "maximum": [
        lambda m, a, b: torch.maximum(a, b),
        lambda m, a, b: torch.maximum(a[:, :1], -b),
        lambda m, a, b: torch.maximum(a, m.c / 4),
        lambda m, a, b: torch.maximum(m.k / 4, a - b),
        lambda m, a, b: torch.maximum(a, torch.where(m.mask, -torch.inf, 0.1)),
    ],
    "minimum": [
        lambda m, a, b: torch.minimum(a, b),
        lambda m, a, b: a.minimum(m.c / 4),
        lambda m, a, b: torch.minimum(a, torch.where(m.mask, torch.inf, 0.1)),
    ],
    "clamp_min": [lambda m, a, b: a.clamp_min(-0.2), lambda m, a, b: torch.clamp_min(a, m.c / 4)],
    "clamp_max": [lambda m, a, b: a.clamp_max(0.2), lambda m, a, b: torch.clamp_max(a, max=b)],
    "lerp": [
        lambda m, a, b: torch.lerp(a, b, 0.3),
        lambda m, a, b: a.lerp(b, m.k),
        lambda m, a, b: torch.lerp(m.c, a, 1.5),
        lambda m, a, b: torch.lerp(a, b, weight=torch.sigmoid(a - b)),
        lambda m, a, b: torch.lerp(a, m.c, torch.sigmoid(b)),
        lambda m, a, b: torch.lerp(m.k, m.c, b),
    ],
    "glu": [
        lambda m, a, b: functional.glu(a),
        lambda m, a, b: functional.glu(a - b, 1),
        lambda m, a, b: functional.glu(torch.cat([a[:, 0], b[:, 0]], 1), dim=-1),
    ],
    "pad": [
        lambda m, a, b: functional.pad(a, (1, 2), value=0.5),
        lambda m, a, b: functional.pad(a - b, [0, 0, 2, 1]),
        lambda m, a, b: functional.pad(a.transpose(1, 2), (2, 1), mode="reflect"),
        lambda m, a, b: functional.pad(a.transpose(1, 2), (2, 1), mode="replicate"),
        lambda m, a, b: functional.pad(a.transpose(1, 2), (2, 1), mode="circular"),
        lambda m, a, b: functional.pad(a, (-1, 0, 1, -1)),
    ],
    "min": [
        *greatest(lambda x, *args, **named: torch.min(x, *args, **named)[0]),
        lambda m, a, b: torch.min(a, b),
    ],
    "amin": greatest(torch.amin),
    "alpha_dropout": [lambda m, a, b: functional.alpha_dropout(a, 0.5, m.training)],
    "feature_alpha_dropout": [lambda m, a, b: functional.feature_alpha_dropout(a, 0.5, m.training)],
    "dropout1d": [lambda m, a, b: functional.dropout1d(a, 0.5, m.training)],
    "dropout2d": [lambda m, a, b: functional.dropout2d(a[:, None], 0.5, m.training)],
}
