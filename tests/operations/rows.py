"""One row for every registered operation: what models write with it, on tensors that move.

Every form is a function of the parts below and of two tensors ``a`` and ``b`` of ``(B, T, F)``
that move, each of both signs. The layers are in layer_rows.py.

B: batch, T: frames, F: features.
"""

import operator
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

T, F = 4, 2


class Parts(nn.Module):
    """What does not move: weights of both signs, a mask and indices."""

    def __init__(self):
        super().__init__()
        self.c = nn.Parameter(torch.tensor([1.5, -0.75]))  # (F,)
        self.k = nn.Parameter(torch.tensor([-1.25, 0.5, 2.0, -0.25])[:, None])  # (T, 1)
        self.weight = nn.Parameter(torch.randn(3, F))
        self.kernel = nn.Parameter(torch.randn(3, F, 2))
        self.table = nn.Parameter(torch.randn(T, 3))
        self.bias = nn.Parameter(torch.tensor([0.5, -1.0, 0.25]))
        self.mask = nn.Buffer(torch.tensor([[1, 0], [0, 0], [0, 1], [1, 0]]).bool())
        self.order = nn.Buffer(torch.tensor([3, 0, 0, 1]))
        self.index = nn.Buffer(torch.tensor([[3, 0], [0, 2], [1, 1]]))  # (3, F)


def curve(function, *settings):
    """An activation where it bends on either side, and with other settings."""
    forms = [lambda m, a, b: function(3 * a), lambda m, a, b: function(m.c * a + 2 * b)]
    return [*forms, *[lambda m, a, b, s=s: function(3 * a, **s) for s in settings]]


def join(function):
    """Two that move, side by side."""
    return [
        lambda m, a, b: function((a, -b), 1),
        lambda m, a, b: function([a.transpose(0, 1), -b.transpose(0, 1)]).transpose(0, 1),
        lambda m, a, b: function([a, m.c.expand(len(a), T, F), b], dim=1),
        lambda m, a, b: function([b, torch.tanh(a), a * m.k], dim=-1),
        lambda m, a, b: function([m.k.expand(len(a), T, 1), a], 2),
        lambda m, a, b: function([a.transpose(0, 1), b.transpose(0, 1)], -3).transpose(0, 1),
    ]


def times(function):
    return [
        lambda m, a, b: function(a, b),
        lambda m, a, b: function(a, a),
        lambda m, a, b: function(a, m.c),
        lambda m, a, b: function(m.k, a[:, :, :1] - b[:, :1]),
        lambda m, a, b: function(a, -2.5),
        lambda m, a, b: function(torch.sigmoid(a[:, 0]), torch.tanh(b[:, 0])),
        lambda m, a, b: function(b[:, 0], torch.sigmoid(a[:, 0])),
        lambda m, a, b: function(a.transpose(0, 1), m.c).transpose(0, 1),
    ]


def minus(function):
    return [
        lambda m, a, b: function(a, b),
        lambda m, a, b: function(a, a),
        lambda m, a, b: function(a, b[:, :1]),
        lambda m, a, b: function(a[..., :1], b),
        lambda m, a, b: function(a[:, :1], b[..., :1]),
        lambda m, a, b: function(a, m.c),
        lambda m, a, b: function(m.k, a),
        lambda m, a, b: function(a.transpose(0, 1), b[:, 0]).transpose(0, 1),
    ]


def weighted(function):
    """The same with ``alpha``."""
    return [
        *minus(function),
        lambda m, a, b: function(a, b, alpha=2),
        lambda m, a, b: function(a, b[:, :1], alpha=-1.5),
        lambda m, a, b: function(a, m.c, alpha=-3),
        lambda m, a, b: function(m.c, a, alpha=0.5),
    ]


def reduced(name):
    """Sums and means by all of their signatures."""
    function = getattr(torch, name)
    return [
        lambda m, a, b: function(a, 1),
        lambda m, a, b: function(a, -1, keepdim=True),
        lambda m, a, b: function(a * m.k, (1, 2)),
        lambda m, a, b: function(a - b, dim=[-1], dtype=a.dtype),
        lambda m, a, b: function(torch.tanh(a).transpose(0, 1), 0),
        lambda m, a, b: function(a.permute(1, 2, 0), (0, 1)),
        lambda m, a, b: function(a.permute(1, 2, 0), 0, True).permute(2, 0, 1),
        lambda m, a, b: getattr(a, name)(axis=1),
    ]


def greatest(function):
    return [
        lambda m, a, b: function(a, 1),
        lambda m, a, b: function(a - b, -1, keepdim=True),
        lambda m, a, b: function(a.transpose(0, 1), 0),
        lambda m, a, b: function(a.permute(1, 2, 0), dim=1, keepdim=True).permute(2, 0, 1),
    ]


