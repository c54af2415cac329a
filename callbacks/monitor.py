"""Certified radii during validation."""

import html
import math
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import Tensor

from popqorn_train.bounds.methods import Method, method_named
from popqorn_train.callbacks.background_certifier import BackgroundCertifier
from popqorn_train.callbacks.cadence import Cadence
from popqorn_train.callbacks.choice import SHORT, Choice
from popqorn_train.callbacks.monitor_hooks import MonitorHooks
from popqorn_train.callbacks.reports import Reports
from popqorn_train.callbacks.selection import Options
from popqorn_train.callbacks.set_certifier import SetCertifier
from popqorn_train.certificates.certificate import Confirm
from popqorn_train.certificates.probes import PROBES, check_probes
from popqorn_train.certificates.radius import check_search, check_sizes
from popqorn_train.evaluation.batches import Unpack, unpack_pair
from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.loader_pass import OnError, check_on_error
from popqorn_train.evaluation.sample_list import SampleRows
from popqorn_train.metrics import CertifiedAccuracyCurve
from popqorn_train.perturbations.box import Box, searched
from popqorn_train.perturbations.masks import Mask
from popqorn_train.perturbations.region import Scope


class CertifiedRadiusMonitor(MonitorHooks):
    """Certify a fixed part of the validation set and log its radii.

    Logs ``certified_radius/median``, ``/mean``, ``/p10`` and ``/capped_fraction``,
    ``certified_radius_by_class/<label>`` (means), ``certified_accuracy/<epsilon>`` with the dot of
    epsilon written ``p`` (0.05: ``0p05``), and ``certification/*``: what it cost, how many samples
    ended how, and whether the values are ``fresh``. ``certified_accuracy/0`` is the clean accuracy
    on the same samples. The progress bar shows the median radius as ``cert_r``. Lightning keeps the
    last value of each key; ``fresh/certified_radius/median`` and so on are there only until the
    next epoch, for callbacks and schedulers that must not count a value twice. wandb, TensorBoard,
    MLflow and Comet get charts too, and ``certification.jsonl`` in the run's folder keeps every
    radius.
    Training is not changed: not by one bit.

    Args:
        p: norm of the ball.
        samples: how many samples to certify, drawn once, each class by its share.
        every_n_epochs: certify at the first validation of a fit, then this often, and at the last.
        max_overhead: skip epochs where certifying would take more than this share of the
            time of the rest of training; None certifies whenever ``every_n_epochs`` says so. The
            last validation is known beforehand unless training is stopped early.
        epsilons: where certified accuracy is logged, increasing, in the units of the input; the
            radii count there what ``certify`` proves, see ``certified_radius``.
        method: bounding method; None chooses one by the number of frames and by what it costs,
            once, before the first certification, and stays with it in resumed fits.
        frames: ``(T,)`` mask of the perturbed frames, or a list of booleans; see ``LpBall``, as for
            the next four.
        features: ``(N,)`` mask of the perturbed features, likewise.
        scope: one ball per frame, or one for the sequence.
        low: least value of an input.
        high: greatest value of an input.
        box: a range for every coordinate, in place of a ball. What is searched is the largest share
            of the way from the sample to the ends, from 0 to 1. It is logged under names of its
            own, ``certified_share/median`` and so on, ``certified_accuracy_at_share/<share>``;
            ``epsilons`` and ``max_radius`` are shares too.
        max_radius: largest radius tried, see ``certified_radius``.
        rtol: relative precision of the radii.
        confirm: ``"float64"`` proves every radius again in float64.
        attack: also log ``empirical_radius/median``, ``/mean``, ``/gap`` and
            ``/unbroken_fraction``: how small a distortion breaks what is not proved.
        probes: points at which the model is compared with what was proved of every sample, see
            ``certify``; a contradiction gives the samples the status error.
        model: name of the sub-module that gives logits; None takes the LightningModule.
        dataloader: which validation or test loader, where there are several.
        unpack: from a validation batch to ``(inputs, target)``.
        seed: of the draw of samples.
        on_error: when certification fails in a training that has begun, ``"warn"`` lets it go on
            and gives the samples the status error; ``"raise"`` stops, in every process.
        folder: where ``certification.jsonl`` is written; None takes the folder of the run.
        artifacts: at the end of ``fit``, upload that file and a report of the last certification
            to wandb, as one artifact.
        name: put before every logged key as ``<name>/``; tells several monitors apart.
        spread: certify one of so many parts of the samples at a time, in turn, and all of them at
            the last validation. Parts are logged as ``part/certified_radius/median`` and so on,
            with intervals of their size, and ``certification/share``; no callback and no
            scheduler may watch them, since each is of other samples than the one before.
        background: certify snapshots in a worker process while training goes on; in ``fit``, where
            one process trains. A snapshot that waits for the worker when the next one comes is
            left out. Each certification is logged when it is there, under its own epoch and step,
            so that no callback and no scheduler may watch it.
        background_threads: of the worker.

    Attributes:
        last: the newest ``Certification``, or None.
        fresh: whether the last validation certified, and every sample was answered; with
            ``background``, whether such a certification has come since.

    Raises:
        ValueError, TypeError: an argument out of range; before validation, a loader that does
            not read the same samples every time, or a strategy that shards weights; at the first
            batch, inputs or labels that do not fit.
        UnsupportedModelError: at the sanity check, a model that cannot be bounded.
    """

    def __init__(
        self,
        p: float = math.inf,
        *,
        samples: int = 64,
        every_n_epochs: int = 1,
        max_overhead: float | None = 0.25,
        epsilons: Sequence[float] = (0.01, 0.02, 0.05, 0.1),
        method: str | Method | None = None,
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
        probes: int = PROBES,
        model: str | None = None,
        dataloader: int = 0,
        unpack: Unpack = unpack_pair,
        seed: int = 0,
        on_error: OnError = "warn",
        folder: str | Path | None = None,
        artifacts: bool = False,
        name: str = "",
        spread: int = 1,
        background: bool = False,
        background_threads: int = 1,
    ) -> None:
        check_at_least(1, samples=samples, every_n_epochs=every_n_epochs, spread=spread)
        check_at_least(1, background_threads=background_threads)
        check_at_least(0, dataloader=dataloader, seed=seed)
        if spread > samples:
            raise ValueError(f"`spread` must be at most `samples`, {samples}, got {spread}.")
        if max_overhead is not None and not max_overhead > 0:
            raise ValueError(f"`max_overhead` must be positive or None, got {max_overhead!r}.")
        if not callable(unpack):
            raise TypeError(f"`unpack` must be a function, got {type(unpack).__name__}.")
        check_search(rtol, max_radius, confirm)
        check_probes(probes)
        check_on_error(on_error)
        domain = {"low": low, "high": high}
        ball = searched(box, p=p, frames=frames, features=features, scope=scope, **domain)
        points = CertifiedAccuracyCurve(epsilons).epsilons
        check_sizes(ball, max_radius, points)
        known = method_named(SHORT[0] if method is None else method)
        question = Examination(ball, known, max_radius, rtol, confirm, attack, points, probes)
        counts = int(samples), int(seed), int(dataloader)
        options = Options(*counts, model, unpack, on_error, points, name, int(spread))
        reports = Reports(name, None if folder is None else Path(folder), artifacts)
        arguments = Choice(question, open=method is None), options, reports
        certifier = SetCertifier(*arguments)
        if background:
            certifier = BackgroundCertifier(*arguments, background_threads)
        super().__init__(certifier, Cadence(every_n_epochs, max_overhead, int(spread)), reports)

    @property
    def last(self) -> Certification | None:
        """The newest certification."""
        return self._certifier.last

    @property
    def fresh(self) -> bool:
        """Whether the last validation certified, and every sample was answered."""
        return self._certifier.fresh

    @property
    def prefix(self) -> str:
        """What stands before every key that it logs: empty, or the name and a slash."""
        return self._reports.prefix

    @property
    def failures(self) -> int:
        """How often a logger or the file could not be written."""
        return self._reports.failsafe.failures

    @property
    def path(self) -> Path | None:
        """The file that the certifications are kept in, once there is one."""
        return self._reports.path

    def __repr__(self) -> str:
        last = "nothing certified yet" if self.last is None else _told(self.last)
        return f"<{type(self).__name__}: {self._certifier.describe()}; {last}>"

    def _repr_html_(self) -> str:
        rows = () if self.last is None else self.last.rows
        said = f"<p>{html.escape(repr(self).strip('<>'))}</p>"
        return said + (SampleRows(rows)._repr_html_() if rows else "")

    @property
    def state_key(self) -> str:
        """Keep monitors with other settings apart in a checkpoint."""
        return self._generate_state_key(**self._certifier.identity())

    def state_dict(self) -> dict[str, Any]:
        """The newest radii and what a resumed fit goes on from, as plain values."""
        return {
            "certifier": self._certifier.state(),
            "cadence": self._cadence.state(),
            "reports": self._reports.state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what ``state_dict`` saved; a fit that starts next goes on from there."""
        self._loaded = state_dict


def check_at_least(least: int, **counts: int) -> None:
    """Refuse counts that are no whole numbers, or too small.

    Raises:
        ValueError: naming the argument.
    """
    for argument, count in counts.items():
        if not isinstance(count, Integral) or count < least:
            raise ValueError(f"`{argument}` must be at least {least}, got {count!r}.")


def _told(last: Certification) -> str:
    """The newest certification in a few words."""
    return f"epoch {last.epoch}, {repr(SampleRows(last.rows)).strip('<>')}"
