"""Several processes train, watch, certify and attack as one does."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.multiprocessing
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from popqorn_train import CertifiedLoss
from popqorn_train.callbacks import (
    CertifiedRadiusMonitor,
    CertifiedTrainingGuard,
    EpsilonSchedule,
)
from popqorn_train.evaluation.certification import read_certifications
from popqorn_train.recipes.final_evaluation import evaluate
from popqorn_train.recipes.together import processes, shared
from tests.fitting import QUIET, Classifier, samples
from tests.recipes.test_final_evaluation import SETTINGS
from tests.test_tour import START, TOUR, blocks, smaller

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using `DistributedSampler`"),
    pytest.mark.filterwarnings("ignore:It is recommended to use `self.log\\('val_loss'"),
]


def _joined(rank, count, meeting, work, results):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=count
    )
    results.put((rank, work()))


def in_processes(count, folder, work):
    """What every process finds, by rank."""
    context = torch.multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    meeting = folder / f"meeting-{time.monotonic_ns()}"
    forked = torch.multiprocessing.start_processes(
        _joined, (count, meeting, work, results), count, join=False, start_method="fork"
    )
    found = dict(results.get() for _ in range(count))
    forked.join()
    return [found[rank] for rank in range(count)]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "settings", [{"radii": False}, {"method_samples": 9, "undecided_at": 0.03}]
)
def test_a_test_set_is_shared_and_every_process_has_the_whole(tmp_path, settings):
    net, data = Classifier().eval(), samples(31, seed=1)
    net.double()
    loader = DataLoader([(x.double(), y) for x, y in data], 8)
    asked = type(SETTINGS)(**{**vars(SETTINGS), "low": None, "high": None, **settings})
    alone = evaluate(net, loader, asked)

    def work():
        found = evaluate(net, loader, asked, processes=processes())
        return [tuple(x.tolist() if torch.is_tensor(x) else x for x in one) for one in found]

    for together in in_processes(2, tmp_path, work):
        assert len(together) == len(alone)
        for one, other in zip(alone, together, strict=True):
            for name, mine, theirs in zip(one._fields, one, other, strict=True):
                if name == "radii":
                    assert theirs == pytest.approx(mine.tolist(), rel=1e-6)
                elif "seconds" not in name:
                    assert (mine.tolist() if torch.is_tensor(mine) else mine) == theirs, name


def test_an_error_in_one_process_is_an_error_in_all(tmp_path):
    def one_fails(shard):
        if shard == "2/2":
            raise FloatingPointError("the bounds fell over")

    def work():
        try:
            shared(one_fails, processes())
        except Exception as error:
            return str(error)

    said = in_processes(2, tmp_path, work)
    assert said == [
        "process 1 of 2 failed: FloatingPointError: the bounds fell over",
        "the bounds fell over",
    ]


class Robust(Classifier):
    """Trained by bounds, in float64, without dropout, and remembering its epsilons."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.loss = CertifiedLoss(0.05)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss(self, x, y)


class InOrder(pl.LightningDataModule):
    """Steps see the same samples, whatever the number of processes; Lightning would shuffle."""

    def train_dataloader(self):
        data, count = [(x.double(), y) for x, y in samples(48)], self.trainer.world_size
        sampler = DistributedSampler(data, count, self.trainer.global_rank, shuffle=False)
        return DataLoader(data, 8 // count, sampler=sampler)

    def val_dataloader(self):
        data = [(x.double(), y) for x, y in samples(16, seed=1)]
        sampler = DistributedSampler(
            data, self.trainer.world_size, self.trainer.global_rank, shuffle=False
        )
        return DataLoader(data, 4, sampler=sampler)


def trained(count, folder):
    """Weights, certifications and what was logged, by so many processes on the same batches."""
    pl.seed_everything(0, verbose=False)
    monitor = CertifiedRadiusMonitor(
        samples=6, method="ibp", max_overhead=None, folder=folder / str(count)
    )
    callbacks = [EpsilonSchedule(), CertifiedTrainingGuard(every_n_steps=2), monitor]
    options = {"devices": count, "max_epochs": 3, "logger": False, **QUIET}
    options |= {"strategy": "ddp_fork"} if count > 1 else {}
    module = Robust().double()
    trainer = pl.Trainer(callbacks=callbacks, use_distributed_sampler=False, **options)
    trainer.fit(module, datamodule=InOrder())
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    found = read_certifications(folder / str(count) / "certification.jsonl")
    return module.state_dict(), found, logged


def test_weights_schedule_guard_and_monitor_agree_with_one_process(tmp_path):
    """Two processes with half a batch each take the steps of one with the whole batch."""
    weights, alone, logged = trained(1, tmp_path)
    also_weights, together, also_logged = trained(2, tmp_path)
    for name, value in weights.items():
        torch.testing.assert_close(also_weights[name], value, rtol=1e-7, atol=1e-9, msg=name)
    assert [entry.step for entry in together] == [entry.step for entry in alone] == [6, 12, 18]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other.radii, one.radii, rtol=1e-6, atol=1e-9)
        assert [row.status for row in other.rows] == [row.status for row in one.rows]
    guard = ("modal_share", "bound_loss", "hidden_radius", "skipped_steps", "rescues")
    ramp = ("epsilon", "kappa")
    names = [f"training_guard/{name}" for name in guard]
    names += [f"certified_training/{name}" for name in ramp]
    for name in names:  # ratios compare the states of one batch, of which each process has a half
        assert also_logged[name] == pytest.approx(logged[name], rel=1e-5), name


