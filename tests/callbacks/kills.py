"""Trainings under the monitor, killed at a moment and resumed: ``python -m tests.callbacks.kills``.

A training runs in a forked process. The kernel ends it, as kill -9 does, in the middle of whatever
it does once it has used so much processor time; then it is resumed from its last checkpoint, and
compared with one that nobody has disturbed. Other faults: a logger that fails, a full disk, memory
that runs out, SIGTERM.
"""

import argparse
import itertools
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from popqorn_train.callbacks import CertifiedRadiusMonitor
from popqorn_train.evaluation.certification import read_certifications
from popqorn_train.evaluation.examination import Examination
from tests.fitting import QUIET, Classifier, samples

EPOCHS, SAMPLES, LIMIT = 4, 4, 60.0
STOPPING = ("dead logger", "SIGTERM")  # those that Lightning itself stops for
FAULTS = (*STOPPING, "full disk", "out of memory")


class Ended(NamedTuple):
    """How a training ended: its exit status, and the processor time and seconds that it took."""

    status: int
    used: float
    seconds: float


class Terminated(pl.Callback):
    """Asks the training to end, as a scheduler of jobs does."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)


class DeadLogger(CSVLogger):
    """A logger whose service is gone, which ends a training of Lightning with any callback."""

    def log_metrics(self, metrics, step=None):
        raise ConnectionError("the service does not answer")


def train(folder: Path, *, background: bool, fault: str = "") -> None:
    """Train, or go on with a training; exact at the ends of epochs, as Lightning resumes it."""
    pl.seed_everything(0, verbose=False)
    monitor = CertifiedRadiusMonitor(
        samples=SAMPLES, method="ibp", max_overhead=None, folder=folder, background=background
    )
    keep = ModelCheckpoint(folder / "kept", save_last=True, save_on_train_epoch_end=True)
    last = folder / "kept" / "last.ckpt"
    inject(fault, folder)
    options = {**QUIET, "enable_checkpointing": True, "max_epochs": EPOCHS}
    logger = DeadLogger(folder) if fault == "dead logger" else False
    callbacks = [monitor, keep, *([Terminated()] if fault == "SIGTERM" else [])]
    trainer = pl.Trainer(callbacks=callbacks, logger=logger, **options)
    module, data = Classifier(dropout=0.0), DataLoader(samples(48), 16)
    held_out = DataLoader(samples(20, seed=1), 8)
    trainer.fit(module, data, held_out, ckpt_path=last if last.exists() else None)
    torch.save(module.state_dict(), folder / "weights.pt")


def inject(fault: str, folder: Path) -> None:
    """Let something fail."""
    if fault == "full disk":
        (folder / "certification.jsonl").symlink_to("/dev/full")
    if fault == "out of memory":
        rows_of, calls = Examination.rows, itertools.count()

        def rows(self, *arguments):
            if next(calls) > 3:  # the look ahead, which stops a training early, has passed
                raise torch.OutOfMemoryError("injected")
            return rows_of(self, *arguments)

        Examination.rows = rows


def run(folder: Path, *, killed_after: float = 0.0, **options) -> Ended:
    """Train in a process of its own, which the kernel ends after so much processor time."""
    folder.mkdir(parents=True, exist_ok=True)
    started, child = time.monotonic(), os.fork()
    if child == 0:
        try:
            warnings.simplefilter("ignore")
            os.setpgid(0, 0)
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, killed_after)
            train(folder, **options)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(3)
    _, status, used = os.wait4(child, 0)
    return Ended(status, _time(used), time.monotonic() - started)


def _time(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime


def curve(folder: Path) -> dict[int, list[float]]:
    """From every epoch to the radii of its samples, each of which is there once."""
    path = folder / "certification.jsonl"
    found = read_certifications(path) if path.exists() else []
    radii = {}
    for entry in found:
        assert entry.epoch not in radii, f"epoch {entry.epoch} is there twice"
        places = [row.index for row in entry.rows]
        assert len(set(places)) == len(places) == SAMPLES, f"rows of epoch {entry.epoch}: {places}"
        radii[entry.epoch] = [row.radius for row in entry.rows]
    return radii


def compare(folder: Path, whole: Path, *, background: bool) -> int:
    """Fail where a resumed training differs from one that went through; how many epochs it lacks.

    A worker that is killed with the training loses what it has not answered: the epoch of that
    snapshot has no certification.
    """
    ours, theirs = curve(folder), curve(whole)
    for epoch, radii in ours.items():
        known = theirs.get(epoch)
        if known is not None:
            torch.testing.assert_close(radii, known, rtol=2e-2, atol=1e-6)
    missing = len(set(range(EPOCHS)) - set(ours))
    assert background or not missing, f"epochs {sorted(ours)} of {EPOCHS}"
    assert max(ours) == EPOCHS - 1, f"epochs {sorted(ours)}"
    one, two = (torch.load(at / "weights.pt", weights_only=True) for at in (folder, whole))
    assert all(torch.equal(one[name], two[name]) for name in two), "other weights"
    return missing


def kill(folder: Path, whole: Path, after: float, *, background: bool) -> tuple[bool, int]:
    """Kill a training, resume it, and compare; whether it was killed, and epochs without rows."""
    ended = run(folder, killed_after=after, background=background)
    if ended.status != 0:
        assert os.WIFSIGNALED(ended.status), f"ended by itself, with {ended.status}"
        resumed = run(folder, background=background)
        assert resumed.status == 0, f"cannot be resumed after {after:.2f} s"
    return ended.status != 0, compare(folder, whole, background=background)


def fail(folder: Path, fault: str, *, background: bool) -> Ended:
    """Train with a fault: to the end, or to the stop that it asks for, within a minute."""
    ended = run(folder, fault=fault, background=background)
    assert ended.seconds < LIMIT, f"{fault}: {ended.seconds:.0f} s"
    if fault in STOPPING:
        assert os.WIFEXITED(ended.status), f"{fault}: ended by signal {ended.status}"
        resumed = run(folder, background=background)
        assert resumed.status == 0, f"{fault}: cannot be resumed"
    else:
        assert ended.status == 0, f"{fault}: training stopped, {ended.status}"
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=50, help="half of them with a worker")
    parser.add_argument("--runs", type=int, default=20, help="of every other fault")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="popqorn-train-") as name:
        for background in (False, True):
            whole = Path(name) / f"whole-{background}"
            ended = run(whole, background=background)
            assert ended.status == 0
            count, killed, lost = options.moments // 2, 0, 0
            for place in range(count):
                after, folder = (
                    ended.used * (place + 0.5) / count,
                    Path(name) / f"{place}{background}",
                )
                was, missing = kill(folder, whole, after, background=background)
                killed, lost = killed + was, lost + missing
            kind = "background" if background else "blocking"
            print(f"{kind}: killed at {killed} of {count}, {lost} epochs without rows", flush=True)
            for fault in FAULTS:
                took = [
                    fail(Path(name) / f"{fault}{place}{background}", fault, background=background)
                    for place in range(options.runs)
                ]
                worst = max(ended.seconds for ended in took)
                print(f"{kind}: {fault}: {len(took)} runs, {worst:.1f} s at most", flush=True)


if __name__ == "__main__":
    main()
