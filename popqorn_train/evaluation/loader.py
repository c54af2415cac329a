"""Certify everything that a loader gives, without Lightning."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import (
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from popqorn_train.bounds.methods import Method, method_named
from popqorn_train.certificates.bound_model import BoundModel, bound
from popqorn_train.certificates.certificate import Confirm
from popqorn_train.certificates.probes import PROBES, check_probes
from popqorn_train.certificates.radius import check_search, check_sizes
from popqorn_train.errors import BadSamplesError
from popqorn_train.evaluation.batches import (
    Picked,
    Unpack,
    grouped,
    on_device,
    unpack_pair,
    unpacked,
)
from popqorn_train.evaluation.examination import AtBall, Examination, Examiner
from popqorn_train.evaluation.progress import Group, Progress, Silent, shown
from popqorn_train.evaluation.sample_list import SampleRows
from popqorn_train.evaluation.sample_rows import SampleRow, Status
from popqorn_train.perturbations.box import Box, Perturbation, check_ball, searched
from popqorn_train.perturbations.masks import Mask
from popqorn_train.perturbations.region import Scope

OnError = Literal["warn", "raise"]
_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def check_on_error(on_error: str) -> None:
    """Refuse an unknown way of dealing with errors."""
    if on_error not in ("warn", "raise"):
        raise ValueError(f"`on_error` must be 'warn' or 'raise', got {on_error!r}.")


Tell = Callable[[Sequence[SampleRow]], Any]


@dataclass
class _Pass:
    """One pass over a loader."""

    model: BoundModel
    question: Examination | AtBall
    unpack: Unpack
    on_error: OnError
    samples: float
    until: float
    known: Mapping[int, SampleRow]
    tell: Tell | None
    rows: list[SampleRow] = field(default_factory=list)

    def run(self, loader: Iterable[Any], progress: Progress) -> list[SampleRow]:
        """One row per sample, in the order of the loader, as far as that can be read."""
        try:
            for batch in loader:
                if len(self.rows) >= self.samples:
                    break
                found, chunks = self._read(batch)
                for picked in chunks:
                    found += self._ask(picked, progress)
                self.rows += sorted(found, key=lambda row: row.index)
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
        if self.on_error == "raise":
            return True
        return not isinstance(error, BadSamplesError) and not any(row.answered for row in rows)

    def _read(self, batch: Any) -> tuple[list[SampleRow], list[Picked]]:
        """Rows of a batch that are known, and what is to be certified."""
        inputs, target = unpacked(self.unpack, batch)
        device = next((p.device for p in self.model.parameters()), target.device)
        inputs, target = on_device(inputs, device), target.to(device)
        first = len(self.rows)
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


def certify_loader(
    model: nn.Module,
    loader: Iterable[Any],
    ball: Perturbation | None = None,
    *,
    p: float = math.inf,
    method: str | Method = "popqorn",
    frames: Mask | None = None,
    features: Mask | None = None,
    scope: Scope = "frame",
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    box: Box | None = None,
    max_radius: float | None = None,
    rtol: float = 1e-2,
    confirm: Confirm = "float64",
    attack: bool = False,
    epsilons: Sequence[float] = (),
    probes: int = PROBES,
    unpack: Unpack = unpack_pair,
    samples: int | None = None,
    seconds: float | None = None,
    on_error: OnError = "warn",
    progress: bool = True,
    known: Mapping[int, SampleRow] | None = None,
    tell: Tell | None = None,
) -> SampleRows:
    """Certify the samples of a loader, in its order, with a progress bar.

    With a ``ball`` every sample is certified in that ball; without one its radius is searched, or
    the share of a ``box``.

    Args:
        model: a classifier, or ``bound(model)``; inputs are moved to its device.
        loader: gives batches, in the same order every time.
        ball: an ``LpBall`` of fixed size, or a ``Box`` around every sample, whose ``share`` is how
            much of the way to its ends may be gone; None searches the largest ball.
        p: norm of the ball that is searched; see ``certified_radius``, as for everything down to
            ``confirm``. With a ``ball`` only ``method`` and ``confirm`` matter.
        method: bounding method.
        frames: mask of the frames that move, or a list of booleans.
        features: mask of the features that move, likewise.
        scope: one ball per frame, or one for the sequence.
        low: least value of an input.
        high: greatest value of an input.
        box: search the largest share of this box, instead of a ball; see ``certified_radius``.
        max_radius: largest radius tried.
        rtol: relative precision of the radii.
        confirm: prove again in float64.
        attack: also look for the smallest distortion that breaks the prediction.
        epsilons: where certified samples will be counted; see ``certified_radius``.
        probes: points at which the model is compared with what was proved, see ``certify``.
        unpack: from a batch to ``(inputs, target)``.
        samples: how many to certify, from the first on; None takes all.
        seconds: after which no further sample is attempted.
        on_error: what to do when samples raise an error after others were certified: ``"warn"``
            gives them the status error, and returns what it has when the loader itself fails;
            ``"raise"`` raises it. A sample that cannot be asked about (NaN or infinity in what the
            model reads, or a NaN logit) has the status error by itself, also at first.
        progress: show a bar on a terminal, or log a line every tenth.
        known: rows by position, from an earlier pass over the same data; they are returned as
            they are.
        tell: called with the rows of a few samples as soon as they are certified, to keep them.

    Returns:
        One ``SampleRow`` a sample, its index is the position in the loader; a list that has
        ``to_pandas``.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certified_radius`` and ``certify``; a
            loader that shuffles; a ``ball`` together with what describes another one.
    """
    check_on_error(on_error)
    check_search(rtol, max_radius, confirm, epsilons)
    check_probes(probes)
    _check_loader(loader, samples, seconds)
    domain = {"low": low, "high": high}
    described = searched(box, p=p, frames=frames, features=features, scope=scope, **domain)
    check_sizes(described, max_radius, epsilons)
    _check_one_size(described)
    question: Examination | AtBall
    if ball is None:
        question = Examination(
            described,
            method_named(method),
            max_radius,
            rtol,
            confirm,
            attack,
            tuple(epsilons),
            probes,
        )
    else:
        _check_ball(ball, described, attack=attack)
        question = AtBall(ball, method_named(method), confirm, probes)
    most = math.inf if samples is None else samples
    until = math.inf if seconds is None else time.monotonic() + seconds
    known = {} if known is None else known
    run = _Pass(bound(model), question, unpack, on_error, most, until, known, tell)
    total = _total(loader, most)
    left = None if total is None else total - sum(at < total for at in known)
    bar = shown("certifying", left) if progress and left != 0 else Silent()
    try:
        rows = run.run(loader, bar)
    finally:
        bar.close()
    wrong = [row for row in rows if row.status == Status.ERROR]
    if wrong:
        warnings.warn(
            f"{len(wrong)} of {len(rows)} samples ended in an error, first {wrong[0].error}",
            stacklevel=2,
        )
    if not rows:
        raise ValueError(
            "`loader` must give at least one batch, got none: its data set is empty, or it is an "
            "iterator that was read before. Pass a DataLoader or a list of batches."
        )
    return SampleRows(rows)


def _total(loader: Iterable[Any], most: float) -> int | None:
    dataset: Any = getattr(loader, "dataset", None)
    return int(min(len(dataset), most)) if hasattr(dataset, "__len__") else None


def _check_loader(loader: Iterable[Any], samples: int | None, seconds: float | None) -> None:
    if isinstance(loader, Dataset):
        kind = "an IterableDataset" if isinstance(loader, IterableDataset) else "a data set"
        raise TypeError(
            f"`loader` must give batches, got {kind} ({type(loader).__name__}), which gives single "
            "samples. Pass DataLoader(dataset, batch_size=32); batch_size=None where it gives "
            "batches."
        )
    streamed = isinstance(getattr(loader, "dataset", None), IterableDataset)
    if streamed and getattr(loader, "num_workers", 0) > 1:
        raise ValueError(
            "`loader` reads an IterableDataset with several workers, which may give samples twice "
            "or in another order. Pass num_workers=0."
        )
    sampler = getattr(getattr(loader, "batch_sampler", loader), "sampler", None)
    if isinstance(sampler, _RANDOM) or getattr(sampler, "shuffle", False):
        raise ValueError(
            "`loader` must give samples in the same order every time, got one that shuffles. Use "
            "shuffle=False: a sample is known by its position."
        )
    if samples is not None and (not isinstance(samples, int) or samples < 1):
        raise ValueError(f"`samples` must be at least 1, got {samples!r}.")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"`seconds` must be positive, got {seconds!r}.")


def _check_ball(ball: Perturbation, described: Perturbation, *, attack: bool) -> None:
    check_ball(ball)
    if isinstance(described, Box):
        raise ValueError(
            "`ball` is certified as it is, and of `box` the largest share is searched: pass one of "
            "them."
        )
    other = described.p != math.inf or described.scope != "frame" or attack
    parts = (described.frames, described.features, described.low, described.high)
    if other or any(part is not None for part in parts):
        raise ValueError(
            "`ball` says what may move: pass p, frames, features, scope, low and high to LpBall, "
            "and leave out `attack`, which searches radii."
        )
    _check_one_size(ball)


def _check_one_size(ball: Perturbation) -> None:
    """Refuse what is of one batch alone."""
    sizes = ball.ends if isinstance(ball, Box) else (ball.epsilon,)
    axes = 2 if isinstance(ball, Box) else 0  # of frames and features
    if any(isinstance(size, Tensor) and size.ndim > axes for size in sizes):
        raise ValueError(
            "`ball` must be of one size for all batches: `epsilon` a float, the ends of a Box "
            "floats or (T, N)."
        )
