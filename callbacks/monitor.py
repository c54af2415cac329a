"""Certified radii during validation."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from popqorn_train.bound import BoundModel, Inputs, as_tuple, bound
from popqorn_train.certificate import certify, check_confirm
from popqorn_train.methods import Method, method_named
from popqorn_train.metrics import CertifiedAccuracyCurve
from popqorn_train.perturbation import LpBall
from popqorn_train.radius import search_radius
from popqorn_train.region import Scope
from popqorn_train.steps import pick_samples

Unpack = Callable[[Any], tuple[Inputs, Tensor]]
_CHUNK = 64  # samples certified at once


class MonitoredRadii(NamedTuple):
    """One certification of the subset.

    Attributes:
        epoch: the epoch being trained.
        positions: ``(S,)`` of the samples in the validation set.
        labels: ``(S,)``.
        radii: ``(S,)`` certified; 0 where the prediction is wrong.
        capped: ``(S,)`` whether the radius is the largest that was tried.
    """

    epoch: int
    positions: Tensor
    labels: Tensor
    radii: Tensor
    capped: Tensor


class _Picked(NamedTuple):
    """Samples set aside until all have come."""

    positions: Tensor
    inputs: tuple[Any, ...]
    labels: Tensor


def unpack_pair(batch: Any) -> tuple[Inputs, Tensor]:
    """Read a batch ``(inputs, target)``.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(
            "a validation batch must be (inputs, target), got "
            f"{type(batch).__name__}; pass `unpack` to say where they are."
        )
    inputs, target = batch
    return tuple(inputs) if isinstance(inputs, list) else inputs, target


