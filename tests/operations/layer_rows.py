"""One row for every registered layer: layers, and how they are called; see rows.py."""

import torch
from torch import nn

from tests.operations.attention_rows import attention_layers
from tests.operations.rows import F, T

H = 2


def frames(layer, a, b):
    """A layer on features."""
    return layer(a - b)


def pair(layer, a, b):
    """A layer on two tensors."""
    return layer(a, b)


def channels(layer, a, b):
    """A layer on ``(B, F, T)``."""
    return layer((a - b).transpose(1, 2))


def images(layer, a, b):
    """A layer on ``(B, 1, T, F)``."""
    return layer((a - b)[:, None])


def channel_images(layer, a, b):
    """A layer on ``(B, F, 2, 2)``."""
    return layer((a - b).transpose(1, 2).unflatten(2, (2, 2)))


def curved(layer, a, b):
    """An activation where it bends on either side."""
    return layer(3 * a), layer(2 * a - 4 * b)


def outputs(layer, a, b):
    """A recurrent layer, of which the state is read too."""
    out, state = layer(a[:, 1:])
    states = state if isinstance(state, tuple) else (state,)
    return out[:, 0], out[:, -1], *[part.transpose(0, 1) for part in states]


def started(layer, a, b):
    """The state of one call starts another one, over time as axis 0."""
    _, state = layer(a.transpose(0, 1))
    return (layer(b.transpose(0, 1)[:2], state)[0][-1],)


def steps(layer, a, b):
    """A cell, frame by frame."""
    state = None
    for t in range(3):
        state = layer(a[:, t], state)
    return state


def recurrent(kind, *more):
    return [
        (outputs, kind(F, H, batch_first=True)),
        (outputs, kind(F, H, bidirectional=True, batch_first=True)),
        (started, kind(F, H, bias=False)),
        *[(outputs, kind(F, H, batch_first=True, **options)) for options in more],
    ]


def curves(kind, *settings):
    return [(curved, kind(**options)) for options in ({}, *settings)]


