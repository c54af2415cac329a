"""Small classifiers as people write them, each with inputs in float64.

B: batch, T: frames, F: features, H: hidden units, C: classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.attention_zoo import attention_zoo
from tests.everyday_zoo import everyday_zoo

F64 = torch.float64
B, T, F, H, C = 3, 5, 3, 4, 3


class Model(nn.Module):
    """A recurrent layer and a linear head, for those that need no more."""

    def __init__(self, rnn: nn.Module | None = None, *, size: int = H, classes: int = C) -> None:
        super().__init__()
        self.rnn = rnn if rnn is not None else nn.LSTM(F, H, batch_first=True)
        self.fc = nn.Linear(size, classes)


class SentimentPacked(nn.Module):
    """Tokens, an embedding with padding, a packed LSTM, one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6, padding_idx=0)
        self.lstm = nn.LSTM(6, H, num_layers=2, batch_first=True, dropout=0.3)
        self.fc = nn.Linear(H, 1)

    def forward(self, text, lengths):
        embedded = self.embedding(text)
        packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True)
        _, (hidden, _) = self.lstm(packed)
        return self.fc(hidden[-1]).squeeze(1)


class BiLSTMText(nn.Module):
    """Both last states side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 5, padding_idx=0)
        self.lstm = nn.LSTM(5, H, num_layers=2, bidirectional=True, batch_first=True)
        self.dropout, self.fc = nn.Dropout(0.5), nn.Linear(2 * H, C)

    def forward(self, text, lengths):
        packed = pack_padded_sequence(
            self.dropout(self.embedding(text)),
            lengths.cpu(),
            batch_first=True,
            enforce_sorted=False,
        )
        _, (h_n, _) = self.lstm(packed)
        return self.fc(self.dropout(torch.cat((h_n[-2, :, :], h_n[-1, :, :]), dim=1)))


class BiGRUMasked(Model):
    """Unpacked again, averaged over what is there."""

    def __init__(self) -> None:
        super().__init__(nn.GRU(F, H, bidirectional=True, batch_first=True), size=2 * H)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), True, enforce_sorted=False)
        out, lengths = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.fc(out.sum(1) / lengths.unsqueeze(1).to(out))


class LastValid(Model):
    """No packing, but the last valid step is gathered."""

    def forward(self, x, lengths):
        out, _ = self.rnn(x)
        index = (lengths - 1).view(-1, 1, 1).expand(-1, 1, out.size(2))
        return self.fc(out.gather(1, index).squeeze(1))


class LastByIndex(Model):
    """The same by indexing."""

    def forward(self, x, lengths):
        out, _ = self.rnn(x)
        return self.fc(out[torch.arange(out.size(0), device=out.device), lengths - 1])


class MaskedMean(Model):
    """A mask from lengths, and a mean."""

    def forward(self, x, lengths):
        out, _ = self.rnn(x)
        mask = torch.arange(x.size(1), device=x.device)[None, :] < lengths[:, None]
        mask = mask.unsqueeze(-1).to(out.dtype)
        return self.fc((out * mask).sum(dim=1) / mask.sum(dim=1))


class MaskedMax(Model):
    """Padding is filled with -inf, then the maximum over time."""

    def forward(self, x, lengths):
        out, _ = self.rnn(x)
        padding = torch.arange(x.size(1), device=x.device).unsqueeze(0) >= lengths.unsqueeze(1)
        out = out.masked_fill(padding.unsqueeze(-1), float("-inf"))
        return self.fc(out.max(dim=1)[0])


class TimeMajorPacked(nn.Module):
    """Time first, packed, a learned first state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.fc = nn.GRU(F, H), nn.Linear(H, C)
        self.start = nn.Parameter(torch.randn(1, 1, H))

    def forward(self, x, lengths):
        h0 = self.start.expand(-1, x.size(1), -1).contiguous()
        packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
        out, h_n = self.gru(packed, h0)
        out, _ = pad_packed_sequence(out, total_length=x.size(0))
        return self.fc(h_n[0] + out.sum(0))


class SpeechGRU(nn.Module):
    """A convolution over time before the recurrence, batch norm, max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(F, 6, kernel_size=3, padding=1), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2)
        )
        self.gru = nn.GRU(6, H, batch_first=True, bidirectional=True)
        self.fc = nn.Sequential(nn.Linear(2 * H, 5), nn.LeakyReLU(0.1), nn.Linear(5, C))

    def forward(self, x):
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        out, _ = self.gru(x)
        return self.fc(out.mean(dim=1))


class StackedSensors(nn.Module):
    """Two LSTMs of different width, dropout between, log-softmax at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm1 = nn.LSTM(F, 5, batch_first=True)
        self.lstm2 = nn.LSTM(5, H, batch_first=True)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(H, C)

    def forward(self, x):
        h0 = torch.zeros(1, x.size(0), 5, dtype=x.dtype, device=x.device)
        x, _ = self.lstm1(x, (h0, h0))
        x, (h, _) = self.lstm2(self.drop(x))
        return functional.log_softmax(self.fc(torch.tanh(h.squeeze(0))), dim=1)


