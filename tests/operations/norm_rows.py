"""Rows of normalisations by their functions; see rows.py. Channels are axis 1, as layers have them.

B: batch, T: frames, F: features.
"""

import torch
from torch.nn import functional

from tests.operations.rows import F, T


def channels(a, b):
    """``(B, F, T)``."""
    return (a - b).transpose(1, 2)


def spread(m):
    """Positive statistics, ``(F,)`` each, from what has both signs."""
    return {"running_mean": m.bias[:F].detach(), "running_var": m.c.detach().abs()}


NORM_ROWS = {
    "batch_norm": [
        lambda m, a, b: functional.batch_norm(channels(a, b), **spread(m)),
        lambda m, a, b: functional.batch_norm(
            channels(a, b), *spread(m).values(), m.c, m.bias[:F], m.training, 0.1, 0.5
        ),
        lambda m, a, b: functional.batch_norm(channels(a, b), **spread(m), weight=m.c),
        lambda m, a, b: functional.batch_norm(channels(a, b), **spread(m), bias=m.c),
        lambda m, a, b: functional.batch_norm(
            (a - b).reshape(-1, F), **spread(m), weight=m.c, training=m.training
        ).view(len(a), T, F),
    ],
    "layer_norm": [
        lambda m, a, b: functional.layer_norm(channels(a, b), (T,)),
        lambda m, a, b: functional.layer_norm(channels(a, b), [T], m.k[:, 0], m.table[:, 0], 0.1),
        lambda m, a, b: torch.layer_norm(channels(a, b), (T,), weight=m.k[:, 0], eps=0.2),
        lambda m, a, b: functional.layer_norm(
            channels(a, b).reshape(-1, T), normalized_shape=(T,), bias=m.k[:, 0]
        ).view(len(a), F, T),
    ],
    "rms_norm": [
        lambda m, a, b: functional.rms_norm(channels(a, b), (T,)),
        lambda m, a, b: functional.rms_norm(channels(a, b), [T], weight=m.k[:, 0], eps=0.1),
    ],
    "group_norm": [
        lambda m, a, b: functional.group_norm(channels(a, b), 1),
        lambda m, a, b: functional.group_norm(channels(a, b), F, m.c, m.bias[:F], 0.1),
        lambda m, a, b: functional.group_norm(channels(a, b), 1, bias=m.c),
        lambda m, a, b: torch.group_norm(torch.cat([a[:, 0], b[:, 1]], 1), 2, eps=0.2),
    ],
    "instance_norm": [
        lambda m, a, b: functional.instance_norm(channels(a, b)),
        lambda m, a, b: functional.instance_norm(channels(a, b), weight=m.c, bias=m.bias[:F]),
        lambda m, a, b: functional.instance_norm(
            channels(a, b), *spread(m).values(), m.c, use_input_stats=False, eps=0.1
        ),
    ],
}
