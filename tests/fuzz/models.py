"""The classifier of a draw.

B: batch, T: frames, N: features, H: width of a state, C: classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.fuzz.draws import Draw

VOCABULARY = 7


class HandWritten(nn.Module):
    """A GRU or an LSTM as papers write it."""

    def __init__(self, kind: str, features: int, hidden: int) -> None:
        super().__init__()
        self.kind = kind
        self.of_input = nn.Linear(features, (3 if kind == "gru" else 4) * hidden)
        self.of_state = nn.Linear(hidden, (3 if kind == "gru" else 4) * hidden)

    def forward(self, x, state):
        h, c = state
        if self.kind == "gru":
            (r, z, n), (hr, hz, hn) = self.of_input(x).chunk(3, 1), self.of_state(h).chunk(3, 1)
            z = torch.sigmoid(z + hz)
            return (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + z * h, c
        i, f, g, o = (self.of_input(x) + self.of_state(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class DrawnModel(nn.Module):
    """Front, recurrent layer, pooling, head and end of a draw; ``lengths`` where it packs."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw, size = draw, draw.hidden
        width = size * (2 if draw.both else 1)
        self.linear = nn.Linear(draw.features, draw.features)
        self.norm, self.batch_norm = nn.LayerNorm(draw.features), nn.BatchNorm1d(draw.features)
        self.convolution = nn.Conv1d(draw.features, draw.features, 3, padding=1)
        self.embedding = nn.Embedding(VOCABULARY, draw.features)
        self.rnn = self._recurrent(draw, size)
        if draw.cell == "projected lstm":
            width = max(1, size - 1) * (2 if draw.both else 1)
        self.gate, self.middle = nn.Linear(width, 1), nn.Linear(width, width)
        self.head_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1 if draw.single else draw.classes)
        if draw.over == "encoder":
            self.encoder = nn.TransformerEncoderLayer(width, 1, width + 1, batch_first=True)

    @staticmethod
    def _recurrent(draw: Draw, size: int) -> nn.Module:
        kind, _, way = draw.cell.partition(" ")
        if way == "by hand":
            return HandWritten(kind, draw.features, size)
        if way == "loop":
            kinds = {"tanh": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
            return kinds[kind](draw.features, size)
        options = {"num_layers": draw.layers, "bidirectional": draw.both}
        options["batch_first"] = draw.layout != "time first"
        if draw.cell == "projected lstm":
            return nn.LSTM(draw.features, max(2, size), proj_size=max(1, size - 1), **options)
        if kind in ("gru", "lstm"):
            return {"gru": nn.GRU, "lstm": nn.LSTM}[kind](draw.features, size, **options)
        return nn.RNN(draw.features, size, nonlinearity=kind, **options)

    def _fronted(self, x: Tensor) -> Tensor:
        front, first = self.draw.front, self.draw.layout != "time first"
        if front in ("batch norm", "convolution"):
            layer = self.batch_norm if front == "batch norm" else self.convolution
            order = (0, 2, 1) if first else (1, 2, 0)
            back = (0, 2, 1) if first else (2, 0, 1)
            return layer(x.permute(*order)).permute(*back)
        known = {
            "linear": self.linear, "norm": self.norm, "embedding": self.embedding,
            "tanh": lambda x: torch.tanh(self.linear(x)),
            "gelu": lambda x: functional.gelu(self.linear(x)),
        }  # fmt: skip
        return known[front](x) if front in known else x

    def _read(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """States ``(B, T, H)``, and what reads them."""
        if self.draw.over == "sentences":
            batch, frames, size = x.shape
            return self.rnn(x.reshape(batch * frames, 1, size))[0].reshape(batch, frames, -1)
        h = self._states(x, lengths)
        if self.draw.over == "log softmax":
            return h.log_softmax(1)
        if self.draw.over != "encoder":
            return h
        hidden = None
        if lengths is not None:
            hidden = torch.arange(self.draw.frames, device=h.device) >= lengths[:, None]
        return self.encoder(h, src_key_padding_mask=hidden)

    def _states(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """States ``(B, T, H)``."""
        if self.draw.wrapped:
            x = x if self.draw.layout != "time first" else x.transpose(0, 1)
            return self._loop(x)
        if self.draw.packing in ("packed", "sorted"):
            return self._packed(x, lengths)
        out = self.rnn(x)[0]
        return out if self.draw.layout != "time first" else out.transpose(0, 1)

    def _packed(self, x: Tensor, lengths: Tensor) -> Tensor:
        order = lengths.argsort(descending=True) if self.draw.packing == "sorted" else None
        x, own = (x, lengths) if order is None else (x[order], lengths[order])
        packed = pack_padded_sequence(x, own.cpu(), True, enforce_sorted=order is not None)
        out, _ = pad_packed_sequence(self.rnn(packed)[0], True, total_length=self.draw.frames)
        return out if order is None else out[order.argsort()]

    def _loop(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.size(0), self.draw.hidden)
        c, out = torch.zeros_like(h), []
        for t in range(x.size(1)):
            if isinstance(self.rnn, HandWritten | nn.LSTMCell):
                h, c = self.rnn(x[:, t], (h, c))
            else:
                h = self.rnn(x[:, t], h)
            out.append(h)
        return torch.stack(out, 1)

    def _pooled(self, h: Tensor, lengths: Tensor | None) -> Tensor:
        pooling = self.draw.pooling
        if pooling == "attention":
            return (torch.softmax(self.gate(h), 1) * h).sum(1)
        if lengths is None:
            known = {"last": h[:, -1], "mean": h.mean(1), "max": h.amax(1)}
            return known[pooling] if pooling in known else (torch.sigmoid(self.gate(h)) * h).sum(1)
        there = (torch.arange(self.draw.frames, device=h.device) < lengths[:, None])[..., None]
        if pooling == "last":
            return h[torch.arange(h.size(0), device=h.device), lengths - 1]
        if pooling == "max":
            return h.masked_fill(~there, float("-inf")).amax(1)
        weight = torch.sigmoid(self.gate(h)) if pooling == "gated" else 1 / lengths[:, None, None]
        return (h * there * weight).sum(1)

    def logits(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What comes before the end, ``(B, C)`` or ``(B, 1)``."""
        x = {"channels": lambda: x.permute(0, 2, 1), "image": lambda: x.squeeze(1)}.get(
            self.draw.layout, lambda: x
        )()
        h = self._pooled(self._read(self._fronted(x), lengths), lengths)
        if self.draw.head in ("relu", "silu"):
            h = getattr(functional, self.draw.head)(self.middle(h))
        return self.head(self.head_norm(h) if self.draw.head == "norm" else h)

    def forward(self, x, lengths=None):
        z = self.logits(x, lengths)
        if self.draw.end in ("softmax", "log softmax"):
            return z.softmax(1) if self.draw.end == "softmax" else z.log_softmax(1)
        if self.draw.end == "one logit":
            return z.squeeze(-1)
        if self.draw.end == "sigmoid":
            return torch.sigmoid(z)
        return torch.sigmoid(z).clamp(1e-6, 1 - 1e-6) if self.draw.end == "clipped" else z

    def as_passed(self, x: Tensor) -> Tensor:
        """``(B, T, N)`` in the layout of the draw."""
        turned = {
            "time first": lambda: x.transpose(0, 1), "channels": lambda: x.transpose(1, 2),
            "image": lambda: x[:, None],
        }  # fmt: skip
        return turned.get(self.draw.layout, lambda: x)().contiguous()


def _in_gates(model: DrawnModel, draw: Draw, generator: torch.Generator) -> None:
    """Saturate or kill some units of the recurrent layer."""
    value = {"shut": -60.0, "open": 60.0, "dead": 0.0}[draw.gates]
    for name, weight in model.rnn.named_parameters():
        chosen = torch.rand(weight.shape[:1], generator=generator) < 0.4
        if "bias" in name:
            weight[chosen] = value
        elif draw.gates == "dead":
            weight[chosen] = 0.0


def model_of(draw: Draw) -> DrawnModel:
    """The model with its weights, in eval mode."""
    torch.manual_seed(draw.seed)
    generator = torch.Generator().manual_seed(draw.seed)
    model = DrawnModel(draw)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            own = draw.biases if "bias" in name else draw.weights
            weight.mul_(1 if "norm" in name else 2 * own if own != 1 or "bias" in name else 1.5)
        model.batch_norm.running_mean += 0.1
        model.batch_norm.running_var *= 2
        if draw.gates != "free":
            _in_gates(model, draw, generator)
    return model.to(getattr(torch, draw.dtype)).eval()
