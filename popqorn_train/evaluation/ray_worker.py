"""What a worker of Ray does: it opens model and data by name, and examines batches by number.

A worker that dies is started again by Ray, and its batch is given out anew. Who began what is
remembered outside of the workers, so that a sample that kills them is found and left out.
"""

import math
import os
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from popqorn_train.evaluation.batches import unpack_pair, unpacked
from popqorn_train.evaluation.blocks import Block, Blocks
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.loader_pass import LoaderPass, check_one_size
from popqorn_train.evaluation.progress import Silent
from popqorn_train.evaluation.ray_table import table_of
from popqorn_train.evaluation.sample_rows import SampleRow, Status
from popqorn_train.evaluation.subject import Subject

DEATHS = 5  # of workers with one batch, before what is left of it is given up
_STARTS = 3  # of each worker, before any has begun a batch


@dataclass(frozen=True)
class Job:
    """What all workers are told.

    Attributes:
        subject: the model and the data by name.
        question: what is asked about every sample.
        identity: what ``subject`` stood for when the job was made.
        folder: in which names are looked up.
        samples: how many there are at most.
        until: no further sample is attempted after this time of the clock.
    """

    subject: Subject
    question: Examination
    identity: dict[str, Any]
    folder: str
    samples: float = math.inf
    until: float = math.inf

    def __post_init__(self) -> None:
        """Refuse what would be another question in every batch."""
        check_one_size(self.question.ball)


class Attempts:
    """Counts who began what, and keeps rows of single samples; it outlives the workers."""

    def __init__(self) -> None:
        self._begun: Counter[Hashable] = Counter()
        self._rows: dict[int, SampleRow] = {}

    def begin(self, what: Hashable) -> int:
        """Say that something is begun; how often that was so before is returned."""
        self._begun[what] += 1
        return self._begun[what] - 1

    def begin_sample(self, position: int) -> tuple[int, SampleRow | None]:
        """Say that a sample is begun alone; how often before, and its row if there is one."""
        return self.begin(("sample", position)), self._rows.get(position)

    def keep(self, row: SampleRow) -> None:
        """Of a sample that was examined alone."""
        self._rows[row.index] = row

    def count(self, what: Hashable) -> int:
        """How often something was begun."""
        return self._begun[what]


class Worker:
    """Examines batches, in a process that Ray starts.

    Args:
        job: see there.
        attempts: a handle of ``Attempts``.
        workers: how many there are.
    """

    def __init__(self, job: Job, attempts: Any, workers: int) -> None:
        self._job, self._attempts = job, attempts
        self._problem = ""
        try:
            self._open(workers)
        except Exception as error:  # raised by the first batch: Ray would start this again
            self._problem = str(error)

    def _open(self, workers: int) -> None:
        starts, begun = self._tell("begin", "worker"), self._tell("count", "batch")
        if starts >= _STARTS * workers and not begun:
            raise MemoryError(
                "workers die while they load model and data, perhaps for lack of memory: ask for "
                "fewer workers on a machine."
            )
        if os.path.isdir(self._job.folder):
            os.chdir(self._job.folder)
        torch.set_num_threads(1)
        subject = self._job.subject
        self._model = subject.opened_model()
        self._loader = subject.opened_data(self._model)
        axis = self._model.batch_axis(subject.first_inputs(self._model, self._loader))
        here = subject.identity(self._model, self._loader, axis)
        for name, value in self._job.identity.items():
            if here[name] != value:
                raise ValueError(
                    f"a worker found other {name} than the command, {here[name]!r} and {value!r}: "
                    "all machines need the same files."
                )
        self._blocks, self._axis = Blocks(self._loader, unpack_pair), axis

    def _tell(self, method: str, *given: Any) -> Any:
        import ray

        return ray.get(getattr(self._attempts, method).remote(*given))

    def __call__(self, asked: Any) -> Any:
        """A table of rows for a table with one ``block`` and the positions that are ``left``."""
        if self._problem:
            raise ValueError(self._problem)
        [item] = asked.to_pylist()
        return table_of(self.rows(item["block"], item["left"]))

    def rows(self, number: int, left: Sequence[int]) -> list[SampleRow]:
        """Rows of the samples of a batch that are left."""
        self._tell("begin", "batch")
        deaths = self._tell("begin", ("batch", number))
        if deaths >= DEATHS:
            return [_lost(position, None, deaths) for position in left]
        block = self._blocks.at(number, self._job.samples)
        if not deaths:
            return self._examined(block, left)
        return [self._alone(block, position) for position in left]

    def _examined(self, block: Block, left: Sequence[int]) -> list[SampleRow]:
        """Together, as one process does."""
        job, now = self._job, time.monotonic()
        skipped = {
            at: SampleRow(at, int(label), Status.NOT_ATTEMPTED)
            for at, label in enumerate(_labels(block), block.first)
            if at not in left
        }
        until = now + job.until - time.time()
        one = LoaderPass(
            self._model, job.question, unpack_pair, "keep", job.samples, until, skipped, None
        )
        return [row for row in one.examined(block, Silent()) if row.index not in skipped]

    def _alone(self, block: Block, position: int) -> SampleRow:
        """One sample of a batch with which a worker died; it is left out if it kills one alone."""
        begun, row = self._tell("begin_sample", position)
        if row is not None:
            return row
        if begun:
            return _lost(position, _labels(block)[position - block.first], begun + 1)
        [row] = self._examined(block, [position])
        self._tell("keep", row)
        return row


def _lost(position: int, label: int | None, deaths: int) -> SampleRow:
    """The row of a sample with which workers die."""
    error = (
        f"workers died with it {deaths} times, by a crash or for lack of memory: certify it with "
        "a smaller --batch-size, or with more memory for each worker"
    )
    return SampleRow(position, label, Status.ERROR, error=error)


def _labels(block: Block) -> list[int]:
    labels: list[int] = unpacked(unpack_pair, block.batch)[1].tolist()
    return labels
