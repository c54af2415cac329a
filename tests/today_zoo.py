"""Classifiers of today: 2-D front ends, normalised cells, linear recurrences, statistics.

B: batch, T: frames, F: features, H: hidden units, C: classes.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from popqorn_train import bound

F, H, C = 3, 4, 3


class CRNN(nn.Module):
    """Convolutions over an image, whose columns a BiLSTM reads."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d((2, 1)),
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, None)),
        )  # fmt: skip
        self.rnn, self.fc = nn.LSTM(4, H, bidirectional=True), nn.Linear(2 * H, C)

    def forward(self, image):
        columns = self.front(image).squeeze(2).permute(2, 0, 1)
        return self.fc(self.rnn(columns)[0].mean(0))


class ConvLSTM(nn.Module):
    """A cell whose states are images, over the rows of one."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.fc = nn.Conv2d(1 + 2, 4 * 2, 3, padding=1), nn.Linear(2 * 2 * 4, C)

    def forward(self, image):
        h = c = image.new_zeros(len(image), 2, 2, 4)
        for t in range(2):
            x = image[:, :, 2 * t : 2 * t + 2]
            i, f, o, g = torch.chunk(self.gates(torch.cat([x, h], dim=1)), 4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.fc(h.flatten(1))


class SequenceWise(nn.Module):
    """A module on batch and time as one axis, as Deep Speech 2 has it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x):
        t, n = x.size(0), x.size(1)
        return self.module(x.reshape(t * n, -1)).reshape(t, n, -1)


class DeepSpeech2(nn.Module):
    """Convolutions over a spectrogram, a normalised GRU, clipped relus."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(1, 2, (3, 2), stride=(1, 2), padding=(1, 1)), nn.BatchNorm2d(2),
            nn.Hardtanh(0, 20, inplace=True),
        )  # fmt: skip
        self.norm, self.rnn = SequenceWise(nn.BatchNorm1d(8)), nn.GRU(8, H, bidirectional=True)
        self.fc = SequenceWise(nn.Sequential(nn.BatchNorm1d(H), nn.Linear(H, C, bias=False)))

    def forward(self, image):
        x = self.front(image.transpose(2, 3))
        x = x.view(x.size(0), x.size(1) * x.size(2), x.size(3)).permute(2, 0, 1)
        x, _ = self.rnn(self.norm(x))
        x = x.view(x.size(0), x.size(1), 2, -1).sum(2)
        return self.fc(x).mean(0)


class DeepSpeech1d(nn.Module):
    """The same with convolutions over time, and a lookahead."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv1d(F, 4, 3, padding=1), nn.BatchNorm1d(4), nn.Hardtanh(0, 20)
        )
        self.rnn, self.fc = nn.GRU(4, H, batch_first=True), nn.Linear(H, C)
        self.ahead = nn.Conv1d(H, H, 2, groups=H, bias=False)

    def forward(self, x):
        h, _ = self.rnn(self.front(x.transpose(1, 2)).transpose(1, 2))
        h = self.ahead(functional.pad(h.transpose(1, 2), (0, 1))).transpose(1, 2)
        return self.fc(functional.hardtanh(h, 0, 20)).mean(1)


class StatisticsPooling(nn.Module):
    """TDNN layers, an LSTM, mean and standard deviation over time (x-vectors)."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(F, 4, 2, dilation=2), nn.ReLU())
        self.rnn, self.fc = nn.LSTM(4, H, batch_first=True), nn.Linear(2 * H, C)

    def forward(self, x):
        h, _ = self.rnn(self.front(x.transpose(1, 2)).transpose(1, 2))
        return self.fc(torch.cat([h.mean(1), h.std(1)], 1))


class MeanVarianceNormed(nn.Module):
    """Features normalised over time inside the model (CMVN), behind a logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(F, H, batch_first=True), nn.Linear(H, C)

    def forward(self, x):
        x = torch.log(functional.softplus(x) + 1e-3)
        x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-2)
        return self.fc(self.rnn(x)[1][-1])


class MinGRU(nn.Module):
    """A linear recurrence by cumulative sums: values, decayed by the gates after them."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.g, self.fc = nn.Linear(F, H), nn.Linear(F, H), nn.Linear(H, C)

    def forward(self, x):
        gate = self.z(x)
        decay = torch.cumsum(-functional.softplus(gate), dim=1)
        value = torch.sigmoid(gate) * self.g(x)
        return self.fc(torch.exp(decay[:, -1:] - decay).mul(value).sum(1))


class MinLSTMLoop(nn.Module):
    """Gates that read the input alone, normalised by their sum; frame by frame."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.fc = nn.Linear(F, 3 * H), nn.Linear(H, C)

    def forward(self, x):
        f, i, g = self.gates(x).chunk(3, dim=-1)
        f, i = torch.sigmoid(f), torch.sigmoid(i)
        f, i = f / (f + i), i / (f + i)
        h = torch.zeros(x.size(0), H, dtype=x.dtype, device=x.device)
        for t in range(x.size(1)):
            h = f[:, t] * h + i[:, t] * g[:, t]
        return self.fc(h)


