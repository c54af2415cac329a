"""Weights and optimizer state to go back to while a model trains."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.callbacks.lightning_packages import LightningModule, Trainer


class Snapshot(NamedTuple):
    """A moment of training.

    Attributes:
        step: of training.
        ramp: steps of the ramp; 0 without one.
        tensors: weights and buffers by name.
        optimizers: state of each, without learning rates and other settings.
    """

    step: int
    ramp: float
    tensors: dict[str, Tensor]
    optimizers: list[Any]

    @classmethod
    def of(cls, trainer: Trainer, pl_module: LightningModule, ramp: float) -> "Snapshot":
        """Copy what there is."""
        tensors = {name: value.detach().clone() for name, value in _tensors(pl_module)}
        states = [copy.deepcopy(own.state_dict()["state"]) for own in trainer.optimizers]
        return cls(trainer.global_step, ramp, tensors, states)

    def restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back. Learning rates stay: schedulers have gone on."""
        with torch.no_grad():
            for name, value in _tensors(pl_module):
                value.copy_(self.tensors[name])
        for own, state in zip(trainer.optimizers, self.optimizers, strict=True):
            own.load_state_dict({**own.state_dict(), "state": copy.deepcopy(state)})


def _tensors(module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(module.named_parameters(), module.named_buffers())


class Snapshots:
    """The moments worth going back to: the start, and the last one that was good."""

    def __init__(self) -> None:
        self._start: Snapshot | None = None
        self._good: Snapshot | None = None
        self._ranged = False

    def begin(self, start: Snapshot) -> None:
        """Remember the start, unless one is known."""
        self._start = self._start or start

    def told(self, *, ranged: bool) -> None:
        """Take notice of whether there are intervals; what was good before there were is not."""
        if ranged and not self._ranged:
            self._ranged, self._good = True, None

    def keep(self, good: Snapshot) -> None:
        """Remember a good moment."""
        self._good = good

    def take(self) -> Snapshot:
        """The last good one, which has to prove itself anew, or the start."""
        found, self._good = self._good or self._start, None
        assert found is not None
        return found

    def forget(self) -> None:
        """Another training begins."""
        self._start = self._good = None
        self._ranged = False

    def state(self) -> dict[str, Any]:
        """What a resumed training goes on from: plain values and tensors."""
        shots = {"start": self._start, "good": self._good}
        return {"ranged": self._ranged} | {k: shot and shot._asdict() for k, shot in shots.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self._ranged = state["ranged"]
        self._start, self._good = (
            None if state[name] is None else Snapshot(**state[name]) for name in ("start", "good")
        )
