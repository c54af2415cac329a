"""What the data modules of sentences share: words to tokens, and their vectors.

V: words, D: size of a vector, S: sentences, T: words of a sentence.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popqorn_train.recipes.data.sequences import SequenceData, SequenceSet, hold_out, padded
from popqorn_train.recipes.data.vectors import (
    VectorSettings,
    learn_vectors,
    nearest_neighbour_distance,
)

Sentence = Sequence[str]
# Padding, then what is read for words that training has seen too rarely, by how they look.
_SPECIAL = ("<pad>", "<unknown>", "<Unknown>", "<unknown 1>")
_UNKNOWN, _CAPITAL, _NUMBER = 1, 2, 3


class Vocabulary:
    """Lower-cased words that occur often enough, in alphabetical order.

    Args:
        sentences: to count in.
        at_least: how often a word must occur.
    """

    def __init__(self, sentences: Iterable[Sentence], at_least: int) -> None:
        counts = Counter(word.lower() for sentence in sentences for word in sentence)
        known = sorted(word for word, count in counts.items() if count >= at_least)
        self.words = (*_SPECIAL, *known)
        self._places = {word: place for place, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def tokens(self, sentence: Sentence) -> Tensor:
        """``(T,)``; an empty sentence is one unknown word."""
        return torch.tensor([self._place(word) for word in sentence] or [_UNKNOWN])

    def sentence(self, tokens: Tensor) -> list[str]:
        """The words of tokens ``(T,)``, without padding."""
        return [self.words[token] for token in tokens.tolist() if token]

    def _place(self, word: str) -> int:
        if any(letter.isdigit() for letter in word):
            unknown = _NUMBER
        else:
            unknown = _CAPITAL if word[:1].isupper() else _UNKNOWN
        return self._places.get(word.lower(), unknown)


class TextData(SequenceData):
    """Labelled sentences; words that training has seen often enough are the vocabulary.

    Args:
        known: sentences to train on and to hold some out of.
        labels: of these, ``(S,)``.
        test: sentences to test.
        test_labels: of these.
        names: of the classes.
        batch_size: of training.
        validation: sentences held out.
        at_least: how often a word must occur in training to be known.
        word_dropout: share of the words that are read as unknown while training.
        vectors: how word vectors are learned.
        vectors_file: where they are kept; None learns them every time.
        seed: of the sentences held out.

    Attributes:
        vocabulary: the words.
        vectors: ``(V, D)`` of norm 1, once ``setup`` was called.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        known: Sequence[Sentence],
        labels: Tensor,
        test: Sequence[Sentence],
        test_labels: Tensor,
        *,
        names: tuple[str, ...],
        batch_size: int,
        validation: int,
        at_least: int,
        word_dropout: float,
        vectors: VectorSettings,
        vectors_file: str | Path | None,
        seed: int,
    ) -> None:
        if not 0 <= word_dropout < 1:
            raise ValueError(f"`word_dropout` must lie in [0, 1), got {word_dropout}.")
        train, held = hold_out(len(labels), validation, seed)
        self.vocabulary = Vocabulary((known[i] for i in train.tolist()), at_least)
        every = SequenceSet([self.vocabulary.tokens(words) for words in known], labels)
        tested = SequenceSet([self.vocabulary.tokens(words) for words in test], test_labels)
        super().__init__(
            every.some(train),
            every.some(held),
            tested,
            features=vectors.dimension,
            classes=len(names),
            batch_size=batch_size,
            collate=padded,
        )
        self.names, self.words = names, len(self.vocabulary)
        self.vectors: Tensor | None = None
        self._word_dropout, self._collate_training = word_dropout, self._dropped_out
        self._settings, self._file = vectors, None if vectors_file is None else Path(vectors_file)

    def setup(self, stage: str) -> None:
        """Read the word vectors, or learn them."""
        if self.vectors is not None:
            return
        self.vectors = self._kept()
        if self.vectors is None:
            loader = self.train_dataloader()
            self.vectors = learn_vectors(loader, len(self.vocabulary), self.classes, self._settings)
            self._keep(self.vectors)

    def nearest_neighbour_distance(self) -> float:
        """Median over the known words of the l2 distance to the nearest other one.

        Raises:
            RuntimeError: before ``setup``.
        """
        if self.vectors is None:
            raise RuntimeError("call setup('fit') first: word vectors are not there yet.")
        return nearest_neighbour_distance(self.vectors[len(_SPECIAL) :])

    def _dropped_out(self, samples: list[tuple[Tensor, Tensor]]) -> Any:
        (tokens, lengths), labels = padded(samples)
        hidden = (torch.rand(tokens.shape) < self._word_dropout) & (tokens > 0)
        return (tokens.masked_fill(hidden, _UNKNOWN), lengths), labels

    def _origin(self) -> dict[str, Any]:
        """What vectors depend on, as plain values."""
        samples = [
            (sentence.tolist(), int(label))
            for sentence, label in (self.train[i] for i in range(len(self.train)))
        ]
        read = repr((self.vocabulary.words, samples, self._word_dropout, self.batch_size))
        return {**asdict(self._settings), "data": hashlib.sha256(read.encode()).hexdigest()}

    def _kept(self) -> Tensor | None:
        """Vectors of the file, if they are those that would be learned."""
        if self._file is None or not self._file.is_file():
            return None
        kept = torch.load(self._file, weights_only=True)
        return kept["vectors"] if kept["origin"] == self._origin() else None

    def _keep(self, vectors: Tensor) -> None:
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"origin": self._origin(), "vectors": vectors}, self._file)
