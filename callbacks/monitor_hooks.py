"""What a monitor does when Lightning calls: it tells what certifies, what times, what reports."""

import time
from typing import Any

from popqorn_train.callbacks.cadence import (
    Cadence,
    is_last_validation,
    share_trained,
    trained_epochs,
)
from popqorn_train.callbacks.lightning_packages import (
    Callback,
    LightningModule,
    Trainer,
    TrainerFn,
    rank_zero_info,
    rank_zero_warn,
)
from popqorn_train.callbacks.progress import above_bars
from popqorn_train.callbacks.reports import Reports
from popqorn_train.callbacks.set_certifier import SetCertifier


class MonitorHooks(Callback):
    """The hooks of ``CertifiedRadiusMonitor``, which makes the parts that they use.

    Args:
        certifier: certifies the chosen samples.
        cadence: says when.
        reports: shows and keeps what was certified.
    """

    def __init__(self, certifier: SetCertifier, cadence: Cadence, reports: Reports) -> None:
        self._certifier, self._cadence, self._reports = certifier, cadence, reports
        self._loaded: dict[str, Any] | None = None  # of a checkpoint, until fit starts
        self._told = False  # that epochs are skipped

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fail before training, not after its first epoch."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        names = [other._reports.name for other in callbacks if isinstance(other, type(self))]
        if names.count(self._reports.name) > 1:
            raise ValueError(
                f"two CertifiedRadiusMonitors have the `name` {self._reports.name!r} and would log "
                "under the same keys; give each its own."
            )
        self._loaded = None  # of another fit: what is resumed here is loaded after this
        self._certifier.setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew, unless resumed; say so where nothing will ever be certified."""
        if self._loaded is not None:
            self._certifier.restore(self._loaded["certifier"])
            self._cadence.restore(self._loaded["cadence"])
            self._reports.restore(self._loaded["reports"])
        elif trainer.global_step == 0:
            self._cadence.reset()
            self._reports.forget()
            self._certifier.restart()
        self._loaded, self._told = None, False
        if not trainer.enable_validation:
            rank_zero_warn(
                "CertifiedRadiusMonitor certifies nothing: fit has no validation. Pass "
                "val_dataloaders, and define validation_step."
            )
        self._certifier.start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; say so where validation has nothing to certify."""
        if trainer.val_dataloaders is not None and not sum(trainer.num_val_batches):
            rank_zero_warn("CertifiedRadiusMonitor certifies nothing: `val_dataloaders` is empty.")
        self._certifier.ready(pl_module)
        self._cadence.start(time.monotonic())

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on nothing is fresh."""
        self._certifier.forget_fresh(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether to certify, and which samples."""
        if trainer.sanity_checking:
            self._certifier.check_order(trainer)
            return
        started = time.perf_counter()
        with above_bars(trainer):
            due, whole = self._due(trainer), _whole(trainer)
            epoch = self._cadence.epoch_seconds(trained_epochs(trainer))
            self._certifier.begin(trainer, due=due, whole=whole, epoch=epoch)
        self._cadence.spend(time.perf_counter() - started)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the samples."""
        with above_bars(trainer):
            self._certifier.begin(trainer, due=True)

    def _due(self, trainer: Trainer) -> bool:
        """Whether to certify; the clock of the first process decides for all."""
        if trainer.state.fn != TrainerFn.FITTING:
            return True
        final, trained = is_last_validation(trainer), share_trained(trainer)
        now = time.monotonic()
        due = self._cadence.due(trainer.current_epoch, now, final=final, trained=trained)
        if not due and not self._told and self._cadence.too_costly():
            self._told = True
            rank_zero_info(
                f"CertifiedRadiusMonitor skips epochs: {self._certifier.takes} "
                f"{self._cadence.cost:.2g} s, more than max_overhead={self._cadence.max_overhead} "
                "times the rest of the training allows. certification/fresh is 1 in the epochs "
                "that are certified."
            )
        return bool(trainer.strategy.broadcast(due))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Set samples aside, and certify them when the last one has come."""
        at = batch_idx, dataloader_idx
        with above_bars(trainer):
            if trainer.sanity_checking:
                self._certifier.pre_flight(trainer, pl_module, batch, at)
            else:
                self._certifier.collect(trainer, pl_module, batch, at)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Set samples aside, and certify them when the last one has come."""
        with above_bars(trainer):
            self._certifier.collect(trainer, pl_module, batch, (batch_idx, dataloader_idx))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was certified in this epoch."""
        if not trainer.sanity_checking:
            with above_bars(trainer):
                self._certifier.log(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was certified."""
        with above_bars(trainer):
            self._certifier.log(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep and show what was certified, and book what all of it has cost."""
        spent = self._certifier.publish(trainer)
        if trainer.state.fn == TrainerFn.FITTING and spent is not None:
            self._cadence.done(trainer.current_epoch, *spent)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep and show what was certified."""
        self._certifier.publish(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log what was certified in the background."""
        if self._certifier.has_news():
            with above_bars(trainer):
                self._certifier.arrivals(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for what is certified in the background."""
        with above_bars(trainer):
            self._certifier.finish(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave nothing running."""
        self._certifier.stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show what is left."""
        self._certifier.stop()
        self._reports.finish(trainer)


def _whole(trainer: Trainer) -> bool:
    """Whether all samples are certified, whatever ``spread`` is."""
    return trainer.state.fn != TrainerFn.FITTING or is_last_validation(trainer)
