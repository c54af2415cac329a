"""Ramp the objectives of a module while it trains."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, NamedTuple

from popqorn_train.callbacks.lightning_packages import Callback, LightningModule, Trainer
from popqorn_train.training.objective import Objective, check_share
from popqorn_train.training.schedule import LinearRamp, RampClock, SmoothRamp

Numbers = float | tuple[float, ...]


class _Setting(NamedTuple):
    """An attribute that is ramped: a number, or one ramp for each of several."""

    objective: Objective
    name: str
    made: Numbers
    ramps: tuple[LinearRamp, ...]

    def put(self, progress: float) -> None:
        """Set the value when a share ``progress`` of the training is done."""
        values = tuple(ramp.at(progress) for ramp in self.ramps)
        setattr(self.objective, self.name, values if isinstance(self.made, tuple) else values[0])

    def restore(self) -> None:
        """Put the value back with which the objective was made."""
        setattr(self.objective, self.name, self.made)

    def logged(self) -> dict[str, float]:
        """The current value under the name it is logged as."""
        value = getattr(self.objective, self.name)
        if isinstance(value, tuple):
            return {f"certified_training/{self.name}/{i}": x for i, x in enumerate(value)}
        return {f"certified_training/{self.name}": value}


class EpsilonSchedule(Callback):
    """Ramp epsilon, kappa and the other numbers of every ``Objective`` in the module.

    After a warm-up, every number moves from a start to an end value: epsilon, kappa, alpha and
    weights to those that the objective was made with, beta and signal from those. What an
    objective was made with is put back after training. The ramp has a clock of its own, which
    counts optimizer steps and is saved with checkpoints, so that a resumed run has the values of
    one that was not interrupted. Logged as ``certified_training/epsilon``, ``/kappa`` and so on.

    Args:
        warmup: share of training with the start values, from 0 to 1.
        ramp: share of training that the ramp takes, from 0 to 1.
        start_epsilon: epsilon during the warm-up.
        start_kappa: weight of the clean term during the warm-up.
        start_alpha: weight of the bound against the attack during the warm-up; None leaves it.
        start_weights: of every ``Mixture`` during the warm-up; None leaves them.
        end_beta: weight of linear margins after the ramp; None leaves it.
        factor: epsilon of training in multiples of the epsilon that an objective was made with,
            which is the one to certify.
        shape: ``"linear"``, or ``"smooth"``: flat at first, see ``SmoothRamp``.

    Attributes:
        clock: of the ramp.

    Raises:
        ValueError: a number out of range; at the start of ``fit``, a module without an
            ``Objective`` or a training without an end.
    """

    def __init__(
        self,
        *,
        warmup: float = 0.1,
        ramp: float = 0.5,
        start_epsilon: float = 0.0,
        start_kappa: float = 1.0,
        start_alpha: float | None = None,
        start_weights: Sequence[float] | None = None,
        end_beta: float | None = 0.0,
        factor: float = 1.0,
        shape: Literal["linear", "smooth"] = "linear",
    ) -> None:
        if not 0 <= start_epsilon < math.inf:
            raise ValueError(f"`start_epsilon` must not be negative, got {start_epsilon}.")
        shares = {"start_kappa": start_kappa, "start_alpha": start_alpha, "end_beta": end_beta}
        for name, share in shares.items():
            if share is not None:
                check_share(name, share)
        if not 0 < factor < math.inf:
            raise ValueError(f"`factor` must be positive, got {factor}.")
        if shape not in ("linear", "smooth"):
            raise ValueError(f"`shape` must be 'linear' or 'smooth', got {shape!r}.")
        self._shape = (LinearRamp if shape == "linear" else SmoothRamp)(0.0, 1.0, warmup, ramp)
        self._starts: dict[str, Numbers | None] = {
            "epsilon": start_epsilon,
            "kappa": start_kappa,
            "alpha": start_alpha,
            "weights": None if start_weights is None else tuple(start_weights),
        }
        self._end_beta, self._factor = end_beta, factor
        self.clock = RampClock()
        self._settings: list[_Setting] = []
        self._total = 1.0
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The clock, as plain values."""
        return asdict(self.clock)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what ``state_dict`` saved; a fit that starts next goes on from there."""
        self._loaded = state_dict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what was loaded for another fit; what is resumed here is loaded after this."""
        self._loaded = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the objectives and remember what they were made with."""
        found = [module for module in pl_module.modules() if isinstance(module, Objective)]
        if not found:
            raise ValueError(
                f"EpsilonSchedule found no CertifiedLoss or other Objective in "
                f"{type(pl_module).__name__}; make it an attribute of the module, or leave the "
                "schedule out."
            )
        if trainer.estimated_stepping_batches == math.inf:
            raise ValueError(
                "EpsilonSchedule needs to know when training ends; pass max_epochs or max_steps "
                "to the Trainer."
            )
        self._total = max(1.0, float(trainer.estimated_stepping_batches))
        self._settings = [
            setting
            for objective in found
            for name in objective.ramped
            if (setting := self._setting(objective, name)) is not None
        ]
        if self._loaded is not None:
            self.clock = RampClock(**self._loaded)
        elif trainer.global_step == 0:
            self.clock = RampClock()
        self._loaded = None

    def _setting(self, objective: Objective, name: str) -> _Setting | None:
        """How an attribute is ramped; None where it stays."""
        made = getattr(objective, name)
        if name == "epsilon" and not isinstance(made, int | float):
            raise ValueError("EpsilonSchedule ramps one epsilon; give the objective a float.")
        start, end = self._starts.get(name), made
        if name == "beta":
            start, end = made, self._end_beta
        if name == "signal":
            start, end = (made or None), 0.0
        if start is None or end is None:
            return None
        starts, ends = _as_tuple(start), _as_tuple(end)
        if len(starts) != len(ends):
            raise ValueError(
                f"`start_weights` must hold {len(ends)} numbers for the objectives of the "
                f"mixture, got {starts}."
            )
        scale = self._factor if name == "epsilon" else 1.0
        pairs = zip(starts, ends, strict=True)
        ramps = [replace(self._shape, start=start, end=scale * end) for start, end in pairs]
        return _Setting(objective, name, made, tuple(ramps))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set and log the values of this step."""
        progress = self.clock.tell(trainer.global_step) / self._total
        values: dict[str, float] = {}
        for setting in self._settings:
            setting.put(progress)
            values = setting.logged() | values  # where several objectives share a name, the first
        pl_module.log_dict(values)

    def restart(self, steps: float | None, slower: float) -> None:
        """Run the ramp more slowly, perhaps from an earlier step.

        Args:
            steps: of the ramp to go back to, at least to the end of the warm-up; None goes on.
            slower: factor of its speed.
        """
        if steps is not None:
            self.clock.steps = max(steps, self._shape.warmup * self._total)
        self.clock.speed *= slower

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put back what the objectives were made with."""
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put back what the objectives were made with."""
        self._restore()

    def _restore(self) -> None:
        for setting in self._settings:
            setting.restore()
        self._settings = []


def _as_tuple(value: Numbers) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)
