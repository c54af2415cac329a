"""Certify while training goes on: snapshots go to a worker, certifications are logged late."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from popqorn_train.callbacks.background import Background
from popqorn_train.callbacks.certifier_record import Spent
from popqorn_train.callbacks.choice import Choice
from popqorn_train.callbacks.lightning_packages import (
    LightningModule,
    Trainer,
    rank_zero_info,
    rank_zero_warn,
)
from popqorn_train.callbacks.logged_scalars import median_of, scalars
from popqorn_train.callbacks.progress import progress_in
from popqorn_train.callbacks.rebuilding import main_script, refusal
from popqorn_train.callbacks.reports import Reports
from popqorn_train.callbacks.selection import Options
from popqorn_train.callbacks.session import Session, snapshot, trial
from popqorn_train.callbacks.set_certifier import SetCertifier
from popqorn_train.callbacks.watchers import check_watchers
from popqorn_train.certificates.bound_model import bound
from popqorn_train.evaluation.batches import Picked
from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.worker import Found

_LATE = (
    "needs each value in its own epoch, but with CertifiedRadiusMonitor(background=True) values "
    "arrive later; leave `background` off."
)
_LOOK = 0.5  # seconds from one look at the progress of the last certification to the next


class Ticket(NamedTuple):
    """A snapshot that is certified elsewhere.

    Attributes:
        session: in which its samples were set aside; None for a trial.
        epoch: of the snapshot.
        step: likewise.
    """

    session: Session | None
    epoch: int = 0
    step: int = 0


class BackgroundCertifier(SetCertifier):
    """Hands over in ``fit`` what ``SetCertifier`` does itself.

    A worker has its own interpreter, its own modules and, on CUDA, its own context on the device.

    Args:
        choice: what is asked about every sample, and by which method.
        options: what is watched.
        reports: where certifications go.
        threads: of the worker.
    """

    takes = "handing a snapshot over takes"

    def __init__(self, choice: Choice, options: Options, reports: Reports, threads: int) -> None:
        super().__init__(choice, options, reports)
        self._threads = threads
        self._worker: Background | None = None
        self._tried = False
        self._handed = 0
        self._spent: Spent | None = None
        self._told: Certification | None = None  # shown by the progress bar

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See ``SetCertifier``; several processes share the work without a worker."""
        super().setup(trainer, pl_module, stage)
        if self._stage == "fit" and trainer.world_size > 1:
            raise ValueError(
                f"`background` must be off where several processes train, got "
                f"{trainer.world_size}: they share the samples."
            )

    def state(self) -> dict[str, Any]:
        """See ``SetCertifier``; and the epochs whose snapshots are not certified yet."""
        tickets = [] if self._worker is None else self._worker.tickets
        unanswered = [ticket.epoch for ticket in tickets if ticket.session is not None]
        return {**super().state(), "unanswered": unanswered}

    def restore(self, state: dict[str, Any]) -> None:
        """See ``SetCertifier``; say which snapshots may be lost."""
        super().restore(state)
        if epochs := state.get("unanswered"):
            rank_zero_warn(
                "CertifiedRadiusMonitor: snapshots of epochs "
                f"{', '.join(map(str, epochs))} were still in the worker when this checkpoint was "
                "written. Unless the training went on until they were certified, these epochs "
                "have no certification."
            )

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what a worker cannot do, and start it.

        Raises:
            ValueError: a callback or a scheduler needs certifications in time.
            UnsupportedModelError: a worker could not rebuild the model.
        """
        self.stop()
        super().start(trainer, pl_module)
        check_watchers(trainer, self._reports.prefix, _LATE)
        if trainer.enable_validation:
            main = main_script(bound(self._model(pl_module)), self.question)
            self._worker, self._tried = Background(self._threads, main), False
            self._handed = 0

    def pre_flight(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, at: tuple[int, int]
    ) -> None:
        """See ``SetCertifier``; then see whether the worker computes the same logits."""
        super().pre_flight(trainer, pl_module, batch, at)
        if self._worker is not None and at == (0, self.options.dataloader):
            model = bound(self._model(pl_module))
            self._try(pl_module, [trial(model, pl_module, self.options.unpack, batch)])

    def ready(self, pl_module: LightningModule) -> None:
        """Wait for the worker, where no sanity check has done so."""
        if self._worker is not None and not self._tried:
            self._try(pl_module, ())

    def _try(self, pl_module: LightningModule, picked: Sequence[Picked]) -> None:
        """Let the worker rebuild the model, and wait until it has.

        Raises:
            UnsupportedModelError: it could not.
        """
        assert self._worker is not None  # since fit began
        data = snapshot(bound(self._model(pl_module)), pl_module, None, picked)
        self._worker.submit(Ticket(None), data)
        self._tried = True
        while not (answers := self._worker.arrived()):
            self._worker.advanced(_LOOK)
        [(_, found)] = answers
        if found.problem:
            raise refusal(f"where it fails: {found.problem}")

    def _certify(self, trainer: Trainer, pl_module: LightningModule, session: Session) -> None:
        """Hand a snapshot over."""
        if self._worker is None:
            super()._certify(trainer, pl_module, session)
            return
        known = [*self._known.values()]
        with session.keeping():
            self._ask(pl_module, session)
            data = session.packed(self._model(pl_module), pl_module, known)
            ticket = Ticket(session, trainer.current_epoch, trainer.global_step)
            self._worker.submit(ticket, data)
            self._session = None  # the worker has it
            self._handed += 1
        self._spent = Spent(session.seconds, 1.0)

    def _again(self) -> bool:
        """See ``SetCertifier``: a snapshot that still waits will be left out."""
        return self._worker is not None and len(self._worker.tickets) > 1

    def log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what could not be handed over; everything else is logged when it arrives."""
        if self._worker is None:
            super().log(trainer, pl_module)
        elif self._session is not None:
            ticket = Ticket(self._session, trainer.current_epoch, trainer.global_step)
            self._arrive(trainer, ticket, Found([], 0.0))

    def publish(self, trainer: Trainer) -> Spent | None:
        """Publish, where nothing was handed over; what training has waited for in this pass."""
        if self._worker is None:
            return super().publish(trainer)
        spent, self._spent = self._spent, None
        return spent

    def has_news(self) -> bool:
        """See ``SetCertifier``."""
        return self._worker is not None and self._worker.has_news

    def arrivals(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what has arrived, each certification under its own epoch and step."""
        self._take(trainer)
        if self.fresh and self._told is not self.last:
            self._told = self.last
            median = median_of(scalars(cast(Certification, self.last), ()))
            value, name = cast(tuple[float, str], median)
            how: dict[str, Any] = {"prog_bar": True, "logger": False, "batch_size": 1}
            pl_module.log(f"{self._reports.prefix}{name}", value, on_step=True, **how)

    def _take(self, trainer: Trainer) -> None:
        assert self._worker is not None
        for said in self._worker.said():
            rank_zero_warn(f"CertifiedRadiusMonitor: {said}; training goes on.")
        for ticket, found in self._worker.arrived():
            self._arrive(trainer, ticket, found)

    def _arrive(self, trainer: Trainer, ticket: Ticket, found: Found) -> None:
        """Log, keep and show a certification."""
        session = cast(Session, ticket.session)
        session.take(found.rows, found.seconds, found.problem)
        newest = self._certification(trainer, session, ticket.epoch, ticket.step)
        self._remember(newest)
        self.fresh = newest.complete
        values = {"certification/fresh": float(self.fresh), **self._scalars(newest)}
        self._reports.log_late(trainer, values, newest)
        self._reports.publish(trainer, newest)
        self._deal_with_errors(newest)

    def finish(self, trainer: Trainer) -> None:
        """Wait for what was handed over last; say what has been left out."""
        worker = self._worker
        if worker is None:
            return
        left = [cast(Session, ticket.session).wanted for ticket in worker.tickets]
        progress = progress_in(trainer, "certifying", sum(map(len, left)))
        try:
            while worker.tickets:
                progress.advance(worker.advanced(_LOOK))
                self._take(trainer)
            self._take(trainer)
        finally:
            progress.close()
        if worker.dropped:
            rank_zero_info(
                f"CertifiedRadiusMonitor skipped {worker.dropped} of {self._handed} snapshots: "
                "a newer one arrived before the worker was free."
            )

    def stop(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.stop()
        self._worker = None
