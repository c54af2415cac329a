"""Ramp the certified losses of a module while it trains."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from popqorn_train.loss import CertifiedLoss
from popqorn_train.schedule import LinearRamp


class EpsilonSchedule(Callback):
    """Ramp epsilon and kappa of every ``CertifiedLoss`` in the module.

    The values a loss was made with are where its ramp ends; they are put back after training.
    Progress is that of optimizer steps, so a resumed run goes on where it stopped. Logged as
    ``certified_training/epsilon`` and ``certified_training/kappa``.

    Args:
        warmup: share of training with the start values, from 0 to 1.
        ramp: share of training that the ramp takes, from 0 to 1.
        start_epsilon: epsilon during the warm-up.
        start_kappa: weight of the clean term during the warm-up.

    Raises:
        ValueError: shares out of range; at the start of ``fit``, a module without a
            ``CertifiedLoss`` or a training without an end.
    """

    def __init__(
        self,
        *,
        warmup: float = 0.1,
        ramp: float = 0.5,
        start_epsilon: float = 0.0,
        start_kappa: float = 1.0,
    ) -> None:
        if not 0 <= start_epsilon < float("inf"):
            raise ValueError(f"`start_epsilon` must not be negative, got {start_epsilon}.")
        if not 0 <= start_kappa <= 1:
            raise ValueError(f"`start_kappa` must lie between 0 and 1, got {start_kappa}.")
        self._epsilon = LinearRamp(start_epsilon, start_epsilon, warmup, ramp)
        self._kappa = LinearRamp(start_kappa, start_kappa, warmup, ramp)
        self._ramps: list[tuple[CertifiedLoss, LinearRamp, LinearRamp]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the losses and remember where their ramps end."""
        losses = [module for module in pl_module.modules() if isinstance(module, CertifiedLoss)]
        if not losses:
            raise ValueError(
                f"EpsilonSchedule found no CertifiedLoss in {type(pl_module).__name__}; make it an "
                "attribute of the module, or leave the schedule out."
            )
        if not all(isinstance(loss.epsilon, int | float) for loss in losses):
            raise ValueError("EpsilonSchedule ramps one epsilon; give CertifiedLoss a float.")
        if trainer.estimated_stepping_batches == float("inf"):
            raise ValueError(
                "EpsilonSchedule needs to know when training ends; pass max_epochs or max_steps "
                "to the Trainer."
            )
        self._ramps = [
            (loss, _ending(self._epsilon, loss.epsilon), _ending(self._kappa, loss.kappa))
            for loss in losses
        ]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set and log the values of this step."""
        progress = trainer.global_step / max(1, trainer.estimated_stepping_batches)
        for loss, epsilon, kappa in self._ramps:
            loss.epsilon, loss.kappa = epsilon.at(progress), kappa.at(progress)
        loss = self._ramps[0][0]
        values = {"epsilon": loss.epsilon, "kappa": loss.kappa}
        pl_module.log_dict({f"certified_training/{name}": value for name, value in values.items()})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the end values back."""
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put the end values back."""
        self._restore()

    def _restore(self) -> None:
        for loss, epsilon, kappa in self._ramps:
            loss.epsilon, loss.kappa = epsilon.end, kappa.end
        self._ramps = []


def _ending(ramp: LinearRamp, end: float) -> LinearRamp:
    return LinearRamp(ramp.start, end, ramp.warmup, ramp.ramp)
