"""Trainings under the monitor, killed at a moment and resumed: ``python -m tests.callbacks.kills``.

A training runs in a forked process. The kernel ends it, as kill -9 does, in the middle of whatever
it does once it has used so much processor time; then it is resumed from its last checkpoint, and
compared with one that nobody has disturbed. Other faults are those of faults.py. The moment of a
run is drawn from its seed, so that runs with other seeds add up.
"""

import argparse
import contextlib
import os
import random
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
from torch.utils.data import DataLoader

from popqorn_train.callbacks import CertifiedRadiusMonitor
from popqorn_train.evaluation.certification import read_certifications
from popqorn_train.recipes.networks import RecurrentNet
from tests.callbacks.faults import DISTRIBUTED, FAULTS, STOPPING, Fault, logger_for
from tests.fitting import QUIET, Classifier, samples

EPOCHS, BATCHES, SAMPLES, LIMIT = 4, 3, 4, 60


class Ended(NamedTuple):
    """How a training ended: its exit status, its processor time, seconds after a fault."""

    status: int
    used: float
    seconds: float


class Trained(Classifier):
    """The same, with its network in one module, for which a worker needs no Lightning."""

    def __init__(self):
        super().__init__()
        del self.rnn, self.head
        self.net = RecurrentNet(3, 6, 3, cell="rnn")

    def forward(self, x):
        return self.net(x)


