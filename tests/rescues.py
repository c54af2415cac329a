"""A certified training that is watched, a guard that is told when to act, and a record of both."""

import math

import pytorch_lightning as pl
import torch

from popqorn_train import objectives
from popqorn_train.callbacks import CertifiedTrainingGuard
from popqorn_train.training.collapse import Collapse
from tests.fitting import Classifier

COLLAPSED = "ignore:CertifiedTrainingGuard, step"


class Robust(Classifier):
    """The usual small module, with dropout, on a certified loss."""

    def __init__(self, loss=None, dropout=0.2):
        torch.manual_seed(0)
        super().__init__(dropout=dropout)
        self.loss = loss or objectives.ibp(0.1, kappa=0.3)
        self.spoiled = ()

    def training_step(self, batch, batch_idx):
        loss = self.loss(self, *batch)
        return loss * math.nan if self.trainer.global_step in self.spoiled else loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(self, *batch))


class Says(Collapse):
    """Calls it a collapse at certain looks."""

    def __init__(self, *looks):
        super().__init__(5.0, 0.7, 50)
        self.looks, self.count, self.heard = looks, 0, []

    def tell(self, seen, steps):
        self.count += 1
        self.heard.append(seen)
        return "as told" if self.count in self.looks else None

    def state(self):
        return {**super().state(), "count": self.count}

    def restore(self, state):
        super().restore(state)
        self.count = state["count"]


def guard_that_says(*looks, action="rollback", good=True, slower=0.5, **options):
    guard = CertifiedTrainingGuard(action, every_n_steps=1, slower=slower, **options)
    guard._collapse = Says(*looks)
    guard._collapse.good = lambda seen: good
    return guard


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, two):
    return all(torch.equal(value, two[name]) for name, value in one.items())


class Record(pl.Callback):
    """Weights, optimizer state and epsilon after every step."""

    def __init__(self):
        self.weights, self.states, self.epsilons = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append(weights(pl_module))
        state = trainer.optimizers[0].state_dict()["state"]
        self.states.append({key: {n: v.clone() for n, v in s.items()} for key, s in state.items()})
        self.epsilons.append(pl_module.loss.epsilon)