def packed(m, a, b, padding=0.5):
    packed = pack_padded_sequence(a - b, m.lengths, batch_first=True, enforce_sorted=False)
    options = {"batch_first": True, "padding_value": padding, "total_length": T}
    return pad_packed_sequence(packed, **options)[0]


def on_rows(m, a, b, *, by_name=False, batch_first=True):
    x = a - b if batch_first else (a - b).transpose(0, 1)
    packed = pack_padded_sequence(x, m.lengths, batch_first, enforce_sorted=False)
    data = torch.tanh(m.c * packed.data)
    if by_name:
        packed = packed._replace(data=data)
    else:
        rest = packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        packed = PackedSequence(data, *rest)
    return pad_packed_sequence(packed, batch_first=True, total_length=T)[0]


ROWS = {
    "add": [
        *weighted(torch.add),
        lambda m, a, b: operator.add(1.5, a),
        lambda m, a, b: a.add(b, alpha=-2),
        lambda m, a, b: (a + (~m.mask).log()).amax(1),
    ],
    "sub": [
        *weighted(torch.sub),
        lambda m, a, b: 1 - a,
        lambda m, a, b: torch.sub(a, other=b),
        lambda m, a, b: torch.sub(input=m.c, other=b, alpha=2),
        lambda m, a, b: a - 0.5,
        lambda m, a, b: a.sub(b, alpha=-2),
        lambda m, a, b: m.c.sub(b, alpha=3),
    ],
    "subtract": weighted(torch.subtract),
    "rsub": [
        *weighted(torch.rsub),
        lambda m, a, b: torch.rsub(a, 2.0),
        lambda m, a, b: torch.rsub(a, 2.0, alpha=3),
    ],
    "neg": [lambda m, a, b: -a, lambda m, a, b: torch.neg(b), lambda m, a, b: -(a - b)],
    "clone": [lambda m, a, b: a.clone()],
    "contiguous": [lambda m, a, b: a.transpose(1, 2).contiguous()],
    "detach": [lambda m, a, b: a.detach()],
    "double": [lambda m, a, b: a.double()],
    "dropout": [
        lambda m, a, b: functional.dropout(a, 0.5, m.training),
        lambda m, a, b: functional.dropout(input=a, p=0.2, training=m.training),
    ],
    "float": [lambda m, a, b: a.float()],
    "to": [lambda m, a, b: a.to(torch.float64), lambda m, a, b: a.to(b)],
    "type": [lambda m, a, b: a.type(torch.float64)],
    "type_as": [lambda m, a, b: a.type_as(b)],
    "linear": [
        lambda m, a, b: functional.linear(a, m.weight),
        lambda m, a, b: functional.linear(torch.tanh(a), m.weight, m.bias),
        lambda m, a, b: functional.linear(a.transpose(0, 1), m.weight, bias=m.bias).transpose(0, 1),
    ],
    "tanh": curve(torch.tanh),
    "sigmoid": curve(torch.sigmoid),
    "relu": curve(functional.relu),
    "leaky_relu": curve(functional.leaky_relu, {"negative_slope": 0.4}, {"negative_slope": -0.5}),
    "hardtanh": curve(functional.hardtanh, {"min_val": -0.3, "max_val": 0.2}),
    "clamp": [
        *curve(
            lambda x, min=-0.5, max=0.3: torch.clamp(x, min, max),
            {"min": None},
            {"max": None},
            {"min": torch.tensor(-0.4)},
        ),
        lambda m, a, b: torch.clamp(a, m.k / 9, m.k.abs()),
        lambda m, a, b: a.clamp(min=b),
        lambda m, a, b: a.clamp(max=-b, min=m.c / 9),
    ],
    "clip": curve(lambda x, min=-0.5, max=0.3: x.clip(min=min, max=max), {"max": None}),
    "relu6": curve(lambda x: functional.relu6(4 * x)),
    "hardsigmoid": curve(lambda x: functional.hardsigmoid(2 * x)),
    "abs": curve(torch.abs),
    "elu": curve(functional.elu, {"alpha": 0.5}, {"alpha": -0.5}),
    "celu": curve(functional.celu, {"alpha": 2.0}),
    "selu": curve(functional.selu),
    "gelu": curve(functional.gelu, {"approximate": "tanh"}),
    "silu": curve(functional.silu),
    "mish": curve(functional.mish),
    "hardswish": curve(lambda x: functional.hardswish(2 * x)),
    "softplus": curve(functional.softplus, {"beta": 3.0}, {"beta": 2.0, "threshold": 40.0}),
    "softsign": curve(functional.softsign),
    "log_sigmoid": curve(functional.logsigmoid),
    "tanhshrink": curve(functional.tanhshrink),
    "conv1d": [
        lambda m, a, b: functional.conv1d(a.transpose(1, 2), m.kernel),
        lambda m, a, b: functional.conv1d(
            a.transpose(1, 2) - b.transpose(1, 2), m.kernel, m.bias, stride=2, padding=1
        ),
        lambda m, a, b: functional.conv1d(a.transpose(1, 2), m.kernel[:2, :1], None, 1, 0, 2, 2),
    ],
    "max_pool1d": [
        lambda m, a, b: functional.max_pool1d(a.transpose(1, 2), 2),
        lambda m, a, b: functional.max_pool1d((a - b).transpose(1, 2), 3, stride=1),
        lambda m, a, b: functional.max_pool1d(a.transpose(1, 2), 3, 2, 1, ceil_mode=True),
    ],
    "adaptive_max_pool1d": [
        lambda m, a, b: functional.adaptive_max_pool1d(a.transpose(1, 2), 1),
        lambda m, a, b: functional.adaptive_max_pool1d((a - b).transpose(1, 2), T - 1),
    ],
    "avg_pool1d": [
        lambda m, a, b: functional.avg_pool1d(a.transpose(1, 2), 2),
        lambda m, a, b: functional.avg_pool1d((a - b).transpose(1, 2), 3, 1, padding=1),
        lambda m, a, b: functional.avg_pool1d(
            a.transpose(1, 2), 3, 2, 1, ceil_mode=True, count_include_pad=False
        ),
    ],
    "adaptive_avg_pool1d": [
        lambda m, a, b: functional.adaptive_avg_pool1d(a.transpose(1, 2), 1),
        lambda m, a, b: functional.adaptive_avg_pool1d((a - b).transpose(1, 2), 3),
    ],
    "conv2d": [
        lambda m, a, b: functional.conv2d(a[:, None], m.kernel[:, :1, :, None], m.bias),
        lambda m, a, b: functional.conv2d(
            input=(a - b)[:, None], weight=m.kernel[:, None], stride=(1, 2), padding=1
        ),
    ],
    "max_pool2d": [
        lambda m, a, b: functional.max_pool2d(a[:, None], 2),
        lambda m, a, b: functional.max_pool2d((a - b)[:, None], (3, 1), (1, 1), (1, 0)),
    ],
    "adaptive_max_pool2d": [lambda m, a, b: functional.adaptive_max_pool2d(a[:, None], (1, 2))],
    "avg_pool2d": [
        lambda m, a, b: functional.avg_pool2d(a[:, None], 2),
        lambda m, a, b: functional.avg_pool2d((a - b)[:, None], (3, 1), 1, padding=(1, 0)),
    ],
    "adaptive_avg_pool2d": [
        lambda m, a, b: functional.adaptive_avg_pool2d((a - b)[:, None], (3, None))
    ],
    "sum": reduced("sum"),
    "mean": reduced("mean"),
    "amax": [*greatest(torch.amax), lambda m, a, b: a.amax((1,))],
    "max": [
        *greatest(lambda x, *args, **named: torch.max(x, *args, **named)[0]),
        lambda m, a, b: torch.max(a, b),
        lambda m, a, b: torch.max(m.c / 4, a),
    ],
    "getattr": [
        *greatest(lambda x, *args, **named: torch.max(x, *args, **named).values),
        lambda m, a, b: a.data,
        lambda m, a, b: (a - b).mT,
        lambda m, a, b: a[:, 0].T.transpose(0, 1),
    ],
    "masked_fill": [
        lambda m, a, b: a.masked_fill(m.mask, -2.0),
        lambda m, a, b: torch.masked_fill(a - b, m.mask[:, :1], 0.5),
        lambda m, a, b: a.masked_fill(m.mask, -torch.inf).amax(1),
    ],
    "where": [
        lambda m, a, b: torch.where(m.mask, a, b),
        lambda m, a, b: torch.where(m.mask, a, -a),
        lambda m, a, b: torch.where(m.mask, 0.5, a),
        lambda m, a, b: torch.where(m.mask, a[:, :1], b[..., :1]),
        lambda m, a, b: torch.where(m.mask[:, :1], m.c, a - b),
        lambda m, a, b: torch.where(m.mask, -torch.inf, a).amax(1),
        lambda m, a, b: (-torch.where(m.mask, torch.inf, a)).amax(1),
        lambda m, a, b: a.where(m.mask, b),
        lambda m, a, b: m.k.where(m.mask, b),
        lambda m, a, b: torch.where(m.mask, input=a, other=b),
        lambda m, a, b: torch.where(other=a, input=m.c, condition=m.mask),
    ],
    "pack_lengths": [packed],
    "repack": [on_rows, partial(on_rows, batch_first=False)],
    "_replace": [partial(on_rows, by_name=True)],
    "pad_lengths": [packed, lambda m, a, b: packed(m, a, b, -torch.inf).amax(1)],
}
