"""Notice that certified training collapses, and rescue it."""

import math
from typing import Any, Literal

from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from popqorn_train.callbacks.epsilon import EpsilonSchedule
from popqorn_train.callbacks.lightning_packages import (
    Callback,
    LightningModule,
    Trainer,
    rank_zero_warn,
)
from popqorn_train.callbacks.loss_sampler import LossSampler
from popqorn_train.callbacks.snapshots import Snapshot, Snapshots
from popqorn_train.training.collapse import Collapse, LossSample
from popqorn_train.training.loss import CertifiedLoss

Action = Literal["rollback", "slow", "stop", "warn"]
_ACTIONS = ("rollback", "slow", "stop", "warn")
_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


class CertifiedTrainingGuard(Callback):
    """Watch whether certified training learns, and rescue it when it collapses.

    Every few steps it looks at what the certified losses of the module see: predictions of the
    batch, the bound loss, and the intervals of hidden and cell states (collapse.py), from the
    pass that the loss makes anyway. A training has collapsed when for ``patience`` steps either
    intervals drown what states tell apart and the bound loss is that of a guess, or predictions
    are constant and intervals no better. Then it acts, says why in one line, and goes on watching.
    A step whose gradient is not finite is skipped and counted.

    Logged at every look as ``training_guard/modal_share``, ``/bound_loss`` (in units of ln C),
    ``/hidden_radius``, ``/wide`` (share of units whose radius is above .95), ``/ratio_first``,
    ``/ratio_middle``, ``/ratio_last`` (radius to signal of the state), ``/cell_radius``,
    ``/gradient_norm``, ``/skipped_steps`` and ``/rescues``.

    Args:
        on_collapse: ``"rollback"`` goes back to the last good weights and optimizer state, or to
            those of the start, and makes the ramp of ``EpsilonSchedule`` go back too and run more
            slowly; ``"slow"`` does the latter alone; ``"stop"`` ends training; ``"warn"`` only
            says so.
        every_n_steps: how often to look, in optimizer steps.
        patience: steps that must look bad in a row.
        max_ratio: radius to signal above which intervals drown what states tell apart.
        max_constancy: share of the predictions of one class, beyond that of the labels, above
            which they count as constant.
        slower: factor of the speed of the ramp at every rescue.
        max_rescues: rescues before training is stopped.

    Attributes:
        rescues: how many there were.
        skipped: steps that were skipped.

    Raises:
        ValueError: an argument out of range; before ``fit``, a module without a
            ``CertifiedLoss``, ``"slow"`` without an ``EpsilonSchedule``, or a strategy that
            shards weights.
    """

    def __init__(
        self,
        on_collapse: Action = "rollback",
        *,
        every_n_steps: int = 5,
        patience: int = 50,
        max_ratio: float = 5.0,
        max_constancy: float = 0.7,
        slower: float = 0.7,
        max_rescues: int = 3,
    ) -> None:
        if on_collapse not in _ACTIONS:
            raise ValueError(f"`on_collapse` must be one of {_ACTIONS}, got {on_collapse!r}.")
        counts = {"every_n_steps": every_n_steps, "patience": patience, "max_rescues": max_rescues}
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"`{name}` must be at least 1, got {count!r}.")
        if not max_ratio > 0:
            raise ValueError(f"`max_ratio` must be positive, got {max_ratio}.")
        for name, share in (("max_constancy", max_constancy), ("slower", slower)):
            if not 0 < share <= 1:
                raise ValueError(f"`{name}` must lie between 0 and 1, got {share}.")
        self.on_collapse: Action = on_collapse
        self.slower, self.max_rescues = slower, max_rescues
        self.rescues = self.skipped = 0
        self._sampler = LossSampler(every_n_steps)
        self._collapse = Collapse(max_ratio, max_constancy, patience)
        self._snapshots = Snapshots()
        self._broken = 0  # steps in a row whose gradient was not finite
        self._norm = math.nan
        self._schedule: EpsilonSchedule | None = None
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Counts, and the weights to go back to, as plain values and tensors."""
        return {
            "counts": [self.rescues, self.skipped, self._broken],
            "collapse": self._collapse.state(),
            "snapshots": self._snapshots.state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what ``state_dict`` saved; a fit that starts next goes on from there."""
        self._loaded = state_dict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fail before training, not when it collapses."""
        self._loaded = None  # of another fit: what is resumed here is loaded after this
        if stage != "fit":
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._schedule = next((c for c in callbacks if isinstance(c, EpsilonSchedule)), None)
        strategy = type(trainer.strategy).__name__
        if not _losses(pl_module):
            raise ValueError(
                f"CertifiedTrainingGuard found no CertifiedLoss in {type(pl_module).__name__}; "
                "make it an attribute of the module, or leave the guard out."
            )
        if self.on_collapse == "slow" and self._schedule is None:
            raise ValueError(
                "`on_collapse`='slow' needs an EpsilonSchedule among the callbacks; add one, or "
                "choose another action."
            )
        if strategy in _SHARDED:
            raise ValueError(
                f"CertifiedTrainingGuard needs all weights in every process, got {strategy}; "
                "recurrent classifiers are small: use strategy='ddp'."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where a resumed run stopped, or remember where training begins."""
        if self._loaded is not None:
            self.rescues, self.skipped, self._broken = self._loaded["counts"]
            self._collapse.restore(self._loaded["collapse"])
            self._snapshots.restore(self._loaded["snapshots"])
        elif trainer.global_step == 0:
            self.rescues = self.skipped = self._broken = 0
            self._collapse.forget()
            self._snapshots.forget()
        self._loaded = None
        if self.on_collapse == "rollback":
            self._snapshots.begin(self._snapshot(trainer, pl_module))
        self._sampler.attach(_losses(pl_module))

    def _snapshot(self, trainer: Trainer, pl_module: LightningModule) -> Snapshot:
        ramp = 0.0 if self._schedule is None else self._schedule.clock.steps
        return Snapshot.of(trainer, pl_module, ramp)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Decide whether to look at this step."""
        self._sampler.begin(trainer.global_step)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Skip a step whose gradient is not finite; in half precision the scaler does it."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        norm: Tensor = get_total_norm(gradients)
        self._norm = norm.item()
        if math.isfinite(self._norm):
            self._broken = 0
            return
        self._broken += 1
        self.skipped += 1
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            for weight in weights:
                weight.grad = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After a step that was looked at: judge, log, keep good weights or act."""
        if not self._sampler.ends(trainer.global_step):
            return
        seen, broken = self._sampler.together(trainer, self._broken)
        if seen is not None:
            self._log(pl_module, seen)
            self._judge(trainer, pl_module, seen)
        if broken >= self._collapse.patience:
            self._act(trainer, pl_module, f"{broken} gradients in a row were not finite")

    def _log(self, pl_module: LightningModule, seen: LossSample) -> None:
        values = {
            "modal_share": seen.modal_share,
            "bound_loss": seen.bound,
            **seen.widths,
            "gradient_norm": self._norm,
            "skipped_steps": float(self.skipped),
            "rescues": float(self.rescues),
        }
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        pl_module.log_dict({f"training_guard/{name}": value for name, value in finite.items()})

    def _judge(self, trainer: Trainer, pl_module: LightningModule, seen: LossSample) -> None:
        self._snapshots.told(ranged=bool(seen.widths))
        reason = self._collapse.tell(seen, self._sampler.every_n_steps)
        if reason is not None:
            self._act(trainer, pl_module, reason)
        elif self.on_collapse == "rollback" and self._collapse.good(seen):
            self._snapshots.keep(self._snapshot(trainer, pl_module))

    def _act(self, trainer: Trainer, pl_module: LightningModule, reason: str) -> None:
        """Do what was asked for in the case of a collapse, and say so in one line."""
        self._broken = 0
        said = f"CertifiedTrainingGuard, step {trainer.global_step}: training collapsed ({reason})."
        if self.on_collapse == "warn":
            rank_zero_warn(said)
        elif self.on_collapse == "stop" or self.rescues >= self.max_rescues:
            trainer.should_stop = True
            rank_zero_warn(f"{said} It is stopped after {self.rescues} rescues.")
        else:
            self.rescues += 1
            self._collapse.forget()
            done = self._rescue(trainer, pl_module)
            rank_zero_warn(f"{said} {done} (rescue {self.rescues} of {self.max_rescues}).")

    def _rescue(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Go back and slow down, as far as asked for."""
        done, ramp = [], None
        if self.on_collapse == "rollback":
            snapshot = self._snapshots.take()
            snapshot.restore(trainer, pl_module)
            done.append(f"back to the weights of step {snapshot.step}")
            ramp = snapshot.ramp
        if self._schedule is not None:
            self._schedule.restart(ramp, self.slower)
            speed = self._schedule.clock.speed
            done.append(f"the ramp goes on at {speed:.3g} of its speed")
        return ", ".join(done).capitalize()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop looking."""
        self._sampler.release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop looking."""
        self._sampler.release()


def _losses(module: LightningModule) -> list[CertifiedLoss]:
    return [part for part in module.modules() if isinstance(part, CertifiedLoss)]
