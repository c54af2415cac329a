"""Which words may stand in the place of which, and vectors of words that lie near their synonyms.

A table of synonyms links words. Read through its links, a word's vector is

    (1 - coupling) own  +  coupling (mean over its synonyms and itself of their means)

which is as learned as its own vector, but close to those of its synonyms: what an interval over
synonyms has to hold becomes narrower. A word that training has never seen has none of its own.

V: words, K: words of training, L: links.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

Table = Mapping[str, Sequence[str]]


class Links(NamedTuple):
    """Links between words, each with its share in a mean.

    Attributes:
        ends: ``(2, L)`` tokens, from a word to one that its mean takes in.
        shares: ``(L,)``, of a word's links 1 in all.
        own: ``(V, 1)`` share of a word's own vector.
    """

    ends: Tensor
    shares: Tensor
    own: Tensor


def read_table(file: Path) -> Table:
    """A table of synonyms, ``{word: [others]}``.

    Raises:
        ValueError: another form.
    """
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} must be JSON, {{word: [others]}}: {error}.") from error
    listed = isinstance(table, dict) and all(
        isinstance(others, list) and all(isinstance(other, str) for other in others)
        for others in table.values()
    )
    if not listed:
        raise ValueError(f"{file} must hold {{word: [others]}}, got {type(table).__name__}.")
    return table


def links_of(candidates: Mapping[int, Sequence[int]], words: int, known: int, own: float) -> Links:
    """Links from every word to its candidates, and to itself where training has seen it.

    Args:
        candidates: of every token that has some.
        words: V.
        known: K, the first tokens; the others have no vector of their own.
        own: share of a word's own vector, from 0 to 1.
    """
    ends, shares = [], []
    for word in range(words):
        others = (
            [word, *candidates.get(word, ())] if word < known else candidates.get(word, (word,))
        )
        ends += [(word, other) for other in others]
        shares += [1 / len(others)] * len(others)
    seen = torch.arange(words)[:, None] < known
    return Links(torch.tensor(ends).T, torch.tensor(shares), torch.where(seen, own, 0.0))


class Coupling(nn.Module):
    """Own vectors of words, which train in place of those of an embedding read through links.

    The embedding stays a plain one, so that what is trained is what is certified; the gradient of
    its weight is handed on by the chain rule.

    Args:
        links: of all words.
        vectors: ``(V, D)`` at the start.
    """

    mean: Tensor
    mean_back: Tensor
    own: Tensor

    def __init__(self, links: Links, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors.clone())
        words = len(links.own)
        for name, ends in (("mean", links.ends), ("mean_back", links.ends.flip(0))):
            matrix = torch.sparse_coo_tensor(
                ends, links.shares, (words, words), check_invariants=False
            )
            self.register_buffer(name, matrix.coalesce(), persistent=False)
        self.register_buffer("own", links.own, persistent=False)

    @torch.no_grad()
    def write(self, weight: Tensor, kept: Tensor | float = 1.0) -> None:
        """Read the vectors through their links into the weight of an embedding.

        Args:
            weight: ``(V, D)``, written.
            kept: ``(D,)`` factor of every dimension, 0 where it is dropped out.
        """
        near = self.mean @ (self.mean @ self.vectors)
        weight.copy_(kept * (self.own * self.vectors + (1 - self.own) * near))

    @torch.no_grad()
    def take_gradient(self, weight: Tensor, kept: Tensor | float = 1.0) -> None:
        """Add the gradient that the weight has, as it was written, to that of the vectors."""
        if weight.grad is None:
            return
        slope, weight.grad = kept * weight.grad, None
        found = self.own * slope + self.mean_back @ (self.mean_back @ ((1 - self.own) * slope))
        self.vectors.grad = found if self.vectors.grad is None else self.vectors.grad + found
