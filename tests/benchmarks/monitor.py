"""What the monitor costs at its default settings, on digits and on MNIST in four frames.

python tests/benchmarks/monitor.py [--threads 1] [--background]

MNIST is read from the folder named by POPQORN_DATA (default: ../shared/data beside the repository),
which is not part of the repository; without it that row is left out. Share is what certification
took of the time that the rest of training took; limit is ``max_overhead``. With ``--background``,
seconds of an epoch without a monitor, and of one beside a worker process that certifies.
"""

import argparse
import copy
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from popqorn_train import CertifiedLoss
from popqorn_train.callbacks import CertifiedRadiusMonitor
from popqorn_train.evaluation.certification import Certification, read_certifications
from popqorn_train.recipes.classifier import RobustClassifier
from popqorn_train.recipes.data.digits import Digits
from popqorn_train.recipes.networks import RecurrentNet

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 0.25  # max_overhead by default
DATA = Path(os.environ.get("POPQORN_DATA", ROOT.parent / "shared" / "data"))


class Task(NamedTuple):
    """One training."""

    name: str
    net: RecurrentNet
    train: TensorDataset
    validation: TensorDataset
    batch: int
    epochs: int
    loss: CertifiedLoss | None = None


def tasks() -> list[Task]:
    digits = Digits()
    sets = (digits.train, digits.test)
    loss = CertifiedLoss(0.05, low=0.0, high=1.0, kappa=0.5, alpha=0.5)
    found = [
        Task("digits, GRU 32", RecurrentNet(8, 32, 10), *sets, 64, 500),
        Task("digits, GRU 32, certified", RecurrentNet(8, 32, 10), *sets, 64, 80, loss),
    ]
    if (DATA / "mnist.npz").is_file():
        sets = (mnist("train"), mnist("test"))
        found.append(
            Task("MNIST 4x196, LSTM 64", RecurrentNet(196, 64, 10, cell="lstm"), *sets, 128, 60)
        )
    return found


def mnist(part: str) -> TensorDataset:
    with np.load(DATA / "mnist.npz") as file:
        x, y = file[f"x_{part}"], file[f"y_{part}"]
    x = torch.tensor(x, dtype=torch.float32).view(-1, 4, 196) / 255
    return TensorDataset(x, torch.tensor(y, dtype=torch.long))


class Clock(pl.Callback):
    """Seconds from the start of the first epoch to the end of the last one."""

    started = seconds = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.started


def train(task: Task, *callbacks: pl.Callback) -> None:
    """One training, always the same one."""
    pl.seed_everything(0, verbose=False)
    net = copy.deepcopy(task.net)
    trainer = pl.Trainer(
        max_epochs=task.epochs,
        callbacks=[*callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        accelerator="auto",
    )
    module = RobustClassifier(net, task.loss, 2e-3)
    batches = DataLoader(task.train, task.batch, shuffle=True)
    trainer.fit(module, batches, DataLoader(task.validation, 500))


def monitored(task: Task, *others: pl.Callback, background: bool) -> list[Certification]:
    """The certifications of a training."""
    with tempfile.TemporaryDirectory() as folder:
        train(
            task,
            CertifiedRadiusMonitor(low=0.0, high=1.0, folder=folder, background=background),
            *others,
        )
        return read_certifications(Path(folder) / "certification.jsonl")


def evaluations(entry: Certification) -> float:
    counts = [row.evaluations for row in entry.answered if row.evaluations]
    return sum(counts) / max(1, len(counts))


def row(task: Task) -> str:
    started = time.perf_counter()
    found = monitored(task, background=False)
    seconds = time.perf_counter() - started
    spent = sum(entry.seconds for entry in found)
    cold, warm = found[0], found[1:]
    cells = [
        f"{task.name:<26}",
        f"{(seconds - spent) / task.epochs:9.2f}",
        f"{cold.seconds:8.2f}",
        f"{sum(entry.seconds for entry in warm) / len(warm):8.2f}",
        f"{evaluations(cold):10.1f}",
        f"{sum(map(evaluations, warm)) / len(warm):10.1f}",
        f"{len(found):8d}/{task.epochs:<4d}",
        f"{spent / (seconds - spent):8.2f}",
        f"{LIMIT:8.2f}",
    ]
    return "".join(cells)


def row_in_background(task: Task) -> str:
    alone, beside = Clock(), Clock()
    train(task, alone)
    found = monitored(task, beside, background=True)
    return (
        f"{task.name:<26}{alone.seconds / task.epochs:9.2f}{beside.seconds / task.epochs:9.2f}"
        f"{beside.seconds / alone.seconds:8.2f}{len(found):10d}/{task.epochs:<4d}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--background", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    print("64 samples, l_inf, clipped to [0, 1], rtol 1e-2; seconds; evaluations per radius")
    if options.background:
        print(f"{'training':<26}{'epoch':>9}{'beside':>9}{'ratio':>8}{'certified':>15}")
    else:
        print(
            f"{'training':<26}{'epoch':>9}{'cold':>8}{'warm':>8}{'ev. cold':>10}{'ev. warm':>10}"
            f"{'certified':>13}{'share':>8}{'limit':>8}"
        )
    for task in tasks():
        print(row_in_background(task) if options.background else row(task), flush=True)


if __name__ == "__main__":
    main()
