"""Trainings that collapse, with and without CertifiedTrainingGuard, and what the guard costs.

python tests/benchmarks/guard.py [--seeds 1]

Certified accuracy is that of intervals on 1000 test images (digits: 450), at the epsilon of
training. MNIST is read from the folder named by POPQORN_DATA (default: ../shared/data beside the
repository), which is not part of the repository; without it that row is left out.
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

from popqorn_train import LpBall, certify, objectives
from popqorn_train.callbacks import CertifiedTrainingGuard, EpsilonSchedule
from popqorn_train.recipes.data_digits import Digits

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("POPQORN_DATA", ROOT.parent / "shared" / "data"))


class Task(NamedTuple):
    """One training."""

    name: str
    train: TensorDataset
    test: TensorDataset
    batch: int
    epochs: int
    epsilon: float
    kappa: float


def tasks() -> list[Task]:
    digits = Digits()
    found = [Task("digits, GRU 32, .1", digits.train, digits.test, 64, 40, 0.1, 0.5)]
    if (DATA / "mnist.npz").is_file():
        sets = mnist("train", 20_000), mnist("test", 1000)
        found.append(Task("MNIST 28 rows, GRU 32, .05", *sets, 256, 5, 0.05, 0.3))
    return found


def mnist(part: str, count: int) -> TensorDataset:
    with np.load(DATA / "mnist.npz") as file:
        x, y = file[f"x_{part}"][:count], file[f"y_{part}"][:count]
    rows = torch.tensor(x, dtype=torch.float32).view(-1, 28, 28) / 255
    return TensorDataset(rows, torch.tensor(y, dtype=torch.long))


class Module(pl.LightningModule):
    """A GRU from its own weights, trained on interval bounds."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        features = task.train.tensors[0].shape[-1]
        self.rnn, self.head = nn.GRU(features, 32, batch_first=True), nn.Linear(32, 10)
        self.loss = objectives.ibp(task.epsilon, low=0.0, high=1.0, kappa=task.kappa)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(self, *batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def run(task: Task, seed: int, guard: CertifiedTrainingGuard | None) -> str:
    pl.seed_everything(seed, verbose=False)
    module, schedule = Module(task), EpsilonSchedule()
    trainer = pl.Trainer(
        max_epochs=task.epochs,
        callbacks=[schedule] + [guard] * (guard is not None),
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
    module.eval()
    clean = (module(x).argmax(1) == y).float().mean().item()
    ball = LpBall(task.epsilon, low=0.0, high=1.0)
    proved = certify(module, x, y, ball, method="ibp").certified.float().mean().item()
    name = "none" if guard is None else f"{guard.on_collapse}, {guard.rescues} rescues"
    reached = task.epsilon * min(
        1.0, max(0.0, (schedule.clock.steps / trainer.global_step - 0.1) / 0.5)
    )
    cells = f"{100 * clean:8.1f}{100 * proved:11.1f}{reached:9.3f}{seconds:9.1f}"
    return f"{task.name:<28}{seed:5d}  {name:<22}{cells}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    titles = f"{'clean':>8}{'certified':>11}{'reached':>9}{'CPU s':>9}"
    print(f"{'training':<28}{'seed':>5}  {'guard':<22}{titles}")
    for task in tasks():
        for seed in seeds:
            print(run(task, seed, None), flush=True)
            print(run(task, seed, CertifiedTrainingGuard()), flush=True)


if __name__ == "__main__":
    main()
