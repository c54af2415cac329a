"""What a monitor does with a validation or test set: choose, certify, log, keep."""

import math
import time
from typing import Any, NamedTuple, cast

from torch import nn

from popqorn_train.callbacks.choice import Choice
from popqorn_train.callbacks.gather import all_values, completed, gathered
from popqorn_train.callbacks.lightning_packages import (
    LightningModule,
    Trainer,
    TrainerFn,
    rank_zero_info,
    rank_zero_warn,
)
from popqorn_train.callbacks.logged_scalars import median_of, scalars
from popqorn_train.callbacks.progress import progress_in
from popqorn_train.callbacks.reports import Reports
from popqorn_train.callbacks.selection import Options, Selection
from popqorn_train.callbacks.session import Session
from popqorn_train.callbacks.watched import watched_module
from popqorn_train.callbacks.watchers import check_watchers
from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.progress import duration
from popqorn_train.evaluation.provenance import versions
from popqorn_train.evaluation.sample_rows import SampleRow, Status

_ABOUT, _FRESH = "certification/", "fresh/"
_PARTS = (
    "compares certifications, and with CertifiedRadiusMonitor(spread=...) each is of other samples "
    "than the one before; leave `spread` at 1."
)
_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


class Spent(NamedTuple):
    """What training has waited for.

    Attributes:
        seconds: that it took.
        share: of the samples of a part that there was something to search for.
    """

    seconds: float
    share: float


