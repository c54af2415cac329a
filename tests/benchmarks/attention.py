"""Certified and attacked radii of a BiLSTM with additive attention, on sentences of SST-2.

python tests/benchmarks/attention.py FOLDER

FOLDER holds sst2_train.txt and sst2_dev.txt, of lines ``label words...``. Cross entropy trains a
network and its word vectors; interval bounds train another one on these vectors, which stay, so
that radii have one unit: l_inf in the space of the vectors. Dev sentences of at most 15 words that
the network gets right. One CPU thread; seconds are process time.
"""

import sys
import time
from collections import Counter
from pathlib import Path

import torch
from today import Data, Length, train
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from popqorn_train import bound, certified_radius, empirical_radius
from popqorn_train.objectives import ibp, standard

LONGEST, VECTOR, HIDDEN, SENTENCES = 15, 16, 16, 16
EPOCHS, STEPS, EPSILON = 3, 300, 0.05


class Attentive(nn.Module):
    """Word vectors, a BiLSTM, and a mean of its states with weights from a small network."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(words, VECTOR, padding_idx=0)
        self.rnn = nn.LSTM(VECTOR, HIDDEN, batch_first=True, bidirectional=True)
        self.inner, self.score = nn.Linear(2 * HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1, bias=False)
        self.head = nn.Linear(2 * HIDDEN, 2)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Logits."""
        packed = pack_padded_sequence(self.vectors(words), lengths, True, enforce_sorted=False)
        h, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        scores = self.score(torch.tanh(self.inner(h))).squeeze(-1)
        hidden = torch.arange(h.size(1)) >= lengths[:, None]
        weights = scores.masked_fill(hidden, -torch.inf).softmax(1)
        return self.head((weights.unsqueeze(-1) * h).sum(1))


def read(file: Path) -> list[tuple[int, list[str]]]:
    """Labels and words."""
    lines = (line.split() for line in file.read_text().splitlines())
    return [(int(label), words) for label, *words in lines if 0 < len(words) <= LONGEST]


def numbered(lines: list[tuple[int, list[str]]], known: dict[str, int]) -> list[Tensor]:
    """Words ``(N, T)``, lengths and labels; 0 is padding, 1 a word that is not known."""
    words = torch.zeros(len(lines), LONGEST, dtype=torch.long)
    for row, (_, found) in zip(words, lines, strict=True):
        row[: len(found)] = torch.tensor([known.get(word, 1) for word in found])
    lengths = torch.tensor([len(found) for _, found in lines])
    return [words, lengths, torch.tensor([label for label, _ in lines])]


def learned(train_set: Data) -> Attentive:
    """By cross entropy, the word vectors too."""
    torch.manual_seed(0)
    net, words = bound(Attentive(int(train_set.x[0].max()) + 1)), train_set.x[0]
    train(net, train_set, standard(), Length(EPOCHS * len(words) // 64))
    return net.eval().model


def hardened(net: Attentive, train_set: Data) -> Attentive:
    """Trained by intervals on the same word vectors, which stay; all else anew."""
    torch.manual_seed(0)
    model = bound(Attentive(net.vectors.num_embeddings))
    model.model.vectors = net.vectors.requires_grad_(False)
    train(model, train_set, ibp(EPSILON, kappa=0.5), Length(STEPS))
    return model.eval().model


def report(title: str, net: Attentive, data: Data) -> None:
    """Print its accuracy, and a row for every method."""
    inputs, y = data.test_x, data.test_y
    right = net(*inputs).argmax(1) == y
    words, lengths, y = (part[right][:SENTENCES] for part in (*inputs, y))
    inputs, layer = (words[:, : int(lengths.max())], lengths), bound(net)
    attacked = empirical_radius(layer, inputs, y)
    print(
        f"{title}: dev accuracy {100 * right.float().mean():.1f} %; {len(y)} sentences, "
        f"{lengths.float().mean():.1f} words; attacked {attacked.median():.4f}"
    )
    for method in ("ibp", "crown-ibp", "popqorn-fast", "popqorn"):
        start = time.process_time()
        found = certified_radius(layer, inputs, y, method=method, rtol=1e-2)
        seconds, share = (time.process_time() - start) / len(y), (found / attacked).median()
        at = 100 * (found >= EPSILON).float().mean()
        numbers = f"{found.median():>9.4f}{share:>20.2f}{at:>11.1f}{seconds:>10.3f}"
        print(f"{method:<14}{numbers}", flush=True)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    lines, dev = read(folder / "sst2_train.txt"), read(folder / "sst2_dev.txt")
    counts = Counter(word for _, words in lines for word in words)
    known = {word: at for at, (word, _) in enumerate(counts.most_common(5000), 2)}
    (*x, y), (*test_x, test_y) = numbered(lines, known), numbered(dev, known)
    data = Data(tuple(x), y, tuple(test_x), test_y, EPSILON, {})
    print(f"{len(y)} training sentences; certified: % of those below at {EPSILON}")
    print(f"{'method':<14}{'radius':>9}{'certified/attacked':>20}{'certified':>11}{'s/radius':>10}")
    net = learned(data)
    report("cross entropy", net, data)
    report("ibp", hardened(net, data), data)


if __name__ == "__main__":
    main()