class QRNN(nn.Module):
    """Gates by a causal convolution, pooled frame by frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv1d(F, 3 * H, 2), nn.Linear(H, C)

    def forward(self, x):
        z, f, o = self.conv(functional.pad(x.transpose(1, 2), (1, 0))).chunk(3, 1)
        z, f, o = torch.tanh(z), torch.sigmoid(f), torch.sigmoid(o)
        c = torch.zeros_like(z[..., 0])
        for t in range(x.size(1)):
            c = f[..., t] * c + (1 - f[..., t]) * z[..., t]
        return self.fc(o[..., -1] * c)


class ExponentialGate(nn.Module):
    """Exponential gates with a normaliser, as an sLSTM has them."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.fc = nn.Linear(F, 4 * H), nn.Linear(H, 4 * H), nn.Linear(H, C)

    def forward(self, x):
        h = c = torch.zeros(x.size(0), H, dtype=x.dtype, device=x.device)
        n = torch.ones_like(c)
        for t in range(x.size(1)):
            z, i, f, o = (self.x(x[:, t]) + self.h(h)).chunk(4, 1)
            f, i = torch.sigmoid(f), torch.exp(i)
            c, n = f * c + i * torch.tanh(z), f * n + i
            h = torch.sigmoid(o) * (c / n)
        return self.fc(h)


class LayerNormLSTM(nn.Module):
    """Gates and memory normalised (Ba et al., 2016)."""

    norm: type[nn.Module] = nn.LayerNorm

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(F, 4 * H, bias=False), nn.Linear(H, 4 * H)
        self.norms, self.fc = nn.ModuleList(map(self.norm, (4 * H, 4 * H, H))), nn.Linear(H, C)

    def forward(self, x):
        of_x, of_h, of_c = self.norms
        h = c = x.new_zeros(x.size(0), H)
        for t in range(3):
            i, f, g, o = (of_x(self.x(x[:, t])) + of_h(self.h(h))).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(of_c(c))
        return self.fc(h)


class RMSNormLSTM(LayerNormLSTM):
    """The same by root mean squares."""

    norm = nn.RMSNorm


class LRU(nn.Module):
    """A diagonal linear recurrence in complex numbers, as pairs of real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.radius, self.angle = nn.Parameter(torch.rand(H)), nn.Parameter(torch.rand(H))
        self.re, self.im, self.out = nn.Linear(F, H), nn.Linear(F, H), nn.Linear(2 * H, H)
        self.fc = nn.Linear(H, C)

    def forward(self, x):
        size = torch.exp(-torch.exp(self.radius))
        a, b = size * torch.cos(self.angle), size * torch.sin(self.angle)
        re = im = torch.zeros(x.size(0), H, dtype=x.dtype, device=x.device)
        for t in range(x.size(1)):
            re, im = a * re - b * im + self.re(x[:, t]), b * re + a * im + self.im(x[:, t])
        return self.fc(functional.gelu(self.out(torch.cat([re, im], -1))))


class S4D(nn.Module):
    """The same by one product with the matrix of its kernel, which constants give."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.fc = nn.Linear(F, H), nn.Linear(H, C)
        self.decay, self.rate = nn.Parameter(torch.rand(H, 2)), nn.Parameter(torch.randn(H, 2))
        self.weight, self.skip = nn.Parameter(torch.randn(H, 2)), nn.Parameter(torch.randn(H))

    def forward(self, x):
        u, time = self.inner(x), torch.arange(x.size(1), dtype=x.dtype, device=x.device)
        waves = torch.exp(-self.decay.exp()[..., None] * time) * torch.cos(
            self.rate[..., None] * time
        )
        kernel = (self.weight[..., None] * waves).sum(1)
        lag = (time[:, None] - time).long()
        matrix = torch.where(lag >= 0, kernel[:, lag.clamp(min=0)], 0.0)
        y = torch.einsum("hts,bsh->bth", matrix, u) + u * self.skip
        return self.fc(functional.gelu(y).mean(1))


class Cosine(nn.Module):
    """Unit vectors against those of the classes, after a log-sum-exp over time."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.classes = nn.GRU(F, H, batch_first=True), nn.Parameter(torch.randn(C, H))

    def forward(self, x):
        pooled = torch.logsumexp(self.rnn(x)[0], dim=1)
        pooled = functional.normalize(pooled, dim=1)
        return 5 * functional.linear(pooled, functional.normalize(self.classes, dim=1))


IMAGES = CRNN, ConvLSTM, DeepSpeech2
SEQUENCES = (
    DeepSpeech1d, StatisticsPooling, MeanVarianceNormed, MinGRU, MinLSTMLoop, QRNN,
    ExponentialGate, LayerNormLSTM, RMSNormLSTM, LRU, S4D, Cosine,
)  # fmt: skip


def today_zoo(x: torch.Tensor) -> dict[str, tuple[nn.Module, Any]]:
    """Name to ``(model, inputs)``."""
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(len(x), 1, 4, 4, generator=generator, dtype=x.dtype, device=x.device)
    torch.manual_seed(6)
    inputs = dict.fromkeys(IMAGES, image) | dict.fromkeys(SEQUENCES, x)
    found = {kind.__name__: (kind().double().eval(), given) for kind, given in inputs.items()}
    for model, given in found.values():
        _balance(model, given)
    for name, axis in (("CRNN", 3), ("ConvLSTM", 2), ("DeepSpeech2", 2)):  # not told by a layer
        model, given = found[name]
        found[name] = bound(model, frame_axis=axis).eval(), given
    return found


@torch.no_grad()
def _balance(model: nn.Module, inputs: torch.Tensor) -> None:
    """Let no class always win, as random biases would have it."""
    head = getattr(model, "fc", None)
    if isinstance(head, nn.Linear) and head.bias is not None:
        head.bias -= model(inputs).mean(0)
