"""Small classifiers with attention over the states of a recurrent layer, as people write them.

B: batch, T: frames, F: features, H: hidden units, C: classes.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

F, H, C = 3, 4, 3


class AdditiveAttention(nn.Module):
    """A packed BiLSTM, scores by a small network, padding masked."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(F, H, batch_first=True, bidirectional=True), nn.Linear(2 * H, C)
        self.inner, self.score = nn.Linear(2 * H, H), nn.Linear(H, 1, bias=False)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        h, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        scores = self.score(torch.tanh(self.inner(h))).squeeze(-1)
        mask = torch.arange(h.size(1), device=h.device) < lengths[:, None]
        weights = functional.softmax(scores.masked_fill(~mask, float("-inf")), dim=1)
        return self.fc((weights.unsqueeze(-1) * h).sum(1))


class DotAttention(nn.Module):
    """The last state asks all states, by ``bmm``."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(F, H), nn.Linear(H, C)

    def forward(self, x):
        out, (last, _) = self.lstm(x.permute(1, 0, 2))
        out = out.permute(1, 0, 2)
        weights = functional.softmax(torch.bmm(out, last[-1].unsqueeze(2)).squeeze(2), 1)
        return self.fc(torch.bmm(out.transpose(1, 2), weights.unsqueeze(2)).squeeze(2))


class QueryPooling(nn.Module):
    """A learned query, padding at -1e9."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(F, H, batch_first=True), nn.Linear(H, C)
        self.query = nn.Parameter(torch.randn(H))

    def forward(self, x, lengths):
        h, _ = self.rnn(x)
        padding = (torch.arange(x.size(1), device=x.device) >= lengths[:, None]).to(x.dtype)
        weights = torch.softmax(h @ self.query - 1e9 * padding, dim=-1)
        return self.fc(torch.einsum("bt,bth->bh", weights, h))


class GatedAttention(nn.Module):
    """Scores by a gated network, as in multiple-instance learning."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(F, H, batch_first=True), nn.Linear(H, C)
        self.v, self.u, self.w = nn.Linear(H, H), nn.Linear(H, H), nn.Linear(H, 1)

    def forward(self, x):
        h, _ = self.rnn(x)
        scores = self.w(torch.tanh(self.v(h)) * torch.sigmoid(self.u(h)))
        return self.fc((scores.transpose(1, 2).softmax(-1) @ h).squeeze(1))


class QueriedHeads(nn.Module):
    """``nn.MultiheadAttention`` with one learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(F, H, batch_first=True), nn.Linear(H, C)
        self.query = nn.Parameter(torch.randn(1, 1, H))
        self.attention = nn.MultiheadAttention(H, 2, batch_first=True)

    def forward(self, x, lengths):
        h, _ = self.rnn(x)
        hidden = torch.arange(x.size(1), device=x.device) >= lengths[:, None]
        query = self.query.expand(x.size(0), -1, -1)
        pooled, _ = self.attention(query, h, h, key_padding_mask=hidden)
        return self.fc(pooled.squeeze(1))


class SelfAttention(nn.Module):
    """All states ask all states, then their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(F, H), nn.Linear(H, C)
        self.attention = nn.MultiheadAttention(H, 2)

    def forward(self, x):
        h, _ = self.rnn(x.transpose(0, 1))
        mixed, _ = self.attention(h, h, h, need_weights=False)
        return self.fc((h + mixed).mean(0))


class HeadsByHand(nn.Module):
    """The same written out, with batch and heads on one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(F, H, batch_first=True), nn.Linear(H, C)
        self.qkv, self.out = nn.Linear(H, 3 * H), nn.Linear(H, H)

    def heads(self, x):
        b, t, h = x.shape
        return x.view(b, t, 2, h // 2).transpose(1, 2).reshape(2 * b, t, h // 2)

    def forward(self, x):
        h, _ = self.rnn(x)
        q, k, v = (self.heads(part) for part in self.qkv(h).chunk(3, -1))
        scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(H // 2)
        mixed = torch.bmm(functional.softmax(scores, -1), v)
        mixed = mixed.view(len(x), 2, x.size(1), H // 2).transpose(1, 2).reshape(h.shape)
        return self.fc(self.out(mixed)[:, -1])


class DotProductLayer(nn.Module):
    """``scaled_dot_product_attention`` over earlier frames."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(F, H, batch_first=True), nn.Linear(H, C)
        self.q, self.k = nn.Linear(H, H), nn.Linear(H, H)

    def forward(self, x):
        h, _ = self.rnn(x)
        q, k, v = (part.unflatten(2, (2, 2)).transpose(1, 2) for part in (self.q(h), self.k(h), h))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.fc(mixed.transpose(1, 2).flatten(2)[:, -1])


class WordModel(nn.Module):
    """torch's word language model as a classifier: time and batch on one axis for the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.decoder = nn.LSTM(F, H, 2), nn.Linear(H, C)

    def forward(self, x):
        out, _ = self.rnn(x.transpose(0, 1))
        decoded = self.decoder(out.view(out.size(0) * out.size(1), out.size(2)))
        return decoded.view(out.size(0), out.size(1), decoded.size(1))[-1]


class ActivityLSTM(nn.Module):
    """A layer on all frames as rows before the LSTM, as for UCI HAR."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.rnn, self.out = nn.Linear(F, H), nn.LSTM(H, H), nn.Linear(H, C)

    def forward(self, x):
        rows = functional.relu(self.hidden(x.permute(1, 0, 2).reshape(-1, x.size(2))))
        out, _ = self.rnn(rows.view(x.size(1), -1, H))
        return self.out(out[-1])


def attention_zoo(x: torch.Tensor, lengths: torch.Tensor) -> dict[str, tuple[nn.Module, Any]]:
    """Name to ``(model, inputs)``."""
    padded = (AdditiveAttention, QueryPooling, QueriedHeads)
    kinds = (
        *padded, DotAttention, GatedAttention, SelfAttention, HeadsByHand, DotProductLayer,
        WordModel, ActivityLSTM,
    )  # fmt: skip
    return {
        kind.__name__: (kind().double().eval(), (x, lengths) if kind in padded else x)
        for kind in kinds
    }
