"""Certifying in a worker process while training goes on."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from types import ModuleType, SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import wandb
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from torch import nn

from popqorn_train import Status, UnsupportedModelError, bound
from popqorn_train.callbacks import CertifiedEarlyStopping, CertifiedRadiusMonitor
from popqorn_train.callbacks.background import _START
from popqorn_train.callbacks.background_certifier import Ticket
from popqorn_train.callbacks.rebuilding import _script
from popqorn_train.evaluation.batches import Picked
from popqorn_train.evaluation.certification import read_certifications
from popqorn_train.evaluation.worker import Advanced, Found, Job, _Server
from tests.fitting import Classifier, fit, val_loader
from tests.wandb_reader import Run

EPOCHS = 3


def background(**options):
    return CertifiedRadiusMonitor(background=True, max_overhead=None, **options)


def worker_of(monitor):
    return monitor._certifier._worker


class Patient(pl.Callback):
    """Waits until the worker is free, so that no snapshot is left out."""

    def __init__(self, monitor):
        self.monitor = monitor

    def on_validation_end(self, trainer, pl_module):
        while not trainer.sanity_checking and worker_of(self.monitor).tickets:
            time.sleep(0.05)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training with and without a worker, and what loggers have of the first."""
    folder = tmp_path_factory.mktemp("background")
    options = {"samples": 7, "attack": True, "epsilons": (0.05,), "method": "crown-ibp"}
    blocking = CertifiedRadiusMonitor(max_overhead=None, folder=folder / "blocking", **options)
    _, watched = fit(blocking, epochs=EPOCHS)
    _, alone = fit(epochs=EPOCHS)
    monitor = background(folder=folder / "late", **options)
    loggers = [
        WandbLogger(project="tests", save_dir=folder, offline=True),
        CSVLogger(folder / "csv", name="", version=""),
    ]
    trainer, module = fit(
        monitor, Patient(monitor), epochs=EPOCHS, logger=loggers, log_every_n_steps=1
    )
    wandb.finish()
    return SimpleNamespace(
        **{"blocking": blocking, "late": monitor, "folder": folder, "trainer": trainer},
        weights=[one.state_dict() for one in (module, watched, alone)],
    )


def test_a_resumed_fit_says_which_snapshots_may_be_lost():
    certifier = background(samples=7)._certifier
    assert certifier.state()["unanswered"] == []
    tickets = [Ticket(None), Ticket(object(), 3), Ticket(object(), 4)]
    certifier._worker = SimpleNamespace(tickets=tickets)
    with pytest.warns(UserWarning, match="snapshots of epochs 3, 4 were still in the worker"):
        certifier.restore(certifier.state())


def test_final_weights_are_bit_identical_with_and_without_it(runs):
    for name, value in runs.weights[0].items():
        assert all(torch.equal(value, other[name]) for other in runs.weights[1:]), name


def test_it_certifies_what_the_blocking_mode_does_bit_for_bit(runs):
    late, blocking = (read_certifications(one.path) for one in (runs.late, runs.blocking))
    assert [entry.epoch for entry in late] == list(range(EPOCHS))
    for one, other in zip(late, blocking, strict=True):
        assert (one.step, one.weights, one.settings) == (other.step, other.weights, other.settings)
        assert one.rows == other.rows
    assert runs.late.last.rows == runs.blocking.last.rows
    assert runs.late.fresh


def test_loggers_have_each_certification_under_its_own_epoch_and_step(runs):
    certified = read_certifications(runs.late.path)
    expected = [(entry.epoch, entry.step) for entry in certified]
    stored = Run.finished(runs.folder)
    rows = stored.rows("certified_radius/mean")
    assert [(row["epoch"], row["trainer/global_step"]) for row in rows] == expected
    assert stored.metrics["certified_radius/mean"].step_metric == "epoch"
    for row, entry in zip(rows, certified, strict=True):
        assert row["certified_radius/mean"] == pytest.approx(entry.radii.mean().item())
        assert row["certification/fresh"] == 1
    head, *lines = (runs.folder / "csv" / "metrics.csv").read_text().splitlines()
    table = [dict(zip(head.split(","), line.split(","), strict=True)) for line in lines]
    found = [row for row in table if row["certified_radius/mean"]]
    assert [(int(row["epoch"]), int(row["step"])) for row in found] == expected


