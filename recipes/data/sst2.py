"""SST-2: is a sentence of a film review favourable? Words may be replaced by their synonyms.

Socher et al., "Recursive deep models for semantic compositionality", EMNLP 2013, whole sentences of
two classes. The table of synonyms is that of Jia et al., "Certified robustness to adversarial word
substitutions", EMNLP 2019: counter-fitted neighbours, here without the filter by a language model.

V: words, D: size of a vector, T: words of a sentence.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Sampler

from popqorn_train.recipes.data.sequences import (
    Loader,
    SequenceData,
    SequenceSet,
    data_folder,
    not_found,
    padded,
)
from popqorn_train.recipes.data.synonyms import Links, Table, links_of, read_table

_PARTS = ("sst2_train.txt", "sst2_dev.txt", "sst2_test.txt")
_TABLE = "synonyms.json"
_PAD, _UNKNOWN, _FIRST = 0, 1, 2
_ROUND = 8  # words that the length of a padded batch is a multiple of
_POOL = 10  # batches whose sentences are sorted by length together


class SST2(SequenceData):
    """6920 sentences to train on, 872 to choose by, 1821 to test.

    The vocabulary is all words of training, and those of the table that have a synonym among
    them. A word's candidates are its first synonyms that training has seen.

    Args:
        path: folder of the four files; None takes ``$POPQORN_DATA`` or ``data``.
        batch_size: of training.
        most: candidates of a word.
        longest: words of a sentence that are read.
        word_dropout: share of the words that are read as unknown while training.
        dimension: of the vectors of words, D.
        coupling: how much of a vector is read from its synonyms, from 0 to 1.
        seed: of the vectors at the start.

    Attributes:
        synonyms: candidates of every token that has some.
        links: between words, for the network.
        vectors: ``(V, D)`` at the start.

    Raises:
        DataNotFoundError: a file is not there.
        ValueError: an argument out of range, or a file of another form.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        batch_size: int = 64,
        most: int = 8,
        longest: int = 40,
        word_dropout: float = 0.1,
        dimension: int = 48,
        coupling: float = 0.6,
        seed: int = 0,
    ) -> None:
        for name, share in (("word_dropout", word_dropout), ("coupling", coupling)):
            if not 0 <= share <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {share}.")
        if most < 1 or longest < 1:
            raise ValueError(f"`most` and `longest` must be at least 1, got {most}, {longest}.")
        files = _find(data_folder(path))
        (sentences, labels), *others = (_read(file) for file in files[:3])
        table = read_table(files[3])
        self.vocabulary, known = _vocabulary(sentences, table)
        self._places = {word: place for place, word in enumerate(self.vocabulary)}
        parts = [
            SequenceSet([self.tokens(words[:longest]) for words in some], torch.tensor(classes))
            for some, classes in ((sentences, labels), *others)
        ]
        super().__init__(*parts, features=dimension, classes=2, batch_size=batch_size)
        self._collate, self._word_dropout = _padded, word_dropout
        self.names, self.words = ("unfavourable", "favourable"), len(self.vocabulary)
        candidates = self.synonyms = self._candidates(table, known, most)
        self.links: Links = links_of(candidates, self.words, known, 1 - coupling)
        generator = torch.Generator().manual_seed(seed)
        self.vectors = 0.3 * torch.randn(self.words, dimension, generator=generator)

    def tokens(self, sentence: list[str]) -> Tensor:
        """``(T,)``; an empty sentence is one unknown word."""
        return torch.tensor([self._places.get(word, _UNKNOWN) for word in sentence] or [_UNKNOWN])

    def train_dataloader(self) -> Loader:
        """Shuffled by the global generator; sentences of about one length come together."""
        lengths = [len(sentence) for sentence in self.train.sequences]  # type: ignore[union-attr]
        batches = _AboutOneLength(lengths, self.batch_size)
        return DataLoader(self.train, batch_sampler=batches, collate_fn=self._dropped_out)

    def _candidates(self, table: Table, known: int, most: int) -> dict[int, list[int]]:
        found = {}
        for token, word in enumerate(self.vocabulary):
            places = [self._places.get(other, known) for other in table.get(word, ())]
            seen = [place for place in dict.fromkeys(places) if place < known and place != token]
            if seen:
                found[token] = seen[:most]
        return found

    def _dropped_out(self, samples: list[tuple[Tensor, Tensor]]) -> Any:
        (tokens, lengths), labels = _padded(samples)
        hidden = (torch.rand(tokens.shape) < self._word_dropout) & (tokens != _PAD)
        return (tokens.masked_fill(hidden, _UNKNOWN), lengths), labels


def _padded(samples: list[tuple[Tensor, Tensor]]) -> Any:
    """As ``padded``, up to one of few lengths: a loss records the network anew for each."""
    (tokens, lengths), labels = padded(samples)
    return (pad(tokens, (0, -tokens.shape[1] % _ROUND), value=_PAD), lengths), labels


class _AboutOneLength(Sampler[list[int]]):
    """Batches of samples of about one length, in an order drawn by the global generator."""

    def __init__(self, lengths: list[int], size: int) -> None:
        self._lengths, self._size = torch.tensor(lengths), size

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._size)

    def __iter__(self) -> Iterator[list[int]]:
        batches: list[Tensor] = []
        for pool in torch.split(torch.randperm(len(self._lengths)), _POOL * self._size):
            rising = pool[self._lengths[pool].argsort(stable=True)]
            batches += torch.split(rising, self._size)
        yield from (batches[at].tolist() for at in torch.randperm(len(batches)).tolist())


def _vocabulary(sentences: list[list[str]], table: Table) -> tuple[tuple[str, ...], int]:
    """All words, those of training first, and how many these are."""
    seen = sorted({word for sentence in sentences for word in sentence})
    known = set(seen)
    linked = [word for word, others in table.items() if known & {*others} and word not in known]
    return ("<pad>", "<unknown>", *seen, *sorted(linked)), _FIRST + len(seen)


def _find(folder: Path) -> list[Path]:
    files = [folder / name for name in (*_PARTS, _TABLE)]
    if not all(file.is_file() for file in files):
        raise not_found("SST-2", ", ".join((*_PARTS, _TABLE)), folder)
    return files


def _read(file: Path) -> tuple[list[list[str]], list[int]]:
    """One sentence a line, ``label word word ...``.

    Raises:
        ValueError: another format.
    """
    sentences, labels = [], []
    # Not splitlines(): it would also split at characters of this encoding.
    lines = file.read_text(encoding="iso-8859-1").rstrip("\n").split("\n")
    for number, line in enumerate(lines, 1):
        label, _, sentence = line.partition(" ")
        if label not in ("0", "1"):
            raise ValueError(
                f"{file}, line {number}: a line must start with 0 or 1, got {label!r}."
            )
        sentences.append(sentence.split())
        labels.append(int(label))
    return sentences, labels
