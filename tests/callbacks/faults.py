"""Faults that strike a training under the monitor at one of its batches; see kills.py.

B: batches trained until then.
"""

import os
import signal
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from popqorn_train.evaluation.examination import Examination

# Of Lightning itself, or of its logger: they end a training with any callback.
STOPPING = ("dead logger", "dead wandb", "SIGTERM", "failing process", "killed process")
DISTRIBUTED = STOPPING[3:]
FAULTS = (*STOPPING, "full disk", "out of memory")


class DeadLogger(CSVLogger):
    """A logger whose service goes away."""

    dead = False

    def log_metrics(self, metrics, step=None):
        if self.dead:
            raise ConnectionError("the service does not answer")
        super().log_metrics(metrics, step)


def logger_for(fault, folder):
    """The logger that a fault needs, if any."""
    if fault == "dead logger":
        return DeadLogger(folder)
    return WandbLogger(save_dir=folder, offline=True) if fault == "dead wandb" else False


class Fault(pl.Callback):
    """Lets something fail before a batch, and marks the time.

    Args:
        kind: one of ``FAULTS``.
        folder: of the training.
        batch: which one, counted over epochs.
    """

    def __init__(self, kind: str, folder: Path, batch: int) -> None:
        self.kind, self.folder, self.batch = kind, folder, batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.batch:
            (self.folder / "struck").touch()
            getattr(self, f"_{self.kind.replace(' ', '_')}")(trainer)

    def _dead_logger(self, trainer):
        trainer.logger.dead = True

    def _SIGTERM(self, trainer):
        os.kill(os.getpid(), signal.SIGTERM)

    def _failing_process(self, trainer):
        if trainer.global_rank == 1:
            raise RuntimeError("injected")

    def _killed_process(self, trainer):
        if trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def _dead_wandb(self, trainer):
        services = [process for process in descendants(os.getpid()) if "wandb-core" in process[1]]
        assert services
        for process, _ in services:
            os.kill(process, signal.SIGKILL)

    def _full_disk(self, trainer):
        path = self.folder / "certification.jsonl"
        if path.exists():
            path.rename(self.folder / "before.jsonl")
        path.symlink_to("/dev/full")

    def _out_of_memory(self, trainer):
        """Raise it from now on; of a worker, the system ends the process."""

        def rows(self, *arguments):
            raise torch.OutOfMemoryError("injected")

        Examination.rows = rows
        for process, command in descendants(os.getpid()):
            if "popqorn_train.evaluation.worker" in command:
                os.kill(process, signal.SIGKILL)


def descendants(process: int) -> list[tuple[int, str]]:
    """Processes that one has started, and those that these have, each with its command."""
    children = Path(f"/proc/{process}/task").glob("*/children")
    found = []
    for child in (int(child) for file in children for child in file.read_text().split()):
        command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        found += [(child, command), *descendants(child)]
    return found
