"""The networks of ``make planted``: recurrent ones, and some that pool by attention.

P: points of a box, T: frames.
"""

import torch
from torch import nn

FRAMES, FEATURES, HIDDEN = 3, 4, 16
WIDE = 32  # hidden units of networks with attention
SHARPER = 2.5  # weights than new ones, so that a function can turn on a short way
FLATTER = 0.2  # the same for the scores of a recurrent network
KINDS = ("rnn", "lstm", "gru", "attention", "pooled rnn")
_CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class Recurrent(nn.Module):
    """One recurrent layer and a linear read-out of its last state."""

    def __init__(self, kind: str, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.rnn, self.head = _CELLS[kind](FEATURES, hidden, batch_first=True), nn.Linear(hidden, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    """Frames pooled by additive attention, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.frame, self.score = nn.Linear(FEATURES, WIDE), nn.Linear(WIDE, 1)
        self.mix, self.head = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, 2)

    def states(self, x):
        """What is pooled."""
        return torch.tanh(self.frame(x))

    def forward(self, x):
        return self.head(torch.tanh(self.mix(pooled(self.score, self.states(x)))))


class Pooled(Recurrent):
    """The same of all states, pooled by attention with scores that start less steep."""

    def __init__(self) -> None:
        super().__init__("rnn", WIDE)
        self.score = nn.Linear(WIDE, 1)
        self.score.weight.data *= FLATTER / SHARPER

    def forward(self, x):
        return self.head(pooled(self.score, self.rnn(x)[0]))


def pooled(score, states):
    """A mean of all states."""
    return (torch.softmax(score(states), 1) * states).sum(1)


class Unrolled(nn.Module):
    """A recurrent network by its formulas, which can be run for many weights at once."""

    def __init__(self, net: Recurrent) -> None:
        super().__init__()
        self.rnn, self.head, self.score = net.rnn, net.head, getattr(net, "score", None)

    def states(self, x):
        """The states after all frames."""
        rnn, states = self.rnn, []
        h = c = x.new_zeros(len(x), rnn.hidden_size)
        for frame in x.unbind(1):
            a = frame @ rnn.weight_ih_l0.mT + rnn.bias_ih_l0
            b = h @ rnn.weight_hh_l0.mT + rnn.bias_hh_l0
            if isinstance(rnn, nn.RNN):
                h = torch.tanh(a + b)
            elif isinstance(rnn, nn.LSTM):
                i, f, g, o = (a + b).chunk(4, -1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            else:
                (r, z, n), (rh, zh, nh) = a.chunk(3, -1), b.chunk(3, -1)
                n = torch.tanh(n + torch.sigmoid(r + rh) * nh)
                z = torch.sigmoid(z + zh)
                h = (1 - z) * n + z * h
            states.append(h)
        return torch.stack(states, 1)

    def forward(self, x):
        states = self.states(x)
        return self.head(states[:, -1] if self.score is None else pooled(self.score, states))


class Shares(nn.Module):
    """The share of each frame ``(P, T)`` in the mean of a network with attention."""

    def __init__(self, net: Attention | Unrolled) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        return torch.softmax(self.net.score(self.net.states(x)), 1).squeeze(2)


def new_net(kind: str) -> nn.Module:
    """A network of this kind, not trained."""
    kinds = {"attention": Attention, "pooled rnn": Pooled}
    return (kinds[kind]() if kind in kinds else Recurrent(kind)).double()
