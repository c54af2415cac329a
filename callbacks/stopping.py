"""Early stopping on certified radii."""

from typing import Any

from popqorn_train.callbacks.lightning_packages import (
    Callback,
    EarlyStopping,
    LightningModule,
    Trainer,
)
from popqorn_train.callbacks.monitor import CertifiedRadiusMonitor


class CertifiedEarlyStopping(EarlyStopping):
    """Stop when a certified quantity has not improved for some certifications.

    Lightning keeps the last value of a metric, so that its own ``EarlyStopping`` counts a
    validation without certification as one without improvement. This one counts those alone
    in which a monitor certified every sample.

    Args:
        monitor: logged by a ``CertifiedRadiusMonitor``; greater is better unless ``mode`` says
            otherwise.
        patience: certifications without improvement before training stops.
        mode: ``"max"`` or ``"min"``.
        **options: see ``pytorch_lightning.callbacks.EarlyStopping``.

    Raises:
        ValueError: when fit starts, no ``CertifiedRadiusMonitor`` stands before it among the
            callbacks.
    """

    def __init__(
        self,
        monitor: str = "certified_radius/median",
        *,
        patience: int = 3,
        mode: str = "max",
        **options: Any,
    ) -> None:
        super().__init__(
            monitor, patience=patience, mode=mode, check_on_train_epoch_end=False, **options
        )
        self._watched: CertifiedRadiusMonitor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the monitor that logs the quantity."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        before = callbacks[: callbacks.index(self)]
        monitors = [other for other in before if isinstance(other, CertifiedRadiusMonitor)]
        # The longest name that fits: the nameless monitor fits every key.
        monitors = [other for other in monitors if self.monitor.startswith(other.prefix)]
        if not monitors:
            raise ValueError(
                "CertifiedEarlyStopping needs a CertifiedRadiusMonitor that logs "
                f"`monitor`={self.monitor!r} before it in the list of callbacks; add one."
            )
        self._watched = max(monitors, key=lambda other: len(other.prefix))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count this validation, if it certified."""
        if self._watched is not None and self._watched.fresh:
            super().on_validation_end(trainer, pl_module)