def layer_rows():
    """Layer to ``(how it is called, an instance)``, weights of both signs everywhere."""
    rows = {
        nn.RNN: recurrent(nn.RNN, {"nonlinearity": "relu"}),
        nn.LSTM: recurrent(nn.LSTM, {"proj_size": 1}),
        nn.GRU: recurrent(nn.GRU),
        nn.RNNCell: [(steps, nn.RNNCell(F, H)), (steps, nn.RNNCell(F, H, False, "relu"))],
        nn.LSTMCell: [(steps, nn.LSTMCell(F, H)), (steps, nn.LSTMCell(F, H, bias=False))],
        nn.GRUCell: [(steps, nn.GRUCell(F, H)), (steps, nn.GRUCell(F, H, bias=False))],
        nn.Bilinear: [(pair, nn.Bilinear(F, F, 3)), (pair, nn.Bilinear(F, F, 2, bias=False))],
        nn.Linear: [(frames, nn.Linear(F, 3)), (channels, nn.Linear(T, 2, bias=False))],
        nn.Dropout: [(frames, nn.Dropout(0.5))],
        nn.Dropout1d: [(frames, nn.Dropout1d(0.5))],
        nn.Dropout2d: [(lambda layer, a, b: layer(a[:, None]), nn.Dropout2d(0.5))],
        nn.AlphaDropout: [(frames, nn.AlphaDropout(0.5))],
        nn.FeatureAlphaDropout: [(frames, nn.FeatureAlphaDropout(0.5))],
        nn.GLU: [(frames, nn.GLU()), (channels, nn.GLU(1))],
        nn.GroupNorm: [
            (channels, nn.GroupNorm(1, F)),
            (channels, nn.GroupNorm(2, F, affine=False)),
            (lambda layer, a, b: layer(torch.cat([a[:, 0], b[:, 1]], 1)), nn.GroupNorm(2, 2 * F)),
        ],
        nn.InstanceNorm1d: [
            (channels, nn.InstanceNorm1d(F)),
            (channels, nn.InstanceNorm1d(F, affine=True)),
            (channels, nn.InstanceNorm1d(F, affine=True, track_running_stats=True)),
        ],
        nn.ConstantPad1d: [(channels, nn.ConstantPad1d((1, 2), 0.5))],
        nn.ConstantPad2d: [(frames, nn.ConstantPad2d((0, 1, 2, 0), -1.5))],
        nn.ZeroPad1d: [(channels, nn.ZeroPad1d(2))],
        nn.ZeroPad2d: [(frames, nn.ZeroPad2d((1, 0, 0, 1)))],
        nn.ReflectionPad1d: [(channels, nn.ReflectionPad1d((3, 1)))],
        nn.ReplicationPad1d: [(channels, nn.ReplicationPad1d((0, 2)))],
        nn.CircularPad1d: [(channels, nn.CircularPad1d((1, 2)))],
        nn.Identity: [(frames, nn.Identity())],
        nn.Flatten: [(frames, nn.Flatten()), (frames, nn.Flatten(-2, -1))],
        nn.Unflatten: [(frames, nn.Unflatten(1, (2, 2))), (channels, nn.Unflatten(-1, (2, -1)))],
        nn.Conv1d: [
            (channels, nn.Conv1d(F, 3, 2)),
            (channels, nn.Conv1d(F, 4, 3, stride=2, padding=2, dilation=2, groups=2)),
            (channels, nn.Conv1d(F, 2, 3, padding="same", bias=False)),
        ],
        nn.MaxPool1d: [
            (channels, nn.MaxPool1d(2)),
            (channels, nn.MaxPool1d(3, stride=1)),
            (channels, nn.MaxPool1d(2, 3, padding=1, ceil_mode=True)),
        ],
        nn.AdaptiveMaxPool1d: [
            (channels, nn.AdaptiveMaxPool1d(1)),
            (channels, nn.AdaptiveMaxPool1d(T - 1)),
        ],
        nn.AvgPool1d: [
            (channels, nn.AvgPool1d(3, 1)),
            (channels, nn.AvgPool1d(3, 2, padding=1, ceil_mode=True, count_include_pad=False)),
        ],
        nn.AdaptiveAvgPool1d: [
            (channels, nn.AdaptiveAvgPool1d(1)),
            (channels, nn.AdaptiveAvgPool1d(3)),
        ],
        nn.Conv2d: [
            (images, nn.Conv2d(1, 3, 2)),
            (images, nn.Conv2d(1, 2, (3, 1), stride=(2, 1), padding=(1, 0), bias=False)),
            (channel_images, nn.Conv2d(F, F, 3, padding="same", dilation=2, groups=2)),
        ],
        nn.MaxPool2d: [
            (images, nn.MaxPool2d(2)),
            (images, nn.MaxPool2d((2, 1), stride=(1, 1), padding=(1, 0))),
            (images, nn.MaxPool2d((2, 1), dilation=(2, 1))),
            (images, nn.MaxPool2d(3, 2, ceil_mode=True)),
        ],
        nn.AdaptiveMaxPool2d: [
            (images, nn.AdaptiveMaxPool2d(1)),
            (images, nn.AdaptiveMaxPool2d((3, None))),
        ],
        nn.AvgPool2d: [
            (images, nn.AvgPool2d(2)),
            (images, nn.AvgPool2d((3, 1), (2, 1), (1, 0), True, False)),
        ],
        nn.AdaptiveAvgPool2d: [
            (images, nn.AdaptiveAvgPool2d((1, None))),
            (images, nn.AdaptiveAvgPool2d((3, 1))),
        ],
        nn.BatchNorm2d: [(channel_images, nn.BatchNorm2d(F))],
        nn.InstanceNorm2d: [
            (images, nn.InstanceNorm2d(1)),
            (channel_images, nn.InstanceNorm2d(F, affine=True, track_running_stats=True)),
        ],
        nn.BatchNorm1d: [
            (channels, nn.BatchNorm1d(F)),
            (channels, nn.BatchNorm1d(F, affine=False)),
        ],
        nn.LayerNorm: [
            (channels, nn.LayerNorm(T)),
            (channels, nn.LayerNorm(T, elementwise_affine=False)),
            (channels, nn.LayerNorm(T, bias=False)),
        ],
        nn.RMSNorm: [(channels, nn.RMSNorm(T)), (channels, nn.RMSNorm(T, eps=0.1))],
        nn.PReLU: [(curved, nn.PReLU(init=0.3)), (curved, nn.PReLU(init=-0.5))],
        nn.LeakyReLU: curves(nn.LeakyReLU, {"negative_slope": -0.5}),
        nn.Hardtanh: curves(nn.Hardtanh, {"min_val": -0.3, "max_val": 0.2}),
        nn.ELU: curves(nn.ELU, {"alpha": -0.5}),
        nn.CELU: curves(nn.CELU, {"alpha": 2.0}),
        nn.GELU: curves(nn.GELU, {"approximate": "tanh"}),
        nn.Softplus: curves(nn.Softplus, {"beta": 2.0, "threshold": 40.0}),
    }
    plain = (
        nn.Tanh, nn.Sigmoid, nn.ReLU, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
        nn.Softsign, nn.LogSigmoid, nn.Tanhshrink,
    )  # fmt: skip
    return rows | attention_layers() | {kind: curves(kind) for kind in plain}


def spread(layer):
    """Give a normalisation statistics and weights of both signs."""
    if getattr(layer, "running_mean", None) is not None:
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.2, 2)
    if isinstance(layer, nn.MultiheadAttention):
        for weight in layer.parameters():
            nn.init.normal_(weight, std=0.7)
    if isinstance(layer, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
        for weight in layer.parameters():
            nn.init.normal_(weight)
