"""When to certify, so that training does not slow down by more than a given share."""

import math
from typing import Any

from popqorn_train.callbacks.lightning_packages import Trainer, TrainerFn


class Cadence:
    """Decides at every validation of a fit whether it is the turn to certify.

    The first validation of every fit, resumed or not, and the last one are always certified:
    whoever watches the values needs them. In between, one is skipped if it comes too soon, if
    certifying now would take more than ``max_overhead`` times what the rest of training has taken,
    or if certifying now and once more at the end would take more than that of the whole fit.

    Args:
        every_n_epochs: least number of epochs from one certification to the next.
        max_overhead: seconds certifying a second of the rest of training; None sets no limit.
        parts: certified one at a time, but all of them at the end.

    Attributes:
        spent: seconds spent certifying.
        elapsed: seconds of training and validation without that.
        cost: seconds that the next certification of a part may take.
        epoch: of the last certification.
        skipped: validations skipped since.
    """

    def __init__(self, every_n_epochs: int, max_overhead: float | None, parts: int = 1) -> None:
        self.every_n_epochs, self.max_overhead, self.parts = every_n_epochs, max_overhead, parts
        self.spent = self.elapsed = self.cost = 0.0
        self.epoch: int | None = None
        self.skipped = 0
        self._since: float | None = None
        self._first, self._trained = True, 1.0

    def start(self, now: float) -> None:
        """Start the clock of a fit."""
        self._since, self._first = now, True

    def due(self, epoch: int, now: float, *, final: bool, trained: float = 1.0) -> bool:
        """Whether to certify at the validation of an epoch.

        Args:
            epoch: being trained.
            now: seconds on any clock.
            final: whether it is the last validation.
            trained: share of the fit that is behind it; 1 where nobody knows.
        """
        self._trained = trained
        if self._since is not None:
            self.elapsed += now - self._since
        self._since = now
        # An epoch may have several validations; with n = 1 each one counts.
        early = (
            self.epoch is not None
            and self.every_n_epochs > 1
            and epoch - self.epoch < self.every_n_epochs
        )
        due = final or self._first or not (early or self.too_costly())
        self._first = False
        self.skipped = 0 if due else self.skipped + 1
        return due

    def too_costly(self) -> bool:
        """Whether certifying a part now, or that and all at the end, would exceed the budget."""
        if self.max_overhead is None:
            return False
        budget, after = self.max_overhead * self.elapsed, self.spent + self.cost
        return after > budget or after + self.parts * self.cost > budget / self._trained

    def epoch_seconds(self, epochs: float) -> float:
        """How long one of so many epochs has taken; without any, as long as anything."""
        return self.elapsed / epochs if epochs > 0 else math.inf

    def done(self, epoch: int, seconds: float, share: float = 1.0) -> None:
        """Book a certification.

        Args:
            epoch: in which it was.
            seconds: that it took.
            share: of the samples of a part there was something to search for. Wrong predictions
                cost nothing: a model that has learned little is cheap, and will not stay so. How
                much of the seconds grows with the samples is not known: between none and all.
        """
        self.epoch, self.cost = epoch, seconds / math.sqrt(max(share, 0.01))
        self.spend(seconds)

    def spend(self, seconds: float) -> None:
        """Book time that went to certification and not to training."""
        self.spent += seconds
        self.elapsed -= seconds

    def state(self) -> dict[str, Any]:
        """What a resumed fit needs, as plain values."""
        names = ("spent", "elapsed", "cost", "epoch", "skipped")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        for name, value in state.items():
            setattr(self, name, value)

    def reset(self) -> None:
        """Forget everything: another fit begins."""
        self.spent = self.elapsed = self.cost = 0.0
        self.epoch, self.skipped = None, 0


def trained_epochs(trainer: Trainer) -> float:
    """How many epochs a fit has trained so far, parts counted; 0 outside of it."""
    if trainer.state.fn != TrainerFn.FITTING:
        return 0.0
    batches = trainer.num_training_batches
    if batches == math.inf:
        return float(trainer.current_epoch + 1)
    return (trainer.fit_loop.total_batch_idx + 1) / batches


def share_trained(trainer: Trainer) -> float:
    """How much of a fit is behind it, from 0 to 1; 1 where neither epochs nor steps end it."""
    shares = [
        done / planned
        for done, planned in (
            (trained_epochs(trainer), trainer.max_epochs or -1),
            (trainer.global_step, trainer.max_steps),
        )
        if planned > 0
    ]
    return min(max(*shares, 1e-3), 1.0) if shares else 1.0


def is_last_validation(trainer: Trainer) -> bool:
    """Whether no validation of this fit comes after the one that starts, as far as is known."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return True
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return False
    epochs, batches = trainer.check_val_every_n_epoch, trainer.num_training_batches
    every = trainer.val_check_batch or batches
    if epochs is None:
        return trainer.fit_loop.total_batch_idx + 1 + every > trainer.max_epochs * batches
    later_epoch = trainer.current_epoch + 1 + epochs <= trainer.max_epochs
    later_batch = trainer.fit_loop.batch_idx + 1 + every <= batches
    return not (later_epoch or later_batch)
