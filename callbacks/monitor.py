"""Certified radii during validation."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from popqorn_train.bound import BoundModel, Inputs, bound
from popqorn_train.callbacks.subset import (
    Picked,
    Unpack,
    grouped,
    positions_in,
    unpack_pair,
    unpacked,
)
from popqorn_train.certificate import Confirm, certify
from popqorn_train.methods import Method, method_named
from popqorn_train.metrics import CertifiedAccuracyCurve
from popqorn_train.perturbation import LpBall
from popqorn_train.radius import check_search, search_radius
from popqorn_train.region import Scope


class MonitoredRadii(NamedTuple):
    """One certification of the subset.

    Attributes:
        epoch: the epoch being trained.
        positions: ``(S,)`` of the samples in the validation set.
        labels: ``(S,)``.
        radii: ``(S,)`` certified; 0 where the prediction is wrong.
        correct: ``(S,)`` whether the clean prediction is right.
        capped: ``(S,)`` whether the radius is the largest that was tried.
    """

    epoch: int
    positions: Tensor
    labels: Tensor
    radii: Tensor
    correct: Tensor
    capped: Tensor


class CertifiedRadiusMonitor(Callback):
    """Certify a fixed part of the validation set and log its radii.

    Logs ``certified_radius/mean``, ``/median``, ``/p10`` and ``/capped_fraction``, and
    ``certified_accuracy/<epsilon>`` with the dot of epsilon written ``p`` (0.05: ``0p05``);
    ``certified_accuracy/0`` is the clean accuracy on the same samples. The progress bar shows the
    median radius as ``cert_r``. Samples are spread evenly over the first validation loader, which
    must not shuffle. Training is not changed: not by one bit.

    Args:
        p: norm of the ball.
        samples: how many samples to certify.
        every_n_epochs: certify at the first validation, then this often, and in the last epoch.
        epsilons: where certified accuracy is logged, increasing, in the units of the input.
        method: bounding method.
        frames: ``(T,)`` mask of the frames that move; see ``LpBall``, as for the next three.
        scope: one ball a frame, or one for the sequence.
        low: least value of an input.
        high: greatest value of an input.
        max_radius: largest radius tried, see ``certified_radius``.
        rtol: relative precision of the radii.
        confirm: ``"float64"`` proves every radius again in float64.
        model: name of the sub-module that gives logits; None takes the LightningModule.
        unpack: from a validation batch to ``(inputs, target)``.
        name: put before every logged key as ``<name>/``; tells several monitors apart.

    Attributes:
        last: the newest ``MonitoredRadii``, or None.

    Raises:
        ValueError, TypeError: an argument out of range; before validation, a loader that
            shuffles; at the first batch, inputs or labels that do not fit.
        UnsupportedModelError: at the sanity check, a model that cannot be bounded.
    """

    def __init__(
        self,
        p: float = math.inf,
        *,
        samples: int = 128,
        every_n_epochs: int = 1,
        epsilons: Sequence[float] = (0.01, 0.02, 0.05, 0.1),
        method: str | Method = "popqorn",
        frames: Tensor | None = None,
        scope: Scope = "frame",
        low: float | Tensor | None = None,
        high: float | Tensor | None = None,
        max_radius: float | None = None,
        rtol: float = 1e-2,
        confirm: Confirm = "float64",
        model: str | None = None,
        unpack: Unpack = unpack_pair,
        name: str = "",
    ) -> None:
        for argument, count in (("samples", samples), ("every_n_epochs", every_n_epochs)):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"`{argument}` must be at least 1, got {count!r}.")
        if not callable(unpack):
            raise TypeError(f"`unpack` must be a function, got {type(unpack).__name__}.")
        check_search(rtol, max_radius, confirm)
        self._ball = LpBall(0.0, p, frames=frames, scope=scope, low=low, high=high)
        self._search: dict[str, Any] = {
            "method": method_named(method),
            "max_radius": max_radius,
            "rtol": rtol,
            "confirm": confirm,
        }
        self.samples, self.every_n_epochs = samples, every_n_epochs
        self.curve = CertifiedAccuracyCurve(epsilons)
        self.model, self.unpack, self.name = model, unpack, name
        self.last: MonitoredRadii | None = None
        self._epoch: int | None = None  # of the last certification in this fit
        self._resumed = False
        self._wanted: set[int] = set()
        self._seen = 0
        self._picked: list[Picked] = []
        self._due = False

    @property
    def state_key(self) -> str:
        """Keep monitors with other settings apart in a checkpoint."""
        settings = {name: str(value) for name, value in self._search.items()}
        settings["ball"] = str(self._ball)
        return self._generate_state_key(name=self.name, model=self.model, **settings)

    def state_dict(self) -> dict[str, Any]:
        """The newest radii, as plain values and tensors."""
        return {} if self.last is None else {"last": tuple(self.last)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` saved."""
        self.last = MonitoredRadii(*state_dict["last"]) if "last" in state_dict else None
        self._epoch, self._resumed = None if self.last is None else self.last.epoch, True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fail before training, not after its first epoch."""
        if trainer.world_size > 1:
            raise ValueError(
                f"CertifiedRadiusMonitor runs in one process, got {trainer.world_size}; train "
                "with devices=1, or certify afterwards with certified_radius."
            )
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [other for other in callbacks if isinstance(other, CertifiedRadiusMonitor)]
        if sum(other.name == self.name for other in others) > 1:
            raise ValueError(
                f"two CertifiedRadiusMonitors have the `name` {self.name!r} and would log under "
                "the same keys; give each its own."
            )
        self._module(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting epochs anew; say so where nothing will ever be certified."""
        if not self._resumed:
            self._epoch = None
        self._resumed = False
        if not trainer.enable_validation:
            rank_zero_warn(
                "CertifiedRadiusMonitor certifies nothing: fit has no validation. Pass "
                "val_dataloaders, and define validation_step."
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether to certify, and which samples."""
        self._seen, self._picked = 0, []
        self._due = not trainer.sanity_checking and not self._waits(trainer)
        loaders = trainer.val_dataloaders
        if isinstance(loaders, dict):
            loaders = list(loaders.values())
        loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
        batches = (
            trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        )
        total = positions_in(loader, batches[0])
        count = min(self.samples, total)
        self._wanted = {index * total // count for index in range(count)}

    def _waits(self, trainer: Trainer) -> bool:
        """Whether this validation of a fit is passed over."""
        final = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.state.fn != TrainerFn.FITTING or self._epoch is None or final:
            return False
        # An epoch may have several validations; with n = 1 each one counts.
        return self.every_n_epochs > 1 and trainer.current_epoch - self._epoch < self.every_n_epochs

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect samples, and certify them when the last one has come."""
        if dataloader_idx > 0 or not (self._due or trainer.sanity_checking):
            return
        inputs, target = unpacked(self.unpack, batch)
        if trainer.sanity_checking:
            if batch_idx == 0:
                self._pre_flight(bound(self._module(pl_module)), inputs, target)
            return
        module = bound(self._module(pl_module))
        self._pick(module, inputs, target)
        if batch_idx == int(trainer.num_val_batches[0]) - 1:
            self._certify(trainer, module, module.batch_axis(inputs))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was certified in this epoch."""
        if not self._due or self.last is None:
            return
        radii = self.last.radii.sort().values
        self.curve.reset()
        self.curve.update(radii)
        accuracies = zip(
            self.curve.epsilons, self.curve.compute().reshape(-1).tolist(), strict=True
        )
        median = radii[(len(radii) - 1) // 2].item()
        values = {
            "certified_radius/median": median,
            "certified_radius/mean": radii.mean().item(),
            "certified_radius/p10": radii[(len(radii) - 1) // 10].item(),
            "certified_radius/capped_fraction": self.last.capped.float().mean().item(),
            "certified_accuracy/0": self.last.correct.float().mean().item(),
            **{f"certified_accuracy/{_dotless(epsilon)}": share for epsilon, share in accuracies},
        }
        prefix = f"{self.name}/" if self.name else ""
        pl_module.log_dict({prefix + key: value for key, value in values.items()})
        pl_module.log(f"{prefix}cert_r", median, prog_bar=True, logger=False)

    def _module(self, pl_module: LightningModule) -> nn.Module:
        if self.model is None:
            return pl_module
        try:
            return pl_module.get_submodule(self.model)
        except AttributeError as error:
            known = ", ".join(name for name, _ in pl_module.named_children())
            raise ValueError(
                f"`model` must name a sub-module of {type(pl_module).__name__} ({known}), got "
                f"{self.model!r}."
            ) from error

    def _pre_flight(self, module: BoundModel, inputs: Inputs, target: Tensor) -> None:
        """Certify one sample, so that what cannot be bounded fails before hours of training."""
        first = torch.zeros(1, dtype=torch.long)
        one = Picked.of(first, inputs, target, first, module.batch_axis(inputs))
        method = self._search["method"]
        certify(module, one.inputs, one.labels, self._ball, method=method, confirm=None)

    def _pick(self, module: BoundModel, inputs: Inputs, target: Tensor) -> None:
        """Set the wanted samples of a batch aside."""
        here = range(self._seen, self._seen + len(target))
        self._seen += len(target)
        positions = torch.tensor([position for position in here if position in self._wanted])
        if not len(positions):
            return
        axis = module.batch_axis(inputs)
        self._picked.append(Picked.of(positions, inputs, target, positions - here.start, axis))

    def _certify(self, trainer: Trainer, module: BoundModel, axis: int) -> None:
        """Search the radii, starting from the last ones of the same samples."""
        known: dict[int, float] = {}
        if self.last is not None:
            known = dict(zip(self.last.positions.tolist(), self.last.radii.tolist(), strict=True))
        columns = []
        for positions, inputs, labels in grouped(self._picked, axis):
            start = labels.new_tensor(
                [known.get(position, 0.0) for position in positions.tolist()], dtype=torch.float64
            )
            found = search_radius(module, inputs, labels, self._ball, start=start, **self._search)
            results = (found.radius, found.correct, found.capped)
            columns.append((positions, labels.cpu(), *[result.cpu() for result in results]))
        parts = [torch.cat(column) for column in zip(*columns, strict=True)]
        self.last = MonitoredRadii(trainer.current_epoch, *parts)
        if trainer.state.fn == TrainerFn.FITTING:
            self._epoch = self.last.epoch
        self._picked = []


def _dotless(epsilon: float) -> str:
    """Name of a number without a dot, which loggers take for a path: 0.05 is 0p05."""
    return f"{epsilon:g}".replace(".", "p")
