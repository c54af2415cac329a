"""Callbacks serve ``pytorch_lightning`` and ``lightning.pytorch`` alike, in any order."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from popqorn_train import CertifiedLoss, callbacks
from popqorn_train.evaluation.certification import read_certifications
from tests.fitting import QUIET, samples, val_loader

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pytorch_lightning", "lightning.pytorch")


@pytest.fixture(params=PACKAGES)
def package(request):
    """One of the two, where it is installed."""
    return pytest.importorskip(request.param)


def classes_of(package):
    """A module and its data as users of a package write them."""

    class Net(package.LightningModule):
        def __init__(self, hidden: int = 6):
            super().__init__()
            self.rnn, self.head = nn.GRU(3, hidden, batch_first=True), nn.Linear(hidden, 3)
            self.loss = CertifiedLoss(0.01, kappa=0.5)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

        def training_step(self, batch, batch_idx):
            return self.loss(self, *batch)

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    class Data(package.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(samples(48), 16)

        def val_dataloader(self):
            return val_loader()

    return Net, Data


@pytest.mark.parametrize("name", callbacks.__all__)
def test_every_callback_is_one_of_the_package(package, name):
    assert issubclass(getattr(callbacks, name), package.Callback)


def test_stopping_is_early_stopping_of_the_package(package):
    kind = package.callbacks.EarlyStopping
    made = callbacks.CertifiedEarlyStopping(patience=7, min_delta=0.5)
    assert isinstance(made, kind)
    assert (made.monitor, made.patience, made.min_delta) == ("certified_radius/median", 7, 0.5)
    trainer = package.Trainer(callbacks=[made], logger=False, **QUIET)
    assert trainer.early_stopping_callback is made


@pytest.mark.one_in(2)
def test_all_callbacks_work_together_in_one_training(package, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    package.seed_everything(0, verbose=False)
    monitor = callbacks.CertifiedRadiusMonitor(samples=6, method="crown-ibp", max_overhead=None)
    others = [
        callbacks.CertifiedEarlyStopping(patience=9),
        callbacks.EpsilonSchedule(),
        callbacks.CertifiedTrainingGuard(),
    ]
    loggers = [
        package.loggers.CSVLogger(tmp_path / "csv", name="", version=""),
        package.loggers.WandbLogger(offline=True, save_dir=tmp_path),
    ]
    settings = {**QUIET, "logger": loggers, "max_epochs": 3, "log_every_n_steps": 1}
    trainer = package.Trainer(callbacks=[monitor, *others], **settings)
    net, data = classes_of(package)
    trainer.fit(net(), datamodule=data())
    import wandb

    wandb.finish()
    assert trainer.current_epoch == 3
    found = read_certifications(monitor.path)
    assert [entry.epoch for entry in found] == [0, 1, 2]
    assert all(entry.complete for entry in found)
    written = (tmp_path / "csv" / "metrics.csv").read_text()
    for name in ("certified_radius/median", "certified_training/epsilon", "training_guard/rescues"):
        assert name in written.splitlines()[0]
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/table/**/*.json"))
    assert monitor.failures == 0


def test_both_packages_train_and_certify_the_same():
    pytest.importorskip("lightning.pytorch")
    radii = []
    for package in map(import_module, PACKAGES):
        package.seed_everything(0, verbose=False)
        monitor = callbacks.CertifiedRadiusMonitor(samples=6, method="crown-ibp")
        trainer = package.Trainer(callbacks=[monitor], max_epochs=1, logger=False, **QUIET)
        net, data = classes_of(package)
        trainer.fit(net(), datamodule=data())
        radii.append(monitor.last.radii)
    assert torch.equal(*radii)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("path", ["popqorn_train.callbacks.", ""])
def test_the_command_line_of_the_package_takes_class_paths(package, path, tmp_path, monkeypatch):
    cli = pytest.importorskip(f"{package.__name__}.cli")
    config = tmp_path / "mine.yaml"
    config.write_text(f"""
trainer:
  max_epochs: 1
  logger: false
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {tmp_path}
  callbacks:
    - class_path: {path}CertifiedRadiusMonitor
      init_args:
        samples: 4
        method: crown-ibp
        frames: [true, true, true, false]
        features: [true, false, true]
    - class_path: {path}CertifiedRadiusMonitor
      init_args:
        name: box
        samples: 4
        method: crown-ibp
        box: {{lower: [-9.0, -8.0, -7.0], upper: 9.0}}
    - class_path: {path}EpsilonSchedule
    - class_path: {path}CertifiedTrainingGuard
    - class_path: {path}CertifiedEarlyStopping
      init_args: {{patience: 7, strict: false}}
""")
    net, data = classes_of(package)
    arguments = ["fit", "--config", str(config), "--trainer.callbacks.patience=8"]
    monkeypatch.setattr(sys, "argv", ["mine.py", *arguments])
    ran = cli.LightningCLI(net, data, save_config_callback=None, seed_everything_default=0)
    *_, stop = [c for c in ran.trainer.callbacks if isinstance(c, callbacks.CertifiedEarlyStopping)]
    assert (stop.patience, stop.strict) == (8, False)
    assert ran.trainer.callback_metrics["certified_radius/median"] >= 0
    assert 0 <= ran.trainer.callback_metrics["box/certified_share/median"] <= 1


BOTH = """
import lightning.pytorch, pytorch_lightning
for package in (lightning.pytorch, pytorch_lightning):
    assert issubclass(callbacks.CertifiedRadiusMonitor, package.Callback)
"""


@pytest.mark.slow
def test_callbacks_can_be_imported_first():
    pytest.importorskip("lightning.pytorch")
    run(f"from popqorn_train import callbacks\n{BOTH}")


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_messages_are_still_printed_by_the_package_that_the_user_imported_first(name):
    pytest.importorskip("lightning.pytorch")
    run(f"""
import {name}
from popqorn_train import callbacks
import lightning_utilities.core.rank_zero as messages
assert messages.log.name.startswith({name!r}), messages.log.name
{BOTH}
""")


@pytest.mark.slow
def test_one_package_is_enough():
    run("""
import sys
sys.modules["lightning"] = None  # as if it were not installed
from popqorn_train import callbacks
from popqorn_train.callbacks.lightning_packages import namesakes
import pytorch_lightning
assert len(namesakes("loggers", "WandbLogger")) == 1
assert issubclass(callbacks.CertifiedEarlyStopping, pytorch_lightning.callbacks.EarlyStopping)
assert callbacks.CertifiedEarlyStopping(patience=7).patience == 7
""")


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
