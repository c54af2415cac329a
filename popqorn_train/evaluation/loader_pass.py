"""One pass over a loader: what is known is kept, everything else is examined batch by batch."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.errors import BadSamplesError
from popqorn_train.evaluation.batches import Picked, Unpack, grouped, on_device, unpacked
from popqorn_train.evaluation.blocks import Block, Blocks, Shard
from popqorn_train.evaluation.examination import AtBall, Examination
from popqorn_train.evaluation.examiner import Examiner
from popqorn_train.evaluation.progress import Group, Progress
from popqorn_train.evaluation.sample_rows import SampleRow, Status
from popqorn_train.perturbations.box import Box, Perturbation

OnError = Literal["warn", "raise"]
Tell = Callable[[Sequence[SampleRow]], Any]


def check_on_error(on_error: str) -> None:
    """Refuse an unknown way of dealing with errors."""
    if on_error not in ("warn", "raise"):
        raise ValueError(f"`on_error` must be 'warn' or 'raise', got {on_error!r}.")


def check_one_size(ball: Perturbation) -> None:
    """Refuse what is of one batch alone.

    Raises:
        ValueError: its size or its ends differ between samples.
    """
    sizes = ball.ends if isinstance(ball, Box) else (ball.epsilon,)
    axes = 2 if isinstance(ball, Box) else 0  # of frames and features
    if any(isinstance(size, Tensor) and size.ndim > axes for size in sizes):
        raise ValueError(
            "`ball` must have one size for all batches: `epsilon` a float, the ends of a Box "
            "floats or (T, N)."
        )


@dataclass
class LoaderPass:
    """One pass over a loader.

    Attributes:
        model: about which.
        question: what is asked about every sample.
        unpack: from a batch to ``(inputs, target)``.
        on_error: see ``certify_loader``; ``"keep"`` makes rows of all errors.
        samples: how many there are at most.
        until: no further sample is attempted after this time.
        known: rows by position.
        tell: told rows as they come.
        shard: the part of the batches that is examined; None takes all.
        rows: found so far.
    """

    model: BoundModel
    question: Examination | AtBall
    unpack: Unpack
    on_error: OnError | Literal["keep"]
    samples: float
    until: float
    known: Mapping[int, SampleRow]
    tell: Tell | None
    shard: Shard | None = None
    rows: list[SampleRow] = field(default_factory=list)

    def run(self, blocks: Blocks, progress: Progress) -> list[SampleRow]:
        """One row per sample, in the order of the loader, as far as that can be read."""
        try:
            owns = None if self.shard is None else self.shard.owns
            for block in blocks.chosen(owns, self.samples):
                self.rows += self.examined(block, progress)
        except Exception as error:
            if self._raises(self.rows, error):
                raise
            warnings.warn(
                f"`loader` could not be read after {len(self.rows)} samples, the rest is missing: "
                f"{type(error).__name__}: {error}",
                stacklevel=3,
            )
        return self.rows

    def _raises(self, rows: list[SampleRow], error: Exception) -> bool:
        """What fails at once would fail everywhere, but for samples that are bad themselves."""
        if self.on_error != "warn":
            return self.on_error == "raise"
        return not isinstance(error, BadSamplesError) and not any(row.answered for row in rows)

    def examined(self, block: Block, progress: Progress) -> list[SampleRow]:
        """Rows of one batch, by position."""
        found, chunks = self._read(block)
        for picked in chunks:
            found += self._ask(picked, progress)
        return sorted(found, key=lambda row: row.index)

    def _read(self, block: Block) -> tuple[list[SampleRow], list[Picked]]:
        """Rows of a batch that are known, and what is to be certified."""
        inputs, target = unpacked(self.unpack, block.batch)
        device = next((p.device for p in self.model.parameters()), target.device)
        inputs, target = on_device(inputs, device), target.to(device)
        first = block.first
        positions = range(first, first + int(min(len(target), self.samples - first)))
        found = [self.known[at] for at in positions if at in self.known]
        for row in found:
            label = int(target[row.index - first])
            if row.label != label:
                raise ValueError(
                    f"`known` has label {row.label} for sample {row.index}, the loader gives "
                    f"{label}: it is not the same data set in the same order."
                )
        left = torch.tensor([at for at in positions if at not in self.known], dtype=torch.long)
        if not len(left):
            return found, []
        axis = self.model.batch_axis(inputs)
        return found, list(grouped([Picked.of(left, inputs, target, left - first, axis)], axis))

    def _ask(self, picked: Picked, progress: Progress) -> list[SampleRow]:
        if time.monotonic() > self.until:
            samples = zip(picked.positions.tolist(), picked.labels.tolist(), strict=True)
            return [SampleRow(index, label, Status.NOT_ATTEMPTED) for index, label in samples]
        group = Group(progress, len(picked.labels))
        examiner = Examiner(self.question, self.model, group.reach)
        rows = examiner.rows(picked)
        if examiner.failure is not None and self._raises(self.rows + rows, examiner.failure):
            raise examiner.failure
        if self.tell is not None:
            self.tell(rows)
        group.finish()
        return rows