class CharRNN(nn.Module):
    """One-hot characters into a vanilla RNN written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.i2h, self.h2o = nn.Linear(F + H, H), nn.Linear(H, C)

    def init_hidden(self, batch):
        return torch.zeros(batch, H, dtype=F64, device=self.h2o.weight.device)

    def forward(self, line):
        hidden = self.init_hidden(line.size(0))
        for character in line.split(1, dim=1):
            hidden = torch.tanh(self.i2h(torch.cat((character.squeeze(1), hidden), 1)))
        return nn.functional.softmax(self.h2o(hidden), dim=-1)


class GRUCellLoop(nn.Module):
    """A cell in a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.GRUCell(F, H), nn.Linear(H, C)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], H)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t, :], h)
        return self.fc(h)


class LSTMCellLoop(nn.Module):
    """Two LSTM cells, frames by unbind, the outputs stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(F, H), nn.LSTMCell(H, H)])
        self.fc = nn.Linear(H, C)

    def forward(self, x):
        states = [None] * len(self.cells)
        outputs = []
        for frame in x.unbind(dim=1):
            for index, cell in enumerate(self.cells):
                states[index] = cell(frame, states[index])
                frame = states[index][0]
            outputs.append(frame)
        return self.fc(torch.stack(outputs, dim=1).mean(1))


class GRUByHand(nn.Module):
    """Gates from linear layers, the blend written out."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.candidate = nn.Linear(F + H, 2 * H), nn.Linear(F + H, H)
        self.fc = nn.Linear(H, C)

    def step(self, x, h):
        r, z = torch.sigmoid(self.gates(torch.cat([x, h], dim=1))).chunk(2, dim=1)
        n = torch.tanh(self.candidate(torch.cat([x, r * h], dim=1)))
        return (1 - z) * n + z * h

    def forward(self, x):
        h = torch.zeros(len(x), H, dtype=x.dtype, device=x.device)
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
        return self.fc(h)


class LSTMByHand(nn.Module):
    """Four gates by matrix products, peephole by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(F, 4 * H) / 2)
        self.u = nn.Parameter(torch.randn(H, 4 * H) / 2)
        self.bias, self.fc = nn.Parameter(torch.zeros(4 * H)), nn.Linear(H, C)
        self.peephole = nn.Parameter(torch.randn(H) / 2)

    def forward(self, x):
        h, c = (torch.zeros(x.size(0), H, dtype=x.dtype, device=x.device) for _ in range(2))
        for t in range(x.size(1)):
            i, f, g, o = torch.split(x[:, t] @ self.w + h @ self.u + self.bias, H, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o + self.peephole * c) * torch.tanh(c)
        return self.fc(h)


class RNNCellDecay(nn.Module):
    """A relu cell, products with constants, a running sum."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.RNNCell(F, H, nonlinearity="relu"), nn.Linear(H, C)
        self.register_buffer("gains", torch.linspace(0.5, 1.0, T))

    def forward(self, x):
        h, total = None, 0
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            total = total + self.gains[t] * h
        return self.fc(total / T)


class Residual(nn.Module):
    """Residual and concatenated skips between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(F, H)
        self.layers = nn.ModuleList([nn.GRU(H, H, batch_first=True) for _ in range(2)])
        self.top, self.fc = nn.LSTM(F + H, H, batch_first=True), nn.Linear(H, C)

    def forward(self, x):
        out = self.project(x)
        for layer in self.layers:
            out = out + layer(out)[0]
        out, _ = self.top(torch.cat([x, out], dim=-1))
        return self.fc(out[:, -1])


class MaxOverTime(Model):
    """A BiGRU and the maximum over time."""

    def __init__(self) -> None:
        super().__init__(nn.GRU(F, H, batch_first=True, bidirectional=True), size=2 * H)

    def forward(self, x):
        values, _ = torch.max(self.rnn(x)[0], dim=1)
        return self.fc(values)


class RCNN(nn.Module):
    """Input and context side by side, tanh, pooled over time."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(F, H, batch_first=True, bidirectional=True)
        self.w, self.fc = nn.Linear(2 * H + F, 5), nn.Linear(5, C)

    def forward(self, x):
        out, _ = self.lstm(x)
        y = torch.tanh(self.w(torch.cat((out, x), 2))).permute(0, 2, 1)
        return self.fc(functional.max_pool1d(y, y.size(2)).squeeze(2))