def test_callbacks_see_no_value_of_another_epoch(runs):
    assert {key for key in runs.trainer.callback_metrics if "cert" in key} <= {"cert_r"}


@pytest.mark.slow
def test_the_newest_snapshot_is_kept_and_the_last_one_awaited(tmp_path, caplog):
    monitor = background(samples=20, method="crown-ibp", folder=tmp_path)
    fit(monitor, epochs=8)
    epochs = [entry.epoch for entry in read_certifications(monitor.path)]
    assert epochs == sorted({*epochs})
    assert epochs[-1] == 7
    assert len(epochs) < 8
    left = 8 - len(epochs)
    assert f"CertifiedRadiusMonitor skipped {left} of 8 snapshots" in caplog.text


@pytest.mark.slow
def test_a_dead_worker_is_replaced_once_and_then_given_up(tmp_path):
    monitor = background(samples=4, method="ibp", folder=tmp_path)

    class Killing(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            if trainer.current_epoch in (1, 3):
                os.kill(worker_of(monitor)._process.pid, signal.SIGKILL)
                worker_of(monitor)._process.wait()

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer, _ = fit(Killing(), monitor, Patient(monitor), epochs=5)
    assert trainer.current_epoch == 5
    said = [str(one.message) for one in said if "worker" in str(one.message)]
    assert len(said) == 2
    assert "the worker process ended (SIGKILL) and is started again; training goes on" in said[0]
    assert "in epoch 3, first sample" in said[1]
    assert "the worker process ended 2 times, last with SIGKILL" in said[1]
    found = read_certifications(monitor.path)
    assert [entry.complete for entry in found] == [True, True, True, False, False]
    assert {row.status for row in found[-1].rows} == {Status.ERROR}


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_the_worker_ends_when_training_is_broken_off(error):
    seen = []

    class Failing(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(worker_of(monitor)._process)
            raise error

    monitor = background(samples=3)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((SystemExit, ZeroDivisionError)):
            fit(monitor, Failing())
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    assert seen[0].wait(20) == -signal.SIGKILL


def test_the_worker_ends_with_the_process_that_started_it():
    read, write = os.pipe()  # stays open, as in a process that was forked for a loader
    start = (
        "import json, os, subprocess, sys, time; settings = json.loads(sys.argv[2])\n"
        "settings['parent'] = os.getpid()\n"
        "command = [sys.executable, '-c', sys.argv[1], json.dumps(settings)]\n"
        f"worker = subprocess.Popen(command, stdin={read}, stdout=subprocess.PIPE)\n"
        "worker.stdout.read(1)\n"
        "print(worker.pid, flush=True); time.sleep(100)"
    )
    settings = {"path": sys.path, "threads": 1, "dtype": "float32", "main": None}
    command = [sys.executable, "-c", start, _START, json.dumps(settings)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[read])
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 20
    while time.monotonic() < until and running(pid):
        time.sleep(0.1)
    assert not running(pid)
    os.close(read)
    os.close(write)


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def doubled(module, inputs, output):
    return 2 * output


class Hooked(Classifier):
    def __init__(self, hook):
        super().__init__()
        self.head.register_forward_hook(hook)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (lambda: Hooked(lambda *_: None), "a hook of `head` of Hooked cannot be pickled"),
        (lambda: type("Local", (Classifier,), {"__module__": "nowhere"})(), "the class Local"),
        (lambda: attributed(), "`scale` of Classifier cannot be pickled"),
    ],
)
def test_a_model_that_no_worker_can_rebuild_is_refused_before_training(module, said):
    module = module()
    with pytest.raises(UnsupportedModelError, match=rf"{said}.*; or leave `background` off\."):
        fit(background(samples=3), module=module)
    assert module._trainer.global_step == 0