def train(folder: Path, *, background: bool = False, processes: int = 1, fault: str = "", batch=0):
    """Train, or go on with a training; exact at the ends of epochs, as Lightning resumes it."""
    pl.seed_everything(0, verbose=False)
    monitor = CertifiedRadiusMonitor(
        samples=SAMPLES, method="ibp", max_overhead=None, folder=folder, background=background,
        model="net",
    )  # fmt: skip
    keep = ModelCheckpoint(folder / "kept", save_last=True, save_on_train_epoch_end=True)
    last = folder / "kept" / "last.ckpt"
    options = {**QUIET, "enable_checkpointing": True, "max_epochs": EPOCHS}
    if processes > 1:
        options |= {"devices": processes, "strategy": "ddp_fork"}
    callbacks = [monitor, keep, *([Fault(fault, folder, batch)] if fault else [])]
    trainer = pl.Trainer(callbacks=callbacks, logger=logger_for(fault, folder), **options)
    module, data = Trained(), DataLoader(samples(48), 48 // (BATCHES * processes))
    held_out = DataLoader(samples(20, seed=1), 8)
    trainer.fit(module, data, held_out, ckpt_path=last if last.exists() else None)
    torch.save(module.state_dict(), folder / "weights.pt")


def run(folder: Path, *, killed_after: float = 0.0, **options) -> Ended:
    """Train in a process of its own, which the kernel ends after so much processor time."""
    folder.mkdir(parents=True, exist_ok=True)
    started, child = time.time(), os.fork()
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
    with contextlib.suppress(OSError):
        started = (folder / "struck").stat().st_mtime
    return Ended(status, _time(used), time.time() - started)


def _time(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime


def curve(path: Path) -> dict[int, list[float]]:
    """From every epoch to the radii of its samples, each of which is there once."""
    found = read_certifications(path) if path.exists() else []
    radii = {}
    for entry in found:
        assert entry.epoch not in radii, f"epoch {entry.epoch} is there twice"
        places = [row.index for row in entry.rows]
        assert len(set(places)) == len(places) == SAMPLES, f"rows of epoch {entry.epoch}: {places}"
        radii[entry.epoch] = [row.radius for row in entry.rows]
    return radii


def compare(folder: Path, whole: Path, *, background: bool = False, finished: bool = False) -> int:
    """Fail where a training differs from one that nobody disturbed; how many epochs it lacks.

    A worker that is killed with the training loses what it has not answered: the epoch of that
    snapshot has no certification. That may be the last one, if all epochs were ``finished``.
    """
    ours, theirs = (curve(at / "certification.jsonl") for at in (folder, whole))
    for epoch, radii in ours.items():
        known = theirs.get(epoch)
        if known is not None and None not in radii:
            torch.testing.assert_close(radii, known, rtol=2e-2, atol=1e-6)
    missing = len(set(range(EPOCHS)) - set(ours))
    assert background or not missing, f"epochs {sorted(ours)} of {EPOCHS}"
    assert finished or max(ours) == EPOCHS - 1, f"epochs {sorted(ours)}"
    same_weights(folder, whole)
    return missing


def same_weights(folder: Path, whole: Path) -> None:
    """Fail where two trainings have ended with other weights."""
    one, two = (torch.load(at / "weights.pt", weights_only=True) for at in (folder, whole))
    assert all(torch.equal(one[name], two[name]) for name in two), "other weights"


def kill(folder: Path, whole: Path, after: float, *, background: bool) -> tuple[bool, int]:
    """Kill a training, resume it, and compare; whether it was killed, and epochs without rows."""
    ended = run(folder, killed_after=after, background=background)
    finished = background and epochs_done(folder) == EPOCHS
    if ended.status != 0:
        assert os.WIFSIGNALED(ended.status), f"ended by itself, with {ended.status}"
        resumed = run(folder, background=background)
        assert resumed.status == 0, f"cannot be resumed after {after:.2f} s"
    missing = compare(folder, whole, background=background, finished=finished)
    return ended.status != 0, missing


def epochs_done(folder: Path) -> int:
    """How many epochs the last checkpoint has behind it."""
    last = folder / "kept" / "last.ckpt"
    return torch.load(last, weights_only=True)["epoch"] + 1 if last.exists() else 0


def fail(
    folder: Path,
    whole: Path,
    fault: str,
    seed: int,
    *,
    background: bool = False,
    limit: float = LIMIT,
) -> Ended:
    """Train with a fault: to the end, or to the stop that it asks for, within so many seconds."""
    batch = random.Random(f"{fault}, {seed}").randrange(1, EPOCHS * BATCHES)
    options = {"background": background, "processes": 2 if fault in DISTRIBUTED else 1}
    ended = run(folder, fault=fault, batch=batch, **options)
    assert (folder / "struck").exists(), f"{fault} at batch {batch}: never"
    assert ended.seconds < limit, f"{fault} at batch {batch}: {ended.seconds:.0f} s"
    if fault in STOPPING:
        assert os.WIFEXITED(ended.status), f"{fault}: ended by signal {ended.status}"
        assert ended.status != 0, f"{fault} at batch {batch}: training goes on"
        resumed = run(folder, **options)
        assert resumed.status == 0, f"{fault} at batch {batch}: cannot be resumed"
    else:
        assert ended.status == 0, f"{fault} at batch {batch}: training stopped, {ended.status}"
    if fault == "full disk":
        curve(folder / "before.jsonl")
        same_weights(folder, whole)
    else:
        compare(folder, whole, background=background)
    return ended


def kills(folder: Path, whole: Path, used: float, seeds: range, *, background: bool) -> str:
    """Kill a training at moments; what came of it."""
    killed, lost = 0, 0
    for seed in seeds:
        after = used * random.Random(seed).uniform(0.01, 0.9)
        was, missing = kill(folder / str(seed), whole, after, background=background)
        killed, lost = killed + was, lost + missing
    return f"killed at {killed} of {len(seeds)} moments, {lost} epochs without rows"


def faults(
    folder: Path, whole: Path, fault: str, options: argparse.Namespace, *, background: bool
) -> str:
    """Let a fault strike trainings; what came of it."""
    took = []
    for seed in range(options.seed, options.seed + options.runs):
        place, how = folder / f"{fault} {seed}", {"background": background, "limit": options.limit}
        took.append(fail(place, whole, fault, seed, **how).seconds)
    return f"{fault}: {len(took)} runs, ended {max(took, default=0):.1f} s later at most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=50, help="half of them with a worker")
    parser.add_argument("--runs", type=int, default=20, help="of every other fault")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds after a fault")
    parser.add_argument("--faults", nargs="*", default=FAULTS, choices=FAULTS)
    parser.add_argument(
        "--background", choices=("no", "yes"), help="only without, or with, a worker"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = {"no": [False], "yes": [True], None: [False, True]}[options.background]
    with tempfile.TemporaryDirectory(prefix="popqorn-train-") as name:
        for background in kinds:
            check(Path(name) / f"background-{background}", options, background=background)


def check(folder: Path, options: argparse.Namespace, *, background: bool) -> None:
    """Kill trainings, and let each fault strike some."""
    kind = "background" if background else "blocking"
    whole = {processes: folder / f"whole {processes}" for processes in (1, 2)}
    ended = run(whole[1], background=background)
    assert ended.status == 0
    seeds = range(options.seed, options.seed + options.moments // 2)
    found = kills(folder, whole[1], ended.used, seeds, background=background)
    print(f"{kind}: {found}", flush=True)
    chosen = [fault for fault in options.faults if not (background and fault in DISTRIBUTED)]
    if {*chosen} & {*DISTRIBUTED}:
        assert run(whole[2], processes=2).status == 0
    for fault in chosen:
        undisturbed = whole[2 if fault in DISTRIBUTED else 1]
        found = faults(folder, undisturbed, fault, options, background=background)
        print(f"{kind}: {found}", flush=True)


if __name__ == "__main__":
    main()
