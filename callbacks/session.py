"""One pass over a validation set in which the wanted samples are set aside and certified."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from popqorn_train.callbacks.isolation import isolated_random
from popqorn_train.callbacks.reading_order import Order, check_count
from popqorn_train.certificates.bound_model import BoundModel, bound
from popqorn_train.errors import BadSamplesError, UnsupportedModelError
from popqorn_train.evaluation.batches import Picked, Unpack, unpacked
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.examiner import Examiner
from popqorn_train.evaluation.progress import Progress
from popqorn_train.evaluation.provenance import fingerprint
from popqorn_train.evaluation.sample_rows import SampleRow, Status
from popqorn_train.evaluation.set_aside import examined
from popqorn_train.evaluation.worker import Job

_TRIED = 32  # samples of the pre-flight; fewer at once cost more each


@dataclass
class Session:
    """What one process does; an error costs the samples that it is about, and no training.

    Attributes:
        order: how it reads the data; None where that could not be found out.
        wanted: indices that all processes certify together.
        unpack: from a batch to ``(inputs, target)``.
        question: what is asked about every sample.
        part: which part of the subset they are; None for all of it.
        seconds: spent so far.
        rows: of the samples that this process has certified.
        weights: fingerprint of what was certified.
        moved: name of the tensor that moves; None where nothing was certified.
        problem: what kept samples from being certified in another process.
        picked: samples that were set aside.
    """

    order: Order | None
    wanted: Sequence[int]
    unpack: Unpack
    question: Examination
    part: int | None = None
    seconds: float = 0.0
    rows: list[SampleRow] = field(default_factory=list)
    weights: str = ""
    moved: str | None = None
    problem: str = ""
    picked: list[Picked] = field(default_factory=list)
    _failure: Exception | None = None

    def __post_init__(self) -> None:
        wanted = set(self.wanted)
        self._own = wanted if self.order is None else wanted.intersection(self.order.own)
        self._left = set(self._own)  # still to come

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep the first error for ``close``, and count the seconds."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._failure = self._failure or error
        finally:
            self.seconds += time.perf_counter() - started

    def collect(self, model: nn.Module, root: nn.Module, batch: Any, number: int) -> None:
        """Set the wanted samples of a batch aside.

        Args:
            model: gives the logits.
            root: logs nothing meanwhile.
            batch: as the module has seen it.
            number: of the batch.

        Raises:
            ValueError, TypeError, UnsupportedModelError: a batch or a model that cannot be read.
        """
        if self.order is None or isinstance(self._failure, UnsupportedModelError):
            return  # a model that cannot be traced is not traced for every batch
        indices = self.order.batches[number]
        inputs, target = unpacked(self.unpack, batch)
        check_count(len(target), len(indices))
        first = {index: at for at, index in reversed(list(enumerate(indices)))}
        chosen = sorted(first[index] for index in self._left.intersection(first))
        if not chosen:
            return
        here = [indices[at] for at in chosen]
        with muted(root):
            axis = bound(model).batch_axis(inputs)
        where = torch.tensor(chosen)
        self.picked.append(Picked.of(torch.tensor(here), inputs, target, where, axis))
        self._left.difference_update(here)

    def certify(
        self, model: nn.Module, root: nn.Module, known: Sequence[SampleRow], progress: Progress
    ) -> None:
        """Certify what was set aside.

        Args:
            model: gives the logits.
            root: whose weights are fingerprinted.
            known: what was found out when samples were last certified.
            progress: moved for every sample.

        Raises:
            ValueError, TypeError, UnsupportedModelError: a model that cannot be read.
        """
        self.weights = fingerprint(root)
        with isolated_random(), muted(root):
            self._notice(bound(model))
            rows, failure = examined(self.question, bound(model), self.picked, known, progress)
        self.rows += rows
        self._failure = self._failure or failure

    def packed(self, model: nn.Module, root: nn.Module, known: Sequence[SampleRow]) -> bytes:
        """Everything that another process needs to certify what was set aside.

        Args:
            model: gives the logits.
            root: whose weights are fingerprinted.
            known: see ``certify``.

        Raises:
            Exception: something in the model cannot be pickled.
        """
        self.weights = fingerprint(root)
        with isolated_random(), muted(root):
            self._notice(bound(model))
        return snapshot(bound(model), root, self.question, self.picked, known)

    def _notice(self, model: BoundModel) -> None:
        """Look which tensor moves."""
        if self.picked:
            self.moved = model.moved(self.picked[0].inputs)

    def take(self, rows: Sequence[SampleRow], seconds: float, problem: str) -> None:
        """Take over what another process has found out."""
        self.rows += rows
        self.seconds, self.problem = seconds, problem
        self.close()

    def close(self) -> None:
        """Give the samples that an error kept from being certified their rows."""
        left = sorted(self._own - {row.index for row in self.rows})
        if self._failure is not None:
            self.problem = f"{type(self._failure).__name__}: {self._failure}"
        if self.problem:
            text = self.problem
            self.rows += [SampleRow(at, None, Status.ERROR, error=text) for at in left]
        self.picked = []

    @property
    def share(self) -> int:
        """How many samples this process has set aside."""
        return sum(len(picked.labels) for picked in self.picked)


def _nothing(*_: Any, **__: Any) -> None:
    """Log nothing."""


@contextlib.contextmanager
def muted(module: nn.Module) -> Iterator[None]:
    """Let a LightningModule log nothing in passes through forward that are not its own."""
    methods = [name for name in ("log", "log_dict") if name not in vars(module)]
    vars(module).update(dict.fromkeys(methods, _nothing))
    try:
        yield
    finally:
        for name in methods:
            del vars(module)[name]


def snapshot(
    model: BoundModel,
    root: nn.Module,
    question: Examination | None,
    picked: Sequence[Picked],
    known: Sequence[SampleRow] = (),
) -> bytes:
    """A model as it is now, with what is asked about it; see ``Job``."""
    with isolated_random(), muted(root):
        job = Job.of(model, question, picked, known)
    return job.packed()


def trial(model: BoundModel, root: nn.Module, unpack: Unpack, batch: Any) -> Picked:
    """A few samples of a batch, to see whether they can be certified."""
    inputs, target = unpacked(unpack, batch)
    first = torch.arange(min(_TRIED, len(target)))
    with isolated_random(), muted(root):
        return Picked.of(first, inputs, target, first, model.batch_axis(inputs))


def frames_of(model: BoundModel, root: nn.Module, some: Picked) -> int:
    """How many frames the samples have."""
    with isolated_random(), muted(root):
        return model.instance(some.inputs, check=False).center.shape[1]


class Cost(NamedTuple):
    """Seconds a sample, with nothing known beforehand.

    Attributes:
        first: now, when wrong predictions cost next to nothing.
        later: when all predictions are right, as they nearly are in a trained model.
    """

    first: float
    later: float


def pre_flight(
    model: nn.Module, root: nn.Module, question: Examination, unpack: Unpack, batch: Any
) -> Cost:
    """Certify a few samples, so that what cannot be bounded fails before hours of training.

    A sample that cannot be asked about does not stop the others.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certified_radius``.
    """
    some = trial(bound(model), root, unpack, batch)
    with isolated_random(), muted(root):
        examiner = Examiner(question, bound(model))
        rows, seconds = _timed(lambda: examiner.rows(some))
        failure, answered = examiner.failure, any(row.answered for row in rows)
        if failure is not None and not (answered and isinstance(failure, BadSamplesError)):
            raise failure
        return Cost(seconds / len(some.labels), _later(examiner, some, rows, seconds))


def _later(examiner: Examiner, some: Picked, rows: Sequence[SampleRow], seconds: float) -> float:
    """Seconds a sample where there is something to search for in every one of them.

    Wrong predictions are made right by asking about the class that is predicted.
    """
    said = {row.index: row.prediction for row in rows if row.answered}
    labels = some.labels.tolist()
    pairs = zip(some.positions.tolist(), labels, strict=True)
    right = [said.get(index, label) for index, label in pairs]
    if right != labels:
        changed = some._replace(labels=some.labels.new_tensor(right))
        ask = partial(examiner.question.rows, examiner.model, changed, None, examiner.decided)
        with contextlib.suppress(Exception):  # nobody asked for these; certification will tell
            seconds = max(seconds, _timed(ask)[1])
    return seconds / len(rows)


def _timed(ask: Callable[[], list[SampleRow]]) -> tuple[list[SampleRow], float]:
    started = time.perf_counter()
    return ask(), time.perf_counter() - started