def attributed():
    module = Classifier()
    module.scale = lambda x: x
    return module


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot import what a notebook or an interactive session defines"),
        ("trainer.fit(Net())", "would start the training in it again"),
    ],
)
def test_a_script_that_cannot_be_imported_is_refused(text, said, tmp_path):
    main = ModuleType("__main__")
    if text is not None:
        (tmp_path / "train.py").write_text(text)
        main.__file__ = str(tmp_path / "train.py")
    with pytest.raises(UnsupportedModelError, match=said):
        _script(main)


def test_a_script_that_guards_its_training_is_imported(tmp_path):
    main, file = ModuleType("__main__"), tmp_path / "train.py"
    file.write_text("if __name__ == '__main__':\n    fit()")
    main.__file__ = str(file)
    assert _script(main) == {"path": str(file)}
    main.__spec__ = SimpleNamespace(name="package.train")
    assert _script(main) == {"name": "package.train"}


class Scheduled(Classifier):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max")
        monitor = "fresh/certified_radius/median"
        how = {"scheduler": scheduler, "monitor": monitor, "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": how}


@pytest.mark.parametrize(
    ("callback", "module", "said"),
    [
        (CertifiedEarlyStopping, Classifier, "CertifiedEarlyStopping"),
        (lambda: EarlyStopping("certified_accuracy/0p05"), Classifier, "EarlyStopping"),
        (lambda: ModelCheckpoint(monitor="cert_r"), Classifier, r"ModelCheckpoint\(monitor='cert"),
        (pl.Callback, Scheduled, "ReduceLROnPlateau"),
    ],
)
def test_who_needs_the_value_in_time_is_refused(callback, module, said):
    with pytest.raises(ValueError, match=rf"{said}.* needs each value in its own epoch"):
        fit(background(samples=3), callback(), module=module(), enable_checkpointing=True)


def test_several_processes_are_refused():
    monitor = background(samples=3)
    trainer = SimpleNamespace(world_size=2, strategy=None, is_global_zero=False)
    with pytest.raises(ValueError, match="`background` must be off where several processes train"):
        monitor._certifier.setup(trainer, Classifier(), "fit")


def test_bad_threads_are_refused():
    with pytest.raises(ValueError, match="`background_threads` must be at least 1, got 0"):
        background(background_threads=0)


def test_validate_certifies_at_once(tmp_path):
    monitor = background(samples=3, method="ibp", folder=tmp_path)
    trainer = pl.Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False)
    trainer.validate(Classifier(), val_loader(), verbose=False)
    assert monitor.last.stage == "validate"
    assert len(monitor.last.answered) == 3


SCALE = 1.0


class Worldly(nn.Module):
    """Reads a number that is not its own."""

    def __init__(self):
        super().__init__()
        self.net = Classifier().eval()

    def forward(self, x):
        return SCALE * self.net(x)


@pytest.mark.parametrize("scale", [1.0, 1.001, 2.0])
def test_a_copy_that_computes_otherwise_gets_no_certificate(scale, monkeypatch):
    x, y = val_loader().dataset.tensors
    picked = Picked(torch.arange(4), (x[:4],), y[:4])
    question = CertifiedRadiusMonitor(method="ibp")._certifier.question
    data = Job.of(bound(Worldly()), question, [picked]).packed()
    monkeypatch.setattr(sys.modules[__name__], "SCALE", scale)
    answers = []
    _Server(answers.append).serve(data)
    found = answers.pop()
    assert isinstance(found, Found)
    assert bool(found.problem) == (scale != 1)
    assert len(found.rows) == (4 if scale == 1 else 0)
    if scale == 1:
        assert sum(one.samples for one in answers if isinstance(one, Advanced)) == 4
    else:
        assert "returns other logits than the one that trains" in found.problem


def test_a_hook_that_can_be_imported_is_part_of_the_copy():
    x, y = val_loader().dataset.tensors
    picked = Picked(torch.arange(4), (x[:4],), y[:4])
    question = CertifiedRadiusMonitor(method="ibp")._certifier.question
    answers = []
    _Server(answers.append).serve(Job.of(bound(Hooked(doubled)), question, [picked]).packed())
    assert answers[-1].problem == ""
