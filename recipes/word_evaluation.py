"""Certify and attack a test set of sentences whose words may be replaced by synonyms.

What is proved with all words at once is proved for every budget, so stronger methods are only
asked about the sentences that are left.

S: samples, Q: budgets.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from popqorn_train.certificates.certificate import certify
from popqorn_train.certificates.inputs import as_tuple
from popqorn_train.certificates.word_attack import attack_words
from popqorn_train.evaluation.progress import shown
from popqorn_train.perturbations.substitutions import Substitutions
from popqorn_train.plots import AccuracyCurve
from popqorn_train.recipes.final_evaluation import drawn, seconds_used

Loader = DataLoader[Any]
Synonyms = Mapping[int, Sequence[int]]
_CHUNK = 50  # sentences at once
ALL = "all"


@dataclass(frozen=True)
class WordSettings:
    """How a network is certified and attacked where data name synonyms.

    Attributes:
        budgets: words that may be replaced at once, increasing; all at once are always looked at.
        method: of the certificates for a budget, on sentences that intervals leave undecided.
        samples: how many of the test set ``method`` and the attack see, drawn by the seed 0; None
            takes them all. All are certified with intervals.
        attack_steps: sentences looked at after a start.
        attack_restarts: starts, the clean sentence first.

    Raises:
        ValueError: a number out of range.
    """

    budgets: tuple[int, ...] = (1, 2, 3)
    method: str = "popqorn"
    samples: int | None = None
    attack_steps: int = 10
    attack_restarts: int = 5

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0, *self.budgets), self.budgets, strict=False))
        if not self.budgets or not rising:
            raise ValueError(f"`budgets` must be positive and increasing, got {self.budgets}.")
        for name in ("samples", "attack_steps", "attack_restarts"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"`{name}` must be at least 1, got {count}.")


class WordEvaluation(NamedTuple):
    """Per-sample results of one method on some sentences of a test set.

    Attributes:
        method: that certified.
        positions: ``(S,)`` in the test set.
        right: ``(S,)`` whether the clean prediction is the label.
        budgets: the last one is ``"all"``.
        certified: ``(Q, S)``.
        standing: ``(Q, S)`` whether the attack failed; None where it was not run.
        certify_seconds: spent on certificates.
        attack_seconds: spent on attacks.
    """

    method: str
    positions: Tensor
    right: Tensor
    budgets: tuple[int | str, ...]
    certified: Tensor
    standing: Tensor | None
    certify_seconds: float
    attack_seconds: float = 0.0

    def accuracy(self) -> float:
        """Clean accuracy."""
        return self.right.double().mean().item()

    def curve(self, name: str) -> AccuracyCurve:
        """Both accuracies against the budget, all words at once behind the largest."""
        places = [0.0, *map(float, range(1, len(self.budgets) + 1))]
        proved = [self.accuracy(), *self.certified.double().mean(1).tolist()]
        if self.standing is None:
            return AccuracyCurve(name, places, proved)
        left = [self.accuracy(), *self.standing.double().mean(1).tolist()]
        return AccuracyCurve(name, places, proved, places, left)

    def write_csv(self, path: Path, name: str) -> None:
        """Append one line per sentence."""
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                titles = [f"certified_{budget}" for budget in self.budgets]
                writer.writerow(["model", "method", "index", "right", *titles])
            for at, position in enumerate(self.positions.tolist()):
                proved = self.certified[:, at].tolist()
                writer.writerow([name, self.method, position, bool(self.right[at]), *proved])

    def plain(self) -> dict[str, Any]:
        """Counts and shares as JSON values; lists run along ``budgets``."""
        standing = self.standing
        return {
            "method": self.method,
            "samples": len(self.right),
            "clean_accuracy": self.accuracy(),
            "budgets": list(self.budgets),
            "certified_accuracy": self.certified.double().mean(1).tolist(),
            "attacked_accuracy": None if standing is None else standing.double().mean(1).tolist(),
            "certify_seconds": round(self.certify_seconds, 2),
            "attack_seconds": round(self.attack_seconds, 2),
        }


def evaluate_words(
    net: nn.Module, loader: Loader, synonyms: Synonyms, settings: WordSettings
) -> list[WordEvaluation]:
    """Certify all sentences with intervals, and some by the method within every budget.

    Args:
        net: returns logits.
        loader: the test set in order, batches ``(inputs, labels)``.
        synonyms: candidates of every token that has some.
        settings: see there.

    Returns:
        The evaluation by intervals, then that by the method, with the attack.
    """
    test = _Sentences(net, loader, synonyms, settings)
    every = test.by_length(range(len(loader.dataset)))  # type: ignore[arg-type]
    intervals = test.intervals(every)
    some = drawn(range(len(every)), settings.samples)
    return [intervals, test.attacked(test.within_budgets(intervals, test.by_length(some)))]


@dataclass(frozen=True)
class _Sentences:
    """A network on its test set."""

    net: nn.Module
    loader: Loader
    synonyms: Synonyms
    settings: WordSettings

    @property
    def _device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def _budgets(self) -> tuple[int | None, ...]:
        return (*self.settings.budgets, None)

    def by_length(self, positions: Sequence[int]) -> list[int]:
        """The same positions, short sentences first, so that little is spent on padding."""
        return sorted(positions, key=lambda at: (len(self.loader.dataset[at][0]), at))

    def _batches(self, positions: Sequence[int]) -> Loader:
        part = Subset(self.loader.dataset, positions)
        return DataLoader(part, _CHUNK, collate_fn=self.loader.collate_fn)

    def _proved(self, positions: Sequence[int], budget: int | None, method: str) -> Tensor:
        """Which of the sentences are certified, ``(S,)``."""
        bar, found = shown(f"certifying by {method}", len(positions)), []
        for batch in self._batches(positions) if positions else []:
            inputs, labels = self._moved(batch)
            words = Substitutions(self.synonyms, budget)
            found.append(certify(self.net, inputs, labels, words, method=method).certified.cpu())
            bar.advance(len(labels))
        bar.close()
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool)

    def _moved(self, batch: Any) -> tuple[tuple[Tensor, ...], Tensor]:
        device = self._device
        return tuple(x.to(device) for x in as_tuple(batch[0])), batch[1].to(device)

    @torch.no_grad()
    def _right(self, positions: Sequence[int]) -> Tensor:
        moved = map(self._moved, self._batches(positions))
        return torch.cat([(self.net(*x).argmax(1) == y).cpu() for x, y in moved])

    def intervals(self, positions: Sequence[int]) -> WordEvaluation:
        """All words at once, which holds for every budget."""
        started = seconds_used(self._device)
        proved = self._proved(positions, None, "ibp")
        seconds = seconds_used(self._device) - started
        names: tuple[int | str, ...] = (*self.settings.budgets, ALL)
        right = self._right(positions)
        whole = proved.expand(len(names), -1)
        return WordEvaluation("ibp", torch.tensor(positions), right, names, whole, None, seconds)

    def within_budgets(self, known: WordEvaluation, positions: Sequence[int]) -> WordEvaluation:
        """By the method where intervals leave a sentence undecided, the largest budget first."""
        started, method = seconds_used(self._device), self.settings.method
        places = {position: at for at, position in enumerate(known.positions.tolist())}
        chosen = torch.tensor([places[position] for position in positions])
        right, proved = known.right[chosen], known.certified[-1, chosen]
        rows: list[Tensor] = []
        for budget in reversed(self._budgets):
            left = (right & ~proved).nonzero()[:, 0]
            more = self._proved([positions[at] for at in left.tolist()], budget, method)
            proved = proved.index_put((left,), more)
            rows.insert(0, proved)
        seconds = known.certify_seconds + seconds_used(self._device) - started
        return known._replace(
            method=f"ibp, {method}",
            positions=torch.tensor(positions),
            right=right,
            certified=torch.stack(rows),
            certify_seconds=seconds,
        )

    def attacked(self, found: WordEvaluation) -> WordEvaluation:
        """The same evaluation with its attack."""
        started, settings = seconds_used(self._device), self.settings
        options = {"steps": settings.attack_steps, "restarts": settings.attack_restarts}
        rows = []
        for budget in self._budgets:
            words = Substitutions(self.synonyms, budget)
            moved = map(self._moved, self._batches(found.positions.tolist()))
            margins = [attack_words(self.net, x, y, words, **options).cpu() for x, y in moved]
            rows.append(torch.cat(margins) > 0)
        seconds = seconds_used(self._device) - started
        # A sentence that a smaller budget reaches is one of a larger budget too.
        standing = torch.stack(rows).int().cummin(0).values.bool()
        return found._replace(standing=standing, attack_seconds=seconds)