class CertifiedRadiusMonitor(Callback):
    """Certify a fixed part of the validation set and log its radii.

    Logs ``certified_radius/mean``, ``/median``, ``/p10`` and ``/capped_fraction``, and
    ``certified_accuracy/<epsilon>`` with the dot of epsilon written ``p`` (0.05: ``0p05``).
    Samples are spread evenly over the first validation loader, which must not shuffle. Training
    is not changed: not by one bit.

    Args:
        p: norm of the ball.
        samples: how many samples to certify.
        every_n_epochs: certify at the first validation and then this often.
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
        confirm: Any = "float64",
        model: str | None = None,
        unpack: Unpack = unpack_pair,
    ) -> None:
        for name, count in (("samples", samples), ("every_n_epochs", every_n_epochs)):
            if count < 1:
                raise ValueError(f"`{name}` must be at least 1, got {count}.")
        check_confirm(confirm)
        LpBall(0.0, p, frames=frames, scope=scope, low=low, high=high)
        self.samples, self.every_n_epochs = samples, every_n_epochs
        self.curve = CertifiedAccuracyCurve(epsilons)
        self.model, self.unpack = model, unpack
        ball: dict[str, Any] = dict(p=p, frames=frames, scope=scope, low=low, high=high)
        search = {"max_radius": max_radius, "rtol": rtol, "confirm": confirm}
        self._ball = ball
        self._search = {**ball, **search, "method": method_named(method)}
        self.last: MonitoredRadii | None = None
        self._wanted: set[int] = set()
        self._seen = 0
        self._picked: list[_Picked] = []
        self._due = False

    @property
    def state_key(self) -> str:
        """Keep monitors with other balls apart in a checkpoint."""
        ball = {name: str(value) for name, value in self._ball.items()}
        return self._generate_state_key(model=self.model, **ball)

    def state_dict(self) -> dict[str, Any]:
        """The newest radii, as plain values and tensors."""
        return {} if self.last is None else {"last": tuple(self.last)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` saved."""
        self.last = MonitoredRadii(*state_dict["last"]) if "last" in state_dict else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fail before training, not after its first epoch."""
        if trainer.world_size > 1:
            raise ValueError(
                f"CertifiedRadiusMonitor runs in one process, got {trainer.world_size}; train "
                "with devices=1, or certify afterwards with certified_radius."
            )
        self._module(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether to certify, and which samples."""
        self._seen, self._picked = 0, []
        since = math.inf if self.last is None else trainer.current_epoch - self.last.epoch
        waiting = trainer.state.fn == TrainerFn.FITTING and 0 <= since < self.every_n_epochs
        self._due = not trainer.sanity_checking and not waiting
        loaders = trainer.val_dataloaders
        loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
        batches = (
            trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        )
        total = _positions(loader, batches[0])
        count = min(self.samples, total)
        self._wanted = {index * total // count for index in range(count)}

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
        inputs, target = self.unpack(batch)
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
        names = [f"certified_accuracy/{_dotless(epsilon)}" for epsilon in self.curve.epsilons]
        pl_module.log_dict(dict(zip(names, self.curve.compute().tolist(), strict=True)))
        median = radii[(len(radii) - 1) // 2].item()
        pl_module.log("certified_radius/median", median, prog_bar=True)
        pl_module.log_dict(
            {
                "certified_radius/mean": radii.mean().item(),
                "certified_radius/p10": radii[(len(radii) - 1) // 10].item(),
                "certified_radius/capped_fraction": self.last.capped.float().mean().item(),
            }
        )

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
        axis = module.batch_axis(inputs)
        first = torch.zeros(1, dtype=torch.long, device=target.device)
        one = tuple(pick_samples(value, first, axis) for value in as_tuple(inputs))
        ball, method = LpBall(0.0, **self._ball), self._search["method"]
        certify(module, one, target[:1], ball, method=method, confirm=None)

    def _pick(self, module: BoundModel, inputs: Inputs, target: Tensor) -> None:
        """Set the wanted samples of a batch aside."""
        here = range(self._seen, self._seen + len(target))
        self._seen += len(target)
        positions = torch.tensor([position for position in here if position in self._wanted])
        if not len(positions):
            return
        chosen = (positions - here.start).to(target.device)
        axis = module.batch_axis(inputs)
        picked = tuple(pick_samples(value, chosen, axis) for value in as_tuple(inputs))
        self._picked.append(_Picked(positions, picked, target[chosen]))

    def _certify(self, trainer: Trainer, module: BoundModel, axis: int) -> None:
        """Search the radii, starting from the last ones of the same samples."""
        known: dict[int, float] = {}
        if self.last is not None:
            known = dict(zip(self.last.positions.tolist(), self.last.radii.tolist(), strict=True))
        columns = []
        for positions, inputs, labels in _grouped(self._picked, axis):
            start = labels.new_tensor(
                [known.get(position, 0.0) for position in positions.tolist()], dtype=torch.float64
            )
            found = search_radius(module, inputs, labels, start=start, **self._search)
            columns.append((positions, labels.cpu(), found.radius.cpu(), found.capped.cpu()))
        parts = [torch.cat(column) for column in zip(*columns, strict=True)]
        self.last = MonitoredRadii(trainer.current_epoch, *parts)
        self._picked = []


def _positions(loader: Any, batches: float) -> int:
    """Number of samples that a loader will give, in a fixed order."""
    in_order = (
        isinstance(loader, DataLoader)
        and isinstance(loader.sampler, SequentialSampler)
        and type(loader.batch_sampler) in (BatchSampler, type(None))
    )
    if not in_order:
        sampler = type(getattr(loader, "sampler", loader)).__name__
        raise ValueError(
            "`val_dataloaders` must be a DataLoader that reads in order, so that the certified "
            f"samples stay the same, got {sampler}. Use shuffle=False for validation."
        )
    return int(min(len(loader.dataset), batches * (loader.batch_size or 1)))


def _dotless(epsilon: float) -> str:
    """Name of a number without a dot, which loggers take for a path: 0.05 is 0p05."""
    return f"{epsilon:g}".replace(".", "p")


def _grouped(picked: list[_Picked], axis: int) -> Iterator[_Picked]:
    """Join samples whose inputs have one shape, in chunks that are certified at once."""
    groups: dict[Any, list[_Picked]] = {}
    for item in picked:
        shape = [_shape(value, axis) for value in item.inputs]
        groups.setdefault(str(shape), []).append(item)
    for items in groups.values():
        columns = zip(*[item.inputs for item in items], strict=True)
        inputs = tuple(_joined(column, axis) for column in columns)
        positions = torch.cat([item.positions for item in items])
        labels = torch.cat([item.labels for item in items])
        for chosen in torch.split(torch.arange(len(labels)), _CHUNK):
            there = chosen.to(labels.device)
            some = tuple(pick_samples(value, there, axis) for value in inputs)
            yield _Picked(positions[chosen], some, labels[there])


def _shape(value: Any, axis: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    at = min(axis, value.ndim - 1)
    return (*value.shape[:at], *value.shape[at + 1 :])


def _joined(column: Sequence[Any], axis: int) -> Any:
    first = column[0]
    if not isinstance(first, Tensor):
        return first
    return torch.cat(list(column), min(axis, first.ndim - 1))