class MeanMaxPool(Model):
    """Last, mean and maximum side by side."""

    def __init__(self) -> None:
        super().__init__(nn.LSTM(F, H, batch_first=True), size=3 * H)

    def forward(self, x):
        out, (h, _) = self.rnn(x)
        pooled = out.permute(0, 2, 1)
        mean = functional.adaptive_avg_pool1d(pooled, 1).squeeze(-1)
        most = functional.adaptive_max_pool1d(pooled, 1).squeeze(-1)
        return self.fc(torch.cat([h[-1], mean, most], dim=1))


class BinarySigmoid(Model):
    """One logit through a sigmoid."""

    def __init__(self) -> None:
        super().__init__(nn.GRU(F, H, batch_first=True), classes=1)

    def forward(self, x):
        _, h = self.rnn(x)
        return torch.sigmoid(self.fc(h[-1]))


class BinarySqueezed(Model):
    """One logit, squeezed."""

    def __init__(self) -> None:
        super().__init__(nn.RNN(F, H, batch_first=True), classes=1)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1]).squeeze()


class BatchNormHead(nn.Module):
    """An MLP head with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(F, H, 2, batch_first=True)
        self.head = nn.Sequential(
            nn.BatchNorm1d(H), nn.Linear(H, 6), nn.ELU(), nn.Dropout(0.4), nn.Linear(6, C)
        )
        self.head[0].running_mean.uniform_(-0.2, 0.2)
        self.head[0].running_var.uniform_(0.1, 0.4)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1, :])


class NormedLSTM(nn.Module):
    """Layer norm on the input and on the state."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.LayerNorm(F), nn.LayerNorm(H)
        self.lstm, self.fc = nn.LSTM(F, H, batch_first=True), nn.Linear(H, C)

    def forward(self, x):
        out, _ = self.lstm(self.inner(x))
        return self.fc(self.outer(out[:, -1]))


class GatedNorm(nn.Module):
    """A sigmoid times what a layer norm gives."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.norm = nn.RNN(F, H, batch_first=True), nn.LayerNorm(H)
        self.gate, self.fc = nn.Linear(H, H), nn.Linear(H, C)

    def forward(self, x):
        h = self.rnn(x)[1][-1]
        return self.fc(torch.sigmoid(self.gate(h)) * self.norm(h))


class FrontEnd(nn.Module):
    """A linear front end with a smooth activation."""

    def __init__(self, activation: Callable[..., Any]) -> None:
        super().__init__()
        self.front, self.act = nn.Linear(F, 5), activation
        self.rnn, self.fc = nn.GRU(5, H, batch_first=True), nn.Linear(H, C)

    def forward(self, x):
        return self.fc(self.act(self.rnn(self.act(self.front(x)))[1][-1]))


class ImageRows(Model):
    """Images read row by row."""

    def __init__(self) -> None:
        super().__init__(nn.LSTM(4, H, 2, batch_first=True))
        self.register_buffer("mean", torch.tensor(0.13))

    def forward(self, x):
        if x.dim() == 4:
            x = x.view(-1, 4, 4)
        out, _ = self.rnn((x - self.mean) / 0.3)
        return self.fc(out[:, -1])


class ImageColumns(Model):
    """A squeezed image, read column by column, time first."""

    def __init__(self) -> None:
        super().__init__(nn.LSTM(4, H))

    def forward(self, x):
        x = torch.squeeze(x, 1).permute(2, 0, 1)
        assert x.shape[0] == 4
        out, _ = self.rnn(x)
        return self.fc(out[-1])


class StateViewed(Model):
    """States by layer and direction through a view."""

    def __init__(self) -> None:
        super().__init__(nn.GRU(F, H, 2, batch_first=True, bidirectional=True), size=2 * H)

    def forward(self, x):
        _, h = self.rnn(x)
        h = h.view(2, 2, x.size(0), H)[-1]
        return self.fc(torch.cat([h[0], h[1]], dim=-1))


class Projected(Model):
    """An LSTM with a projection."""

    def __init__(self) -> None:
        super().__init__(nn.LSTM(F, 5, 2, proj_size=2, batch_first=True), size=2)

    def forward(self, x):
        return self.fc(self.rnn(x)[0].sum(dim=1))


class WeightNormed(Model):
    """Parametrised weights."""

    def __init__(self) -> None:
        super().__init__(weight_norm(nn.GRU(F, H, batch_first=True), "weight_hh_l0"))
        self.fc = spectral_norm(self.fc)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


class SharedTwice(nn.Module):
    """One layer over the sequence forth and back, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(F, H, batch_first=True), nn.Linear(2 * H, C)
        for weight in self.rnn.parameters():
            weight.requires_grad_(False)

    def forward(self, x):
        forth, back = self.rnn(x)[1][-1], self.rnn(torch.flip(x, [1]))[1][-1]
        return self.fc(torch.hstack((forth, back)))