def start(*arguments, launcher=(sys.executable, "-m")):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launcher, "popqorn_train.recipes.cli", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def recipe(command, folder, *arguments, **options):
    """A recipe by two processes of ``ddp``."""
    given = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    given += ["--data.samples=60", "--evaluation.attack_steps=2", "--standard_epochs=0"]
    given += [f"--folder={folder}", "--trainer.devices=2", "--trainer.strategy=ddp"]
    return start(command, "--config", "generated", *given, *arguments, **options)


def finished(run):
    out, err = run.communicate(timeout=600)
    assert run.returncode == 0, err
    return out


def rows_of(folder):
    with (folder / "radii.csv").open(newline="") as file:
        return [
            {**row, "certified_radius": float(row["certified_radius"])}
            for row in csv.DictReader(file)
        ]


@pytest.mark.slow
def test_torchrun_trains_tests_and_compares(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    short = ("--trainer.max_epochs=2", "--standard_epochs=1")
    out = finished(recipe("fit", tmp_path, *short, launcher=torchrun))
    assert out.count("written to") == 3  # each file once, by one process
    models = json.loads((tmp_path / "results.json").read_text())["models"]
    assert {*models} == {"certified", "standard"}
    checkpoint = f"--ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}"
    finished(recipe("test", tmp_path, checkpoint))
    together = rows_of(tmp_path / "test")
    finished(recipe("test", tmp_path, checkpoint, "--trainer.devices=1", "--trainer.strategy=auto"))
    alone = rows_of(tmp_path / "test")
    assert len(alone) == len(together) == 24
    for one, other in zip(alone, together, strict=True):
        assert other.pop("certified_radius") == pytest.approx(one.pop("certified_radius"), rel=1e-3)
        assert one == other


def weights_of(folder):
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return last["state_dict"], last["global_step"]


def ranks_of(run):
    """Process ids of the other ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == run.pid:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_rank_is_killed_and_training_goes_on_from_the_last_checkpoint(tmp_path):
    epochs = "--trainer.max_epochs=40"
    run = recipe("fit", tmp_path / "killed", epochs)
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    for _ in range(2400):
        if last.exists() or run.poll() is not None:
            break
        time.sleep(0.05)
    [rank] = ranks_of(run)
    os.kill(rank, signal.SIGKILL)
    _, err = run.communicate(timeout=300)
    assert run.returncode != 0, err
    assert not (tmp_path / "killed" / "results.json").exists()
    assert weights_of(tmp_path / "killed")[1] < 40
    finished(recipe("fit", tmp_path / "killed", epochs, f"--ckpt_path={last}"))
    finished(recipe("fit", tmp_path / "whole", epochs))
    (again, steps), (whole, also_steps) = (weights_of(tmp_path / n) for n in ("killed", "whole"))
    assert steps == also_steps
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, msg=name)
    assert len(rows_of(tmp_path / "killed")) == 24


@pytest.mark.slow
def test_the_model_of_the_tour_trains_on_two_devices(tmp_path):
    [model] = [block for block in blocks("python") if block.startswith("# my_model.py")]
    devices = "accelerator='cpu', devices=2, strategy='ddp'"
    text = smaller(model).replace("accelerator='cpu'", devices)
    assert devices in text
    assert TOUR.count(model) == 1
    (tmp_path / "my_model.py").write_text(START.format(root=str(ROOT)) + text)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("standard", "certified"):
        command = [sys.executable, "my_model.py", name]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        folder = tmp_path / "runs" / name
        assert (folder / "last.ckpt").is_file()
        found = read_certifications(folder / "certification.jsonl")
        assert [entry.epoch for entry in found] == [0, 1]
        assert all(len(entry.answered) == 4 for entry in found)
