"""Models whose forward sorts a batch by length, or mixes its samples, and batches for them."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from popqorn_train import LpBall
from tests.problems import recurrent

HIDDEN, WORDS, TIME = 3, 9, 4
BALL = LpBall(0.15, 2)


class Net(nn.Module):
    """What ``code`` does with a recurrent layer and a head."""

    def __init__(self, code, cell="gru", **options):
        super().__init__()
        options = {"batch_first": True, **options}
        self.rnn = recurrent(cell, 3, HIDDEN, **options)
        self.head = nn.Linear(HIDDEN * (1 + self.rnn.bidirectional), 3)
        self.words, self.start = nn.Embedding(WORDS, 3), nn.Parameter(torch.randn(1, 1, HIDDEN))
        self.one = nn.Linear(HIDDEN, 1)
        self.code = code

    def forward(self, x, lengths):
        return self.code(self, x, lengths)


def build(code, *args, **options):
    torch.manual_seed(0)
    model = Net(code, *args, **options).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    return model


def states(net, x, lengths, **options):
    """The last state of every direction of the last layer, from a packed batch."""
    options = {"batch_first": True, **options}
    _, state = net.rnn(pack_padded_sequence(x, lengths, **options))
    h_n = state[0] if isinstance(state, tuple) else state
    return torch.cat([h_n[-2], h_n[-1]], 1) if net.rnn.bidirectional else h_n[-1]


def outputs(net, x, lengths, **options):
    options = {"batch_first": True, **options}
    out, _ = net.rnn(pack_padded_sequence(x, lengths, **options))
    time = x.shape[1 if options["batch_first"] else 0]
    return pad_packed_sequence(out, options["batch_first"], total_length=time)


def plain(net, x, lengths):
    return net.head(states(net, x, lengths, enforce_sorted=False))


def batch(name="", lengths=(2, 4, 1, 3, 4), seed=0):
    """Inputs of a model, longest anywhere."""
    generator, count = torch.Generator().manual_seed(seed), torch.tensor(lengths)
    if "tokens" in name:
        words = torch.randint(1, WORDS, (len(count), TIME), generator=generator)
        return words * (torch.arange(TIME) < count[:, None]), count
    x = torch.randn(len(count), TIME, 3, generator=generator, dtype=torch.float64)
    swapped = {"time first": (0, 1), "channels": (1, 2)}.get(name)
    return (x.transpose(*swapped).contiguous() if swapped else x), count


def labels(model, inputs):
    output = model(*inputs)
    return output.argmax(1) if output.shape[1] > 1 else (output[:, 0] > 0.5).long()
