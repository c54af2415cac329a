"""Weights and optimizer state to go back to while a model trains."""

import copy
import itertools
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor


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


def _tensors(module: LightningModule) -> "itertools.chain[tuple[str, Tensor]]":
    return itertools.chain(module.named_parameters(), module.named_buffers())
