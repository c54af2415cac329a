"""Rows of the operations that move, pick, repeat or join entries; see rows.py."""

import operator

import torch

from tests.operations.rows import F, T, join


def write(x, index, value):
    x[index] = value
    return x


def joined(a, b):
    """``(B, 2 F)`` behind an activation."""
    return torch.tanh(torch.cat([a[:, 0], b[:, 1]], 1))


MOVE_ROWS = {
    "cat": join(torch.cat),
    "concat": join(torch.concat),
    "concatenate": [
        *join(torch.concatenate),
        lambda m, a, b: torch.concatenate((a, b), axis=2),
    ],
    "stack": [
        lambda m, a, b: torch.stack([a, -b]).transpose(0, 1),
        lambda m, a, b: torch.stack((a, a, b * m.c), dim=-1),
        lambda m, a, b: torch.stack([a[:, 0], m.c.expand(len(a), F), b[:, 1]], 1),
    ],
    "hstack": [
        lambda m, a, b: torch.hstack([a, b, -a]),
        lambda m, a, b: torch.hstack((a[:, 0], m.c.expand(len(a), F))),
    ],
    "column_stack": [lambda m, a, b: torch.column_stack([a, b])],
    "chunk": [
        lambda m, a, b: operator.sub(*[joined(a, b).chunk(n, 1)[-1] for n in (2, 4)]),
        lambda m, a, b: torch.chunk(a, 3, 1)[1],
        lambda m, a, b: operator.sub(*(a * b).chunk(2, dim=-1)),
    ],
    "split": [
        lambda m, a, b: a.split(3, 1)[0],
        lambda m, a, b: torch.split(a - b, [1, 3], dim=-2)[1],
        lambda m, a, b: a.transpose(0, 1).split(2)[1].transpose(0, 1),
    ],
    "unbind": [
        lambda m, a, b: a.unbind(1)[2] - a.unbind(1)[0],
        lambda m, a, b: torch.unbind(b, -1)[1],
        lambda m, a, b: a.transpose(0, 1).unbind()[3],
    ],
    "getitem": [
        lambda m, a, b: a[:, -1],
        lambda m, a, b: a[:, 1::2],
        lambda m, a, b: a[:, m.order, 0],
        lambda m, a, b: (a - b)[..., None, -1],
        lambda m, a, b: a[:, [2, 0, 2]],
        lambda m, a, b: a[:, m.mask],
    ],
    "select": [
        lambda m, a, b: a.select(1, -2),
        lambda m, a, b: torch.select(a - b, dim=-1, index=1),
    ],
    "narrow": [
        lambda m, a, b: a.narrow(1, 1, 2),
        lambda m, a, b: torch.narrow(a - b, dim=-1, start=1, length=1),
        lambda m, a, b: a.narrow(1, -2, 2),
    ],
    "gather": [
        lambda m, a, b: a.gather(1, m.index.expand(len(a), -1, -1)),
        lambda m, a, b: torch.gather(a - b, dim=1, index=m.index.expand(len(a), -1, -1)),
    ],
    "index_select": [
        lambda m, a, b: a.index_select(1, m.order),
        lambda m, a, b: torch.index_select(a - b, dim=-2, index=m.order),
    ],
    "take_along_dim": [
        lambda m, a, b: torch.take_along_dim(a, m.index[None], 1),
        lambda m, a, b: (a - b).take_along_dim(m.index.expand(len(a), -1, -1), dim=-2),
    ],
    "expand": [
        lambda m, a, b: a[:, :1].expand(-1, 3, -1),
        lambda m, a, b: (a - b)[:, None].expand(len(a), 2, T, F),
    ],
    "expand_as": [
        lambda m, a, b: a[:, :1].expand_as(b),
        lambda m, a, b: m.c.expand_as(a) - a,
    ],
    "repeat": [lambda m, a, b: a.repeat(1, 2, 1), lambda m, a, b: (a - b).repeat(1, 1, 3)],
    "repeat_interleave": [
        lambda m, a, b: a.repeat_interleave(2, 1),
        lambda m, a, b: torch.repeat_interleave(a - b, 3, dim=-1),
    ],
    "tile": [lambda m, a, b: a.tile(1, 2, 1), lambda m, a, b: torch.tile(a - b, (2,))],
    "unfold": [
        lambda m, a, b: a.unfold(1, 2, 1),
        lambda m, a, b: (a - b).unfold(dimension=-1, size=2, step=1),
    ],
    "flip": [
        lambda m, a, b: a.flip(1),
        lambda m, a, b: torch.flip(a - b, [-1, 1]),
        lambda m, a, b: torch.flip(a, dims=(2,)) - a,
    ],
    "roll": [
        lambda m, a, b: a.roll(1, 1),
        lambda m, a, b: torch.roll(a - b, (-1, 3), (1, 2)),
        lambda m, a, b: a - torch.roll(a, shifts=-1, dims=-2),
    ],
    "flatten": [lambda m, a, b: a.flatten(1), lambda m, a, b: torch.flatten(a - b, start_dim=-2)],
    "unflatten": [
        lambda m, a, b: a.unflatten(1, (2, -1)),
        lambda m, a, b: torch.unflatten(a - b, -2, (2, 2)),
    ],
    "view": [lambda m, a, b: a.view(len(a), -1), lambda m, a, b: (a - b).view(-1, F, T)],
    "reshape": [
        lambda m, a, b: a.transpose(1, 2).reshape(a.size(0), T, F),
        lambda m, a, b: torch.reshape(a - b, (-1, T * F)),
    ],
    "squeeze": [
        lambda m, a, b: a[:, :1].squeeze(1),
        lambda m, a, b: torch.squeeze(a[..., 1:] - b[..., :1], -1),
        lambda m, a, b: a[:, 2:3].squeeze(),
    ],
    "unsqueeze": [
        lambda m, a, b: a.unsqueeze(-1),
        lambda m, a, b: torch.unsqueeze(a - b, 1),
        lambda m, a, b: a.unsqueeze(0)[0],
    ],
    "transpose": [
        lambda m, a, b: a.transpose(1, 2),
        lambda m, a, b: torch.transpose(a - b, -1, -2),
        lambda m, a, b: (a.transpose(0, 2) - b.transpose(2, 0)).transpose(0, -1),
    ],
    "swapaxes": [lambda m, a, b: a.swapaxes(-1, 1), lambda m, a, b: torch.swapaxes(a - b, 1, 2)],
    "permute": [
        lambda m, a, b: a.permute(0, 2, 1),
        lambda m, a, b: torch.permute(a - b, (2, 0, 1)).permute(1, -1, 0),
    ],
    "movedim": [lambda m, a, b: a.movedim(1, -1), lambda m, a, b: torch.movedim(a - b, (1,), (2,))],
    "moveaxis": [lambda m, a, b: a.moveaxis(-1, 1), lambda m, a, b: torch.moveaxis(a - b, 1, 2)],
    "t": [lambda m, a, b: a[:, 0].t().t(), lambda m, a, b: (torch.t(a[:, 1]) * m.c[:, None]).t()],
    "new_zeros": [lambda m, a, b: a.new_zeros(len(a), T, F) - a],
    "new_ones": [lambda m, a, b: a.new_ones((a.shape[0], T, 1)) - a],
    "new_full": [lambda m, a, b: a.new_full((len(a), T, F), 0.5) - a],
    "full_like": [lambda m, a, b: torch.full_like(a, -0.5) - a],
    "zeros_like": [lambda m, a, b: torch.zeros_like(a) - a],
    "ones_like": [lambda m, a, b: torch.ones_like(a.transpose(0, 1)).transpose(0, 1) - a],
    "written": [
        lambda m, a, b: write(a.clone(), (slice(None), 1), b[:, 0]),
        lambda m, a, b: write(a - b, (slice(None), slice(1, 3)), b[:, :1]),
        lambda m, a, b: write(a - b, (..., 0), 0.5),
        lambda m, a, b: write(a - b, (slice(None), -1), m.c),
        lambda m, a, b: write((a - b).transpose(0, 1).contiguous(), 2, b[:, 0]).transpose(0, 1),
        lambda m, a, b: write(
            a.new_zeros(len(a), T, F), (slice(None), slice(None, None, 2), 1), b[:, :2, 0]
        ),
        lambda m, a, b: write(a.new_ones(len(a), F), slice(None), a[:, 0]),
    ],
}
