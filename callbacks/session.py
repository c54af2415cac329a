"""One pass over a validation set in which the wanted samples are set aside and certified."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from popqorn_train.callbacks.subset import Order, isolated_random
from popqorn_train.certificates.bound_model import BoundModel, bound
from popqorn_train.certificates.search import Start
from popqorn_train.evaluation.batches import Picked, Unpack, grouped, unpacked
from popqorn_train.evaluation.progress import Progress
from popqorn_train.evaluation.provenance import fingerprint
from popqorn_train.evaluation.sample_rows import Examination, Examiner, SampleRow, Status

_TRIED = 16  # samples of the pre-flight


@dataclass
class Session:
    """What one process does.

    Attributes:
        order: how it reads the data.
        wanted: positions that all processes certify together.
        unpack: from a batch to ``(inputs, target)``.
        question: what is asked about every sample.
        seconds: spent so far.
        rows: of the samples that this process has certified.
        weights: fingerprint of what was certified.
    """

    order: Order
    wanted: Sequence[int]
    unpack: Unpack
    question: Examination
    seconds: float = 0.0
    rows: list[SampleRow] = field(default_factory=list)
    weights: str = ""
    _picked: list[Picked] = field(default_factory=list)
    _seen: int = 0
    _failure: Exception | None = None

    def __post_init__(self) -> None:
        self._own = {position for position in self.wanted if self.order.own(position)}

    def collect(self, model: nn.Module, root: nn.Module, batch: Any) -> None:
        """Set the wanted samples of a batch aside; an error is kept for ``certify``."""
        if self._failure is not None:
            return
        started = time.perf_counter()
        try:
            with muted(root):
                self._collect(bound(model), batch)
        except Exception as error:
            self._failure = error
        self.seconds += time.perf_counter() - started

    def _collect(self, model: BoundModel, batch: Any) -> None:
        inputs, target = unpacked(self.unpack, batch)
        positions = self.order.positions(self._seen, len(target))
        self._seen += len(target)
        chosen = [at for at, position in enumerate(positions) if position in self._own]
        if chosen:
            here = torch.tensor([positions[at] for at in chosen])
            axis = model.batch_axis(inputs)
            self._picked.append(Picked.of(here, inputs, target, torch.tensor(chosen), axis))

    def certify(
        self, model: nn.Module, root: nn.Module, known: Sequence[SampleRow], progress: Progress
    ) -> None:
        """Certify what was set aside.

        Args:
            model: gives the logits.
            root: whose weights are fingerprinted.
            known: what was found out when samples were last certified.
            progress: moved for every sample.
        """
        started = time.perf_counter()
        self.weights = fingerprint(root)
        examiner = Examiner(self.question, bound(model))
        with isolated_random(), muted(root):
            for picked in self._chunks(examiner.model):
                self.rows += examiner.rows(picked, _start(known, picked))
                progress.advance(len(picked.labels))
        answered = {row.index for row in self.rows}
        if self._failure is not None:
            text = f"{type(self._failure).__name__}: {self._failure}"
            left = sorted(self._own - answered)
            self.rows += [SampleRow(at, None, Status.ERROR, error=text) for at in left]
        self._picked = []
        self.seconds += time.perf_counter() - started

    def _chunks(self, model: BoundModel) -> list[Picked]:
        if not self._picked or self._failure is not None:
            return []
        return list(grouped(self._picked, model.batch_axis(self._picked[0].inputs)))

    @property
    def share(self) -> int:
        """How many samples this process has set aside."""
        return sum(len(picked.labels) for picked in self._picked)


def _start(known: Sequence[SampleRow], picked: Picked) -> Start:
    """Where the search begins for these samples."""
    found = {row.index: (row.radius or 0.0, row.rate or math.nan) for row in known}
    pairs = [found.get(position, (0.0, math.nan)) for position in picked.positions.tolist()]
    return Start(*picked.labels.new_tensor(pairs, dtype=torch.float64).T)


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


def pre_flight(
    model: nn.Module, root: nn.Module, question: Examination, unpack: Unpack, batch: Any
) -> float:
    """Certify a few samples, so that what cannot be bounded fails before hours of training.

    Returns:
        Seconds a sample, with nothing known beforehand.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certified_radius``.
    """
    inputs, target = unpacked(unpack, batch)
    module = bound(model)
    first = torch.arange(min(_TRIED, len(target)))
    with isolated_random(), muted(root):
        some = Picked.of(first, inputs, target, first, module.batch_axis(inputs))
        started = time.perf_counter()
        question.rows(module, some, None)
        return (time.perf_counter() - started) / len(first)
