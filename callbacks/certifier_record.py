"""What a monitor knows and tells of what it has certified: settings, the newest radii, failures."""

import time
from typing import Any, NamedTuple

from popqorn_train.callbacks.choice import Choice
from popqorn_train.callbacks.gather import all_values, completed, gathered
from popqorn_train.callbacks.lightning_packages import (
    LightningModule,
    Trainer,
    rank_zero_warn,
)
from popqorn_train.callbacks.logged_scalars import median_of, scalars
from popqorn_train.callbacks.reports import Reports
from popqorn_train.callbacks.selection import Options, Selection
from popqorn_train.callbacks.session import Session
from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.provenance import versions
from popqorn_train.evaluation.sample_rows import SampleRow, Status

_ABOUT, _FRESH = "certification/", "fresh/"


class Spent(NamedTuple):
    """What training has waited for.

    Attributes:
        seconds: that it took.
        share: of the samples of a part that there was something to search for.
    """

    seconds: float
    share: float


class CertifierRecord:
    """The certifications of one loader, and what a resumed training goes on from.

    Args:
        choice: what is asked about every sample, and by which method.
        options: what is watched.
        reports: where certifications go.

    Attributes:
        last: the newest certification.
        fresh: whether the newest pass certified, and every sample was answered.
        unpublished: the certification of this pass, until ``publish``.
    """

    def __init__(self, choice: Choice, options: Options, reports: Reports) -> None:
        self.choice, self.options, self._reports = choice, options, reports
        self.last: Certification | None = None
        self.fresh = False
        self.unpublished: Certification | None = None
        self._selection = Selection(options)
        self._known: dict[int, SampleRow] = {}  # where the next search begins
        self._stage = "fit"
        self._moved: str | None = None
        self._warned: set[str] = set()

    @property
    def question(self) -> Examination:
        """What is asked about every sample."""
        return self.choice.question

    def identity(self) -> dict[str, Any]:
        """Settings that tell monitors apart, as text."""
        settings = {**self.question.settings(), "name": self.options.name}
        settings |= {"method": "chosen"} if self.choice.open else {}
        settings |= {"model": self.options.model, "dataloader": self.options.dataloader}
        return {name: str(value) for name, value in settings.items()}

    def settings(self) -> dict[str, Any]:
        """What the logged numbers depend on but the model, as plain values."""
        names = ("samples", "spread", "seed", "dataloader", "model", "epsilons")
        options = {name: getattr(self.options, name) for name in names}
        known = versions("torch", "popqorn-train")
        moved = {"moved": self._moved}
        return {**self.question.settings(), **moved, **options, "versions": known}

    def describe(self) -> str:
        """What is watched, in a few words."""
        method = self.choice.told() if self.choice.settled else "method not chosen yet"
        return f"{self.options.samples} samples, {self.question.told()}, {method}"

    def state(self) -> dict[str, Any]:
        """The newest radii and which samples they belong to, as plain values."""
        last = None if self.last is None else self.last.plain()
        known = {at: (row.radius, row.rate) for at, row in self._known.items()}
        parts = {"selection": self._selection.state(), "choice": self.choice.state()}
        return {"last": last, "known": known, **parts}

    def restart(self) -> None:
        """Another training begins."""
        self._selection.restart()
        self.choice.restart()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        last = state["last"]
        self.last = None if last is None else Certification.of(last)
        self._selection.restore(state["selection"])
        self.choice.restore(state["choice"])
        self._known = {
            at: SampleRow(at, None, Status.CERTIFIED, radius=radius, rate=rate)
            for at, (radius, rate) in state["known"].items()
        }

    def _log_values(
        self, trainer: Trainer, pl_module: LightningModule, values: dict[str, float]
    ) -> None:
        """Log scalars of this pass: their usual keys, the bar, and those that are fresh."""
        prefix = self._reports.prefix
        self._reports.define((prefix + key for key in values), self.settings())
        # All processes hold the same values: any of them is their maximum.
        how: dict[str, Any] = {"sync_dist": trainer.world_size > 1, "reduce_fx": "max"}
        pl_module.log_dict({prefix + key: value for key, value in values.items()}, **how)
        median = median_of(values)
        if median is not None:
            value, name = median
            pl_module.log(f"{prefix}{name}", value, prog_bar=True, logger=False, **how)
        if self.fresh and self._stage == "fit":
            found = {key: value for key, value in values.items() if not key.startswith(_ABOUT)}
            fresh = {f"{_FRESH}{prefix}{key}": value for key, value in found.items()}
            pl_module.log_dict(fresh, logger=False, **how)

    def _scalars(self, certification: Certification) -> dict[str, float]:
        values = scalars(certification, self.options.epsilons)
        if self.options.spread > 1:
            total = len(self._selection.positions)
            values["certification/share"] = len(certification.rows) / total
        return values

    def _remember(self, certification: Certification) -> None:
        self.last = certification
        self._known |= {row.index: row for row in certification.answered}

    def forget_fresh(self, trainer: Trainer) -> None:
        """Take away what was certified in an earlier epoch; its usual keys stay."""
        metrics = trainer.callback_metrics
        for key in [key for key in metrics if key.startswith(_FRESH + self._reports.prefix)]:
            del metrics[key]

    def _certification(
        self, trainer: Trainer, session: Session, epoch: int, step: int
    ) -> Certification:
        rows, seconds = gathered(trainer, session.rows, session.seconds)
        names = [name for name in all_values(trainer, session.moved) if name is not None]
        self._moved = next(iter(names), self._moved)
        return Certification(
            epoch=epoch,
            step=step,
            rows=tuple(completed(rows, session.wanted)),
            seconds=seconds,
            run=self._reports.run,
            stage=self._stage,
            settings=self.settings(),
            weights=session.weights,
            part=session.part,
        )

    def _deal_with_errors(self, certification: Certification) -> None:
        wrong = [row for row in certification.rows if row.status == Status.ERROR]
        if not wrong:
            return
        message = (
            f"{len(wrong)} of {len(certification.rows)} samples could not be certified in epoch "
            f"{certification.epoch}, first sample {wrong[0].index}: {wrong[0].error}"
        )
        lost = self._stage != "fit" and not certification.answered  # and no training to go on
        if lost or self.options.on_error == "raise":
            raise RuntimeError(message)
        if wrong[0].error not in self._warned:
            self._warned.add(wrong[0].error)
            rank_zero_warn(f"CertifiedRadiusMonitor: {message}")

    def publish(self, trainer: Trainer) -> Spent | None:
        """Keep and show the certification of this pass; what it has cost, if there is one."""
        newest, self.unpublished = self.unpublished, None
        if newest is None:
            return None
        started = time.perf_counter()
        self._reports.publish(trainer, newest)
        searched = sum(row.evaluations > 0 for row in newest.rows) / len(newest.rows)
        if newest.part is None:
            searched *= self.options.spread
        return Spent(newest.seconds + time.perf_counter() - started, searched)
