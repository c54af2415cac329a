"""Classifiers drawn at random: front, layout, layer, packing, read-out and output."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

FEATURES, FRAMES, HIDDEN = 3, 5, 4
FRONTS = ("none", "linear", "norm", "batch norm", "convolution", "tanh between")
LAYOUTS = ("batch first", "time first", "channels", "image")
LAYERS = ("tanh", "relu", "gru", "lstm", "both directions", "two layers")
PACKING = ("none", "packed", "sorted inside", "masked mean")
READING = ("last", "mean", "max")
OUTPUTS = ("logits", "softmax", "one logit", "sigmoid", "clipped")


def draw(options, generator):
    return options[int(torch.randint(len(options), (), generator=generator))]


class RandomModel(nn.Module):
    """One draw; ``layout`` and ``packing`` say what its forward takes."""

    def __init__(self, generator):
        super().__init__()
        self.layout, self.front = draw(LAYOUTS, generator), draw(FRONTS, generator)
        self.packing = draw(PACKING, generator) if self.layout == "batch first" else "none"
        self.kind, self.reading = draw(LAYERS, generator), draw(READING, generator)
        self.end = draw(OUTPUTS, generator)
        if self.front == "convolution" and self.packing != "none":
            self.front = "linear"  # it reads padding
        first = self.layout != "time first"
        cell = {"lstm": nn.LSTM, "gru": nn.GRU, "two layers": nn.GRU}.get(self.kind, nn.RNN)
        options = {"nonlinearity": self.kind} if self.kind in ("tanh", "relu") else {}
        options |= {"bidirectional": True} if self.kind == "both directions" else {}
        options |= {"num_layers": 2} if self.kind == "two layers" else {}
        self.rnn = cell(FEATURES, HIDDEN, batch_first=first, **options)
        width = 2 * HIDDEN if self.kind == "both directions" else HIDDEN
        self.head = nn.Linear(width, 3 if self.end in ("logits", "softmax") else 1)
        self.linear, self.norm = nn.Linear(FEATURES, FEATURES), nn.LayerNorm(FEATURES)
        self.batch_norm = nn.BatchNorm1d(FEATURES)
        self.convolution = nn.Conv1d(FEATURES, FEATURES, 3, padding=1)
        with torch.no_grad():
            self.batch_norm.running_mean += 0.1
            self.batch_norm.running_var *= 2

    def fronted(self, x):
        if self.front == "linear":
            return torch.tanh(self.linear(x))
        if self.front == "norm":
            return self.norm(x)
        if self.front in ("batch norm", "convolution") and self.layout != "time first":
            layer = self.batch_norm if self.front == "batch norm" else self.convolution
            return layer(x.transpose(1, 2)).transpose(1, 2)
        if self.front == "tanh between":
            return torch.tanh(x.transpose(1, 2)).transpose(1, 2)
        return x

    def states(self, x, lengths):
        """States ``(B, T, H)``, or ``(T, B, H)``, and which frames are there."""
        if self.packing in ("packed", "sorted inside"):
            order = lengths.argsort(descending=True) if self.packing == "sorted inside" else None
            x, own = (x, lengths) if order is None else (x[order], lengths[order])
            packed = pack_padded_sequence(
                x, own.cpu(), batch_first=True, enforce_sorted=order is not None
            )
            out, _ = pad_packed_sequence(self.rnn(packed)[0], True, total_length=FRAMES)
            return out if order is None else out[order.argsort()]
        return self.rnn(x)[0]

    def read(self, out, lengths):
        time = 0 if self.layout == "time first" else 1
        if lengths is not None:
            mask = (torch.arange(FRAMES, device=out.device)[None] < lengths[:, None])[..., None]
            if self.reading == "max":
                return out.masked_fill(~mask, -2.0).amax(1)
            return (out * mask).sum(1) / lengths[:, None]
        if self.reading == "last":
            return out[-1] if time == 0 else out[:, -1]
        return out.mean(time) if self.reading == "mean" else out.amax(time)

    def forward(self, x, lengths=None):
        if self.layout == "channels":
            x = x.permute(0, 2, 1)
        if self.layout == "image":
            x = x.squeeze(1)
        z = self.head(self.read(self.states(self.fronted(x), lengths), lengths))
        if self.end == "softmax":
            return z.softmax(1)
        if self.end == "one logit":
            return z.squeeze(-1)
        if self.end == "sigmoid":
            return torch.sigmoid(z)
        return torch.sigmoid(z).clamp(1e-6, 1 - 1e-6) if self.end == "clipped" else z

    def batch(self, size, generator):
        """Inputs of so many samples, of random lengths."""
        x = torch.randn(size, FRAMES, FEATURES, generator=generator, dtype=torch.float64)
        if self.packing != "none":
            return x, torch.randint(1, FRAMES + 1, (size,), generator=generator)
        shapes = {
            "time first": lambda: x.transpose(0, 1),
            "channels": lambda: x.transpose(1, 2),
            "image": lambda: x[:, None],
        }
        return (shapes.get(self.layout, lambda: x)().contiguous(),)

    def labels(self, inputs):
        """Classes that the model gives."""
        with torch.no_grad():
            output = self(*inputs)
        if self.end in ("logits", "softmax"):
            return output.argmax(1)
        threshold = 0 if self.end == "one logit" else 0.5
        return (output.flatten() > threshold).long()
