"""Certified trainings that collapse, and what keeps them from it.

python tests/benchmarks/collapse.py [--seeds 1]

A GRU of 32 units on interval bounds, Adam 5e-3, gradients clipped at 1. Certified accuracy is that
of intervals on the test images (digits: 450, MNIST: 1000) at the epsilon of training. MNIST is read
from the folder named by POPQORN_DATA (default: ../shared/data beside the repository), which is not
part of the repository; without it those rows are left out.
"""

import argparse
import logging
import os
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from popqorn_train import LpBall, certifiable_init_, certify, objectives
from popqorn_train.callbacks import CertifiedTrainingGuard, EpsilonSchedule
from popqorn_train.recipes.data.digits import Digits

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("POPQORN_DATA", ROOT.parent / "shared" / "data"))


class Task(NamedTuple):
    """What is learned, and how robustly."""

    name: str
    train: TensorDataset
    test: TensorDataset
    batch: int
    epochs: int
    epsilon: float
    kappa: float


class Variant(NamedTuple):
    """One way to train."""

    name: str
    init: str = "default"
    signal: float = 0.0
    clean_start: bool = True
    guarded: bool = False

    def schedule(self) -> EpsilonSchedule:
        """With a warm-up on clean inputs, or with bounds from the first step on."""
        if self.clean_start:
            return EpsilonSchedule()
        return EpsilonSchedule(warmup=0.0, ramp=0.6, start_kappa=0.5)


PLAIN, GUARDED = Variant("plain"), Variant("guard", guarded=True)
SIGNAL, BOTH = (
    Variant("signal .1", signal=0.1),
    Variant("signal .1, guard", "default", 0.1, True, True),
)
BOUNDED = Variant("no warm-up", clean_start=False)
INITS = [
    Variant(f"{init}, {what}", init, clean_start=start)
    for init in ("ibp-normal", "eye")
    for what, start in (("warm-up", True), ("no warm-up", False))
]


def digits(epsilon: float, kappa: float) -> Task:
    data = Digits()
    return Task(f"digits, {epsilon:g}", data.train, data.test, 64, 40, epsilon, kappa)


def mnist() -> Task:
    with np.load(DATA / "mnist.npz") as file:
        sets = [_rows(file, part, count) for part, count in (("train", 20_000), ("test", 1000))]
    return Task("MNIST, 28 rows, 0.05", *sets, 256, 5, 0.05, 0.3)


def _rows(file: "np.lib.npyio.NpzFile", part: str, count: int) -> TensorDataset:
    rows = torch.tensor(file[f"x_{part}"][:count], dtype=torch.float32).view(-1, 28, 28) / 255
    return TensorDataset(rows, torch.tensor(file[f"y_{part}"][:count], dtype=torch.long))


class Module(pl.LightningModule):
    """A GRU on interval bounds."""

    def __init__(self, task: Task, variant: Variant) -> None:
        super().__init__()
        features = task.train.tensors[0].shape[-1]
        self.rnn, self.head = nn.GRU(features, 32, batch_first=True), nn.Linear(32, 10)
        if variant.init != "default":
            certifiable_init_(self.rnn, variant.init)
        settings = {"low": 0.0, "high": 1.0, "kappa": task.kappa, "signal": variant.signal}
        self.loss = objectives.ibp(task.epsilon, **settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(self, *batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def run(task: Task, variant: Variant, seed: int) -> str:
    """Train and certify."""
    pl.seed_everything(seed, verbose=False)
    module, guard = Module(task, variant), CertifiedTrainingGuard()
    trainer = pl.Trainer(
        max_epochs=task.epochs,
        callbacks=[variant.schedule()] + [guard] * variant.guarded,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    started = time.process_time()
    trainer.fit(module, DataLoader(task.train, task.batch, shuffle=True))
    seconds = time.process_time() - started
    x, y = task.test.tensors
    clean = (module(x).argmax(1) == y).float().mean().item()
    ball = LpBall(task.epsilon, low=0.0, high=1.0)
    proved = certify(module, x, y, ball, method="ibp").certified.float().mean().item()
    rescues = f"{guard.rescues}" if variant.guarded else "-"
    cells = f"{100 * clean:8.1f}{100 * proved:11.1f}{rescues:>9}{seconds:7.0f}"
    return f"{task.name:<21}{variant.name:<23}{seed:5d}{cells}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    rows = [(digits(0.055, 0.0), [PLAIN, GUARDED, SIGNAL])]
    rows.append((digits(0.1, 0.5), [PLAIN, GUARDED, SIGNAL, BOTH, BOUNDED]))
    if (DATA / "mnist.npz").is_file():
        rows.append((mnist(), [PLAIN, GUARDED, SIGNAL, BOTH, BOUNDED, *INITS]))
    titles = f"{'clean':>8}{'certified':>11}{'rescues':>9}{'CPU s':>7}"
    print(f"{'training':<21}{'variant':<23}{'seed':>5}{titles}")
    for task, variants in rows:
        for variant in variants:
            for seed in seeds:
                print(run(task, variant, seed), flush=True)


if __name__ == "__main__":
    main()