class SetCertifier:
    """Certifies the chosen samples of one loader, whenever it is told to.

    Args:
        choice: what is asked about every sample, and by which method.
        options: what is watched.
        reports: where certifications go.

    Attributes:
        last: the newest certification.
        fresh: whether the newest pass certified, and every sample was answered.
        unpublished: the certification of this pass, until ``publish``.
        takes: what training waits for, in words.
    """

    takes = "one certification takes"

    def __init__(self, choice: Choice, options: Options, reports: Reports) -> None:
        self.choice, self.options, self._reports = choice, options, reports
        self._epoch = math.inf  # seconds that one takes
        self.last: Certification | None = None
        self.fresh = False
        self._selection = Selection(options)
        self._known: dict[int, SampleRow] = {}  # where the next search begins
        self._stage = "fit"
        self._moved: str | None = None
        self._warned: set[str] = set()
        self._session: Session | None = None
        self.unpublished: Certification | None = None

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
        return f"{self.options.samples} samples, l_{self.question.ball.p:g}, {method}"

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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be watched.

        Raises:
            ValueError: weights that are sharded, or a name that the module does not have.
        """
        strategy = type(trainer.strategy).__name__
        if strategy in _SHARDED:
            raise ValueError(
                f"CertifiedRadiusMonitor needs all weights in every process, got {strategy}; "
                "recurrent classifiers are small: use strategy='ddp'."
            )
        self._model(pl_module)
        self._stage = TrainerFn(stage).value
        self._selection.begin(self._stage)
        self._reports.begin(trainer, self._stage)

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A fit starts.

        Raises:
            ValueError: a callback or a scheduler compares certifications that are of other samples.
        """
        if self.options.spread > 1:
            check_watchers(trainer, self._reports.prefix, _PARTS)

    def ready(self, pl_module: LightningModule) -> None:
        """Training starts, after the sanity check if there is one."""

    def has_news(self) -> bool:
        """Whether there is something to say or to log about what is certified elsewhere."""
        return False

    def arrivals(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was certified elsewhere meanwhile."""

    def finish(self, trainer: Trainer) -> None:
        """Training has ended."""

    def stop(self) -> None:
        """A fit has ended, or was broken off."""

    def check_order(self, trainer: Trainer) -> None:
        """Refuse a loader whose samples may change; every process must ask at once.

        Raises:
            ValueError: it does not read the same samples every time, or there is no such loader.
        """
        self._selection.check_order(trainer)

    def begin(
        self, trainer: Trainer, *, due: bool, whole: bool = True, epoch: float = math.inf
    ) -> None:
        """Choose the samples of a pass in which certification is due: all of them, or a part.

        Args:
            trainer: of the pass.
            due: whether to certify.
            whole: whether to certify all of them.
            epoch: seconds that one takes.

        Raises:
            ValueError, TypeError: a loader or batches that cannot be watched; only the first time,
                where training is to go on after an error.
        """
        self.fresh, self._session = False, None
        if not due:
            return
        unpack, self._epoch = self.options.unpack, epoch
        first, failure = self._selection.order is None, None
        try:
            wanted = self._selection.wanted(trainer, whole=whole, again=self._again())
            order, positions, part = wanted
            self._session = Session(order, positions, unpack, self.question, part)
        except Exception as error:
            failure = error
        failures = [one for one in all_values(trainer, failure and str(failure)) if one is not None]
        if not failures:
            self._settle(trainer)
            return
        failure = failure or RuntimeError(failures[0])
        if first or self._stage != "fit" or self.options.on_error == "raise":
            raise failure
        everything = self._selection.positions
        self._session = Session(None, everything, unpack, self.question, _failure=failure)
        self._session.close()

    def _settle(self, trainer: Trainer) -> None:
        """Choose the method in all processes, if it was tried; alone it can be tried later."""
        choice, session = self.choice, cast(Session, self._session)
        if not choice.settled and (choice.frames or trainer.world_size > 1):
            choice.settle(len(session.wanted) / trainer.world_size, self._epoch)
            choice.restore(trainer.strategy.broadcast(choice.state()))

    def _ask(self, pl_module: LightningModule, session: Session) -> None:
        """Let a session ask by the method that is chosen, here where there was no sanity check."""
        model, choice = self._model(pl_module), self.choice
        if not choice.settled and session.picked:
            some = session.picked[0]
            batch = pl_module, lambda both: both, (some.inputs, some.labels)
            choice.look(model, *batch)
            if self._epoch < math.inf and choice.decides_by_cost():
                choice.try_on(model, *batch)
            choice.settle(session.share, self._epoch)
        session.question = self.question

    def _again(self) -> bool:
        """Whether the part of the last pass is left out, so that it is its turn again."""
        return False

    def pre_flight(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, at: tuple[int, int]
    ) -> None:
        """Certify some samples of the first batch at the sanity check; say what it will cost.

        Raises:
            ValueError, TypeError, UnsupportedModelError: what cannot be certified.
        """
        if at != (0, self.options.dataloader):
            return
        model, unpack = self._model(pl_module), self.options.unpack
        cost = self.choice.try_on(model, pl_module, unpack, batch)
        order = self._selection.order
        assert order is not None  # found when the sanity check began
        total = len(order.indices)
        chosen = count = min(self.options.samples, total)
        count, parts = -(-count // self.options.spread), f" in {self.options.spread} parts"
        parts = parts if self.options.spread > 1 else ""
        now, later = (seconds * count / trainer.world_size for seconds in cost)
        wrong = f" once predictions are right, {duration(now)} before" if later > 1.2 * now else ""
        rank_zero_info(
            f"CertifiedRadiusMonitor: {chosen} of {total} samples{parts}, "
            f"l_{self.question.ball.p:g}, {self.choice.told()}; one certification takes about "
            f"{duration(later)}{wrong}."
        )

    def collect(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, at: tuple[int, int]
    ) -> None:
        """Set samples of a batch aside, and certify all of them after the last batch.

        That is before the end of the epoch, while averaged weights are still in place.

        Args:
            trainer: of the pass.
            pl_module: with the watched model.
            batch: as the module has seen it.
            at: indices of the batch and of its loader.
        """
        session = self._session
        if session is None or session.order is None or at[1] != self.options.dataloader:
            return
        with session.keeping():
            session.collect(self._model(pl_module), pl_module, batch, at[0])
        if at[0] == len(session.order.batches) - 1:
            self._certify(trainer, pl_module, session)

    def _certify(self, trainer: Trainer, pl_module: LightningModule, session: Session) -> None:
        """Certify what was set aside; what goes wrong is in the rows."""
        known = [] if self._stage == "test" else [*self._known.values()]
        progress = progress_in(trainer, "certifying", session.share)
        with session.keeping():
            try:
                self._ask(pl_module, session)
                session.certify(self._model(pl_module), pl_module, known, progress)
            finally:
                progress.close()
        session.close()

    def log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the processes together and log; every process must call it.

        Raises:
            RuntimeError: samples ended in an error, with ``on_error="raise"``; or all did, outside
            of ``fit``.
        """
        session = self._session
        values = {"certification/fresh": 0.0}
        if session is not None:
            at = trainer.current_epoch, trainer.global_step
            self.unpublished = self._certification(trainer, session, *at)
            self.fresh = self.unpublished.complete
            values["certification/fresh"] = float(self.fresh)
            values |= self._scalars(self.unpublished)
            if self._stage != "test":
                self._remember(self.unpublished)
            self._deal_with_errors(self.unpublished)
        prefix = self._reports.prefix
        self._reports.define((prefix + key for key in values), self.settings())
        # All processes hold the same values: any of them is their maximum.
        how: dict[str, Any] = {"sync_dist": trainer.world_size > 1, "reduce_fx": "max"}
        pl_module.log_dict({prefix + key: value for key, value in values.items()}, **how)
        median = median_of(values)
        if median is not None:
            pl_module.log(f"{prefix}cert_r", median, prog_bar=True, logger=False, **how)
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

    def _model(self, pl_module: LightningModule) -> nn.Module:
        return watched_module(pl_module, self.options.model)
