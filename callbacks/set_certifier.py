"""What a monitor does with a validation or test set: choose, certify, log, keep."""

import math
from typing import Any, cast

from torch import nn

from popqorn_train.callbacks.certifier_record import CertifierRecord
from popqorn_train.callbacks.choice import Choice
from popqorn_train.callbacks.gather import all_values
from popqorn_train.callbacks.lightning_packages import (
    LightningModule,
    Trainer,
    TrainerFn,
    rank_zero_info,
)
from popqorn_train.callbacks.progress import progress_in
from popqorn_train.callbacks.reports import Reports
from popqorn_train.callbacks.selection import Options
from popqorn_train.callbacks.session import Session
from popqorn_train.callbacks.watched import watched_module
from popqorn_train.callbacks.watchers import check_watchers
from popqorn_train.evaluation.progress import duration

_PARTS = (
    "compares certifications, but with CertifiedRadiusMonitor(spread=...) each one covers other "
    "samples; leave `spread` at 1."
)
_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


class SetCertifier(CertifierRecord):
    """Certifies the chosen samples of one loader, whenever it is told to.

    Args:
        choice: what is asked about every sample, and by which method.
        options: what is watched.
        reports: where certifications go.

    Attributes:
        takes: what training waits for, in words.
    """

    takes = "one certification takes"

    def __init__(self, choice: Choice, options: Options, reports: Reports) -> None:
        super().__init__(choice, options, reports)
        self._epoch = math.inf  # seconds that one takes
        self._session: Session | None = None

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
            f"{self.question.told()}, {self.choice.told()}; one certification takes about "
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
        self._log_values(trainer, pl_module, values)

    def _model(self, pl_module: LightningModule) -> nn.Module:
        return watched_module(pl_module, self.options.model)
