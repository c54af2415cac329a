"""More small classifiers as people write them: norms, pruning, packed inputs, several outputs.

B: batch, T: frames, F: features, H: hidden units, C: classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from popqorn_train import bound
from tests.today_zoo import today_zoo

F, H, C = 3, 4, 3


class Pruned(nn.Module):
    """Weights that hooks set to zero before a call."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(F, H, batch_first=True), nn.Linear(H, C)
        prune.l1_unstructured(self.fc, "weight", amount=0.3)
        prune.random_unstructured(self.rnn, "weight_hh_l0", amount=0.5)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


class WeightDropped(nn.Module):
    """DropConnect on the recurrent weight, which forward sets."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(F, H, batch_first=True), nn.Linear(H, C)
        raw = self.rnn._parameters.pop("weight_hh_l0")
        self.rnn.register_parameter("weight_hh_l0_raw", nn.Parameter(raw.detach()))

    def forward(self, x):
        raw = self.rnn.weight_hh_l0_raw
        # A copy: without dropout it would be the parameter itself, which then cannot be replaced.
        self.rnn.weight_hh_l0 = functional.dropout(raw.clone(), 0.5, self.training)
        return self.fc(self.rnn(x)[1][-1])


class GatedPooling(nn.Module):
    """Each frame times a gate of its own, padding left out."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(F, H, batch_first=True), nn.Linear(H, C)
        self.gate = nn.Linear(H, 1)

    def forward(self, x, lengths):
        h, _ = self.rnn(x)
        mask = torch.arange(x.size(1), device=x.device) < lengths[:, None]
        return self.fc((torch.sigmoid(self.gate(h)) * h * mask[..., None]).sum(1))


class GroupNormed(nn.Module):
    """Groups of channels normalised over time, behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(F, 4, 2), nn.GroupNorm(2, 4), nn.ReLU())
        self.rnn, self.fc = nn.RNN(4, H, batch_first=True), nn.Linear(H, C)

    def forward(self, x):
        return self.fc(self.rnn(self.front(x.transpose(1, 2)).transpose(1, 2))[1][-1])


class InstanceNormed(nn.Module):
    """Channels of the states normalised over time; a functional norm at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.norm = nn.LSTM(F, H, batch_first=True), nn.InstanceNorm1d(H, affine=True)
        self.fc = nn.Linear(H, C)

    def forward(self, x):
        h = self.norm(self.rnn(x)[0].transpose(1, 2))
        return self.fc(functional.layer_norm(h.amax(2), (H,)))


class PackedRows(nn.Module):
    """A front end on the rows of a packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.rnn = nn.Linear(F, 4), nn.GRU(4, H, batch_first=True)
        self.fc = nn.Linear(H, C)

    def forward(self, x, lengths):
        p = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        rest = p.batch_sizes, p.sorted_indices, p.unsorted_indices
        p = PackedSequence(torch.tanh(self.front(p.data)), *rest)
        return self.fc(self.rnn(p)[1][-1])


class PackedInput(nn.Module):
    """A packed sequence as it comes from a loader."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(F, H, batch_first=True, bidirectional=True), nn.Linear(2 * H, C)

    def forward(self, p):
        out, _ = pad_packed_sequence(self.rnn(p)[0], batch_first=True)
        return self.fc(out.sum(1))


class CollectedStates(nn.Module):
    """States written into a tensor made beforehand, frame by frame."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.GRUCell(F, H), nn.Linear(H, C)

    def forward(self, x):
        h = x.new_zeros(x.size(0), H)
        out = torch.zeros(x.size(0), x.size(1), H, dtype=x.dtype, device=x.device)
        for t in range(x.size(1)):
            h = self.cell(x[:, t], h)
            out[:, t] = h
        return self.fc(out.amax(1))


@dataclass
class Output:
    """What libraries of language models return."""

    logits: torch.Tensor
    states: torch.Tensor


class SeveralOutputs(nn.Module):
    """Logits and states in a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(F, H, batch_first=True), nn.Linear(H, C)

    def forward(self, x):
        states, h = self.rnn(x)
        return Output(self.fc(h[-1]), states)


def everyday_zoo(x: torch.Tensor, lengths: torch.Tensor) -> dict[str, tuple[nn.Module, Any]]:
    """Name to ``(model, inputs)``."""
    padded, packed = (x, lengths), pack_padded_sequence(x, lengths, True, enforce_sorted=False)
    inputs = {GatedPooling: padded, PackedRows: padded, PackedInput: packed}
    kinds = [
        Pruned, WeightDropped, GroupNormed, InstanceNormed, CollectedStates, SeveralOutputs,
        *inputs,
    ]  # fmt: skip
    found = {kind.__name__: (kind().double().eval(), inputs.get(kind, x)) for kind in kinds}
    model, x = found["SeveralOutputs"]
    several = {"SeveralOutputs": (bound(model, select="logits").eval(), x)}
    return found | several | today_zoo(x)
