"""Samples examined in groups: one that fails costs itself alone.

S: samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.search import Decided, Start
from popqorn_train.errors import (
    BadSamplesError,
    BrokenWeightsError,
    ContradictionError,
    MixedSamplesError,
)
from popqorn_train.evaluation.batches import Picked
from popqorn_train.evaluation.examination import AtBall, Examination
from popqorn_train.evaluation.sample_rows import SampleRow, Status

_SPLITS = 16  # groups split after a failure; more would cost more than they save


def _unseen(count: float) -> None:
    """Show no progress."""


@dataclass
class Examiner:
    """Asks a question about samples so that one that fails costs itself alone.

    Attributes:
        question: what is asked.
        model: about which.
        decided: told how many samples of the group in hand are decided.
        failure: the newest error; one of single samples only where there is no other.
    """

    question: Examination | AtBall
    model: BoundModel
    decided: Decided = _unseen
    failure: Exception | None = None
    _splits: int = 0

    def rows(self, picked: Picked, start: Start | None = None) -> list[SampleRow]:
        """Examine samples; a group that raises an error is halved, some times over.

        Args:
            picked: S samples.
            start: where to begin, ``(S,)`` each.
        """
        try:
            return self.question.rows(self.model, picked, start, self.decided)
        except BadSamplesError as error:
            return self._beside(picked, start, error)
        except (MixedSamplesError, ContradictionError, BrokenWeightsError) as error:
            self.failure = error  # a part of them would hide it
            return _failed(picked, error)
        except Exception as error:
            self.failure = error
        if len(picked.labels) == 1 or self._splits == _SPLITS:
            return _failed(picked, self.failure)
        self._splits += 1
        halves = torch.arange(len(picked.labels)).chunk(2)
        return [row for half in halves for row in self._part(picked, start, half)]

    def _part(self, picked: Picked, start: Start | None, chosen: Tensor) -> list[SampleRow]:
        begin = None if start is None else start.of(chosen)
        return self.rows(picked.some(chosen, self.model.batch_axis(picked.inputs)), begin)

    def _beside(
        self, picked: Picked, start: Start | None, error: BadSamplesError
    ) -> list[SampleRow]:
        """Rows of samples that cannot be asked about, and those of the others."""
        self.failure = self.failure or error
        rows, left = [], []
        samples = zip(picked.positions.tolist(), picked.labels.tolist(), strict=True)
        for at, (index, label) in enumerate(samples):
            if at in error.errors:
                text = f"sample {index}: {error.errors[at]}"
                rows.append(SampleRow(index, label, Status.ERROR, error=text))
            else:
                left.append(at)
        return rows + (self._part(picked, start, torch.tensor(left)) if left else [])


def _failed(picked: Picked, error: Exception) -> list[SampleRow]:
    """Rows of samples whose examination raised an error."""
    text = f"{type(error).__name__}: {error}"
    samples = zip(picked.positions.tolist(), picked.labels.tolist(), strict=True)
    return [SampleRow(index, label, Status.ERROR, error=text) for index, label in samples]