class EncoderState(nn.Module):
    """The state of one layer starts another one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(F, H, batch_first=True)
        self.decoder, self.fc = nn.LSTM(2, H, batch_first=True), nn.Linear(H, C)
        self.register_buffer("query", torch.randn(1, 3, 2))

    def forward(self, x):
        _, state = self.encoder(x)
        out, _ = self.decoder(self.query.expand(x.size(0), -1, -1), state)
        return self.fc(out[:, -1])


class WithLogits(nn.Module):
    """A wrapper in which a helper method does the work."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(F, 4), nn.Tanh())
        self.rnn = nn.RNN(4, H, 2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(H, 5), nn.ReLU(inplace=True), nn.Linear(5, C))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        out, _ = self.rnn(input=self.backbone(x))
        return out[:, -1]

    def forward(self, x, return_features: bool = False):
        features = self.encode(x)
        return self.head(features)


class ConvNormInPlace(nn.Module):
    """The most common front end, and a gate over time."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(F, 4, 2), nn.BatchNorm1d(4), nn.ReLU(inplace=True))
        self.rnn, self.gate = nn.GRU(4, H, batch_first=True), nn.Linear(H, 1)
        self.fc = nn.Linear(H, C)

    def forward(self, x):
        h, _ = self.rnn(self.front(x.transpose(1, 2)).transpose(1, 2))
        return self.fc((torch.sigmoid(self.gate(h)) * h).sum(1))


class TimeDistributed(nn.Module):
    """Batch and time on one axis for a norm and a layer; split again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(F, 4), nn.BatchNorm1d(4)
        self.rnn, self.fc = nn.RNN(4, H, batch_first=True), nn.Linear(H, C)

    def forward(self, x):
        rows = torch.relu_(self.norm(self.layer(x.contiguous().view(-1, x.size(-1)))))
        h, _ = self.rnn(rows.contiguous().view(x.size(0), -1, rows.size(-1)))
        return self.fc(h[:, -1])


def lengths() -> torch.Tensor:
    return torch.tensor([5, 3, 2])


def tokens() -> torch.Tensor:
    return torch.tensor([[3, 9, 4, 17, 2], [8, 1, 19, 0, 0], [5, 6, 0, 0, 0]])


def zoo() -> dict[str, tuple[nn.Module, Any]]:
    """Name to ``(model, inputs)``."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, T, F, generator=generator, dtype=F64)
    image = torch.rand(B, 1, 4, 4, generator=generator, dtype=F64)
    text, padded = (tokens(), lengths()), (x, lengths())
    mixed = (x, torch.tensor([2, 5, 3]))
    inputs = {
        SentimentPacked: text, BiLSTMText: text, BiGRUMasked: mixed, LastValid: mixed,
        LastByIndex: mixed, MaskedMean: mixed, MaskedMax: padded, ImageRows: image,
        ImageColumns: image, TimeMajorPacked: (x.transpose(0, 1), mixed[1]),
    }  # fmt: skip
    kinds = [
        *inputs, SpeechGRU, StackedSensors, CharRNN, GRUCellLoop, LSTMCellLoop, RNNCellDecay,
        GRUByHand, LSTMByHand, Residual, MaxOverTime, RCNN, MeanMaxPool, BinarySigmoid,
        BinarySqueezed, BatchNormHead,
        NormedLSTM, GatedNorm, StateViewed, Projected, WeightNormed, SharedTwice, EncoderState,
        WithLogits, ConvNormInPlace, TimeDistributed,
    ]  # fmt: skip
    torch.manual_seed(5)
    found = {kind.__name__: (kind().to(F64).eval(), inputs.get(kind, x)) for kind in kinds}
    for activation in (functional.gelu, nn.SiLU(), functional.softplus, nn.Hardtanh()):
        name = getattr(activation, "__name__", type(activation).__name__)
        found[f"FrontEnd-{name}"] = FrontEnd(activation).to(F64).eval(), x
    return found | everyday_zoo(*mixed) | attention_zoo(*mixed)
