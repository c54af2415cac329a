"""Certified and attacked radii of a BiLSTM with additive attention, on sentences of SST-2.

python tests/benchmarks/attention.py FOLDER

FOLDER holds sst2_train.txt and sst2_dev.txt, of lines ``label words...``. The network learns its
word vectors and is trained by cross entropy; radii are l_inf in the space of the vectors, of dev
sentences of at most 15 words that it gets right. One CPU thread; seconds are process time.
"""

import sys
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from popqorn_train import bound, certified_radius, empirical_radius

LONGEST, VECTOR, HIDDEN, EPOCHS, SENTENCES = 15, 16, 16, 3, 32


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


def trained(net: Attentive, train: list[Tensor]) -> Attentive:
    """Cross entropy and Adam."""
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(train[0])).split(64):
            words, lengths, y = (part[chosen] for part in train)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(words, lengths), y).backward()
            optimizer.step()
    return net.eval()


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = Path(sys.argv[1])
    lines, dev = read(folder / "sst2_train.txt"), read(folder / "sst2_dev.txt")
    counts = Counter(word for _, words in lines for word in words)
    known = {word: at for at, (word, _) in enumerate(counts.most_common(5000), 2)}
    net = trained(Attentive(len(known) + 2), numbered(lines, known))
    words, lengths, y = numbered(dev, known)
    right = net(words, lengths).argmax(1) == y
    print(f"{len(lines)} training sentences, dev accuracy {100 * right.float().mean():.1f} %")
    words, lengths, y = (part[right][:SENTENCES] for part in (words, lengths, y))
    inputs, layer = (words[:, : int(lengths.max())], lengths), bound(net)
    attacked = empirical_radius(layer, inputs, y)
    print(
        f"{len(y)} sentences, {lengths.float().mean():.1f} words; attacked {attacked.median():.4f}"
    )
    print(f"{'method':<14}{'radius':>9}{'certified/attacked':>20}{'s/radius':>10}")
    for method in ("ibp", "crown-ibp", "popqorn-fast", "popqorn"):
        start = time.process_time()
        found = certified_radius(layer, inputs, y, method=method, rtol=1e-2)
        seconds = (time.process_time() - start) / len(y)
        share = (found / attacked).median()
        print(f"{method:<14}{found.median():>9.4f}{share:>20.2f}{seconds:>10.3f}", flush=True)


if __name__ == "__main__":
    main()
