"""Models and data that commands name in tests, as ``tests.subjects:name``."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from tests.problems import build, predicted, sequences

NASTY = "<script>alert('x')</script>"
WORDS = ("<pad>", "what", "is", NASTY, "&amp;", "$x_2$", "dog", "?")


class Tokens(nn.Module):
    """Tokens, an embedding, a packed recurrent layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(len(WORDS), 4)
        self.rnn = nn.RNN(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.embedding(tokens), lengths, True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])


def net():
    return build("tanh")


def other_net():
    return build("tanh", seed=1)


def shipped():
    """A network in float32, as most are."""
    return net().float()


def pair():
    x = sequences(12, 4)
    y = predicted(net(), x)
    y[::5] = (y[::5] + 1) % 3  # wrong
    return x, y


def shipped_pair():
    x, y = pair()
    return x.float(), y


def loader():
    return DataLoader(TensorDataset(*pair()), 5)


def shuffled():
    data = TensorDataset(*pair())
    return DataLoader(data, 5, sampler=RandomSampler(data))


def generator():
    yield from loader()


def dataset():
    return TensorDataset(*pair())


class Module:
    """What a Lightning data module offers."""

    def prepare_data(self):
        self.prepared = True

    def setup(self, stage):
        self.stage = stage

    def test_dataloader(self):
        assert self.prepared
        assert self.stage == "test"
        return loader()


def broken():
    raise KeyError("no such file")


def number():
    return 7


def empty():
    return []


def questions():
    tokens = torch.tensor([[1, 2, 3, 6, 7, 0], [1, 2, 4, 5, 0, 0], [6, 5, 4, 3, 2, 1]])
    inputs = tokens, torch.tensor([5, 4, 6])
    with torch.no_grad():
        return inputs, Tokens()(*inputs).argmax(1)


def spelled(tokens):
    return [WORDS[token] for token in tokens]


def too_few(tokens):
    return ["one"]
