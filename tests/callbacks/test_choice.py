"""The method that is chosen where none was named."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from popqorn_train import certified_radius
from popqorn_train.callbacks import CertifiedRadiusMonitor, choice
from popqorn_train.callbacks.choice import Choice
from popqorn_train.callbacks.session import Cost
from popqorn_train.evaluation.batches import unpack_pair
from popqorn_train.evaluation.certification import read_certifications
from tests.fitting import QUIET, Classifier, val_loader

QUESTION = CertifiedRadiusMonitor()._certifier.question


def batch(frames, count=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, frames, 3, generator=generator)
    return x, x.sum((1, 2)).sign().long() + 1


def chosen(frames, cost, epoch, samples=10, monkeypatch=None):
    """What is chosen where a sample costs so much by every method."""
    found, model = Choice(QUESTION, open=True), Classifier().eval()
    monkeypatch.setattr(choice, "pre_flight", lambda *_: Cost(cost / 2, cost))
    found.try_on(model, model, unpack_pair, batch(frames))
    found.settle(samples, epoch)
    return found.question.method


@pytest.mark.parametrize(
    ("frames", "cost", "epoch", "name"),
    [
        (49, 100.0, 1.0, "popqorn-fast"),
        (50, 1.0, 11.0, "popqorn-fast"),
        (50, 1.0, 9.0, "ibp"),
        (50, 0.4, 1.0, "popqorn-fast"),  # 4 s are no reason
    ],
)
def test_long_sequences_get_what_answers_within_an_epoch(frames, cost, epoch, name, monkeypatch):
    assert chosen(frames, cost, epoch, monkeypatch=monkeypatch) == choice.METHODS[name]


def test_a_method_in_the_middle_is_tried_too(monkeypatch):
    monkeypatch.setattr(choice, "LONG", ("popqorn-tight", "popqorn", "crown-ibp"))
    costs = iter([9.0, 0.1])
    found, model = Choice(QUESTION, open=True), Classifier().eval()
    monkeypatch.setattr(choice, "pre_flight", lambda *_: Cost(0.0, next(costs)))
    found.try_on(model, model, unpack_pair, batch(60))
    found.settle(10, 8.0)
    assert found.left[0] == "popqorn"


def test_what_was_chosen_is_kept_and_a_method_of_the_user_is_not_touched():
    first, second = (Choice(QUESTION, open=True) for _ in range(2))
    first.left, first.frames = ("ibp",), 60
    first.settle(1, 1.0)
    second.restore(first.state())
    assert second.settled
    assert second.told() == "ibp (chosen for 60 frames)"
    own = Choice(QUESTION, open=False)
    own.restore(first.state())
    assert own.told() == "popqorn-fast"
    first.restart()
    assert not first.settled


@pytest.fixture
def few(monkeypatch):
    """Six frames are many."""
    monkeypatch.setattr(choice, "_FRAMES", 6)


class Long(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(*batch(6, 16)), 8)

    def val_dataloader(self):
        return DataLoader(TensorDataset(*batch(6, 6)), 4)


def trained(monitor, ckpt_path=None, epochs=1, **options):
    pl.seed_everything(0, verbose=False)
    settings = {**QUIET, "logger": False, "max_epochs": epochs, **options}
    trainer = pl.Trainer(callbacks=[monitor], **settings)
    trainer.fit(Classifier(nn.RNN), datamodule=Long(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("checks", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_it_is_chosen_once_said_recorded_and_kept(checks, few, tmp_path, caplog, monkeypatch):
    options = {"samples": 6, "folder": tmp_path, "max_overhead": None}
    monitor = CertifiedRadiusMonitor(**options)
    assert "method not chosen yet" in repr(monitor)
    monkeypatch.setattr(choice, "_PATIENCE", 1e9)
    trainer = trained(monitor, num_sanity_val_steps=checks)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert "popqorn-fast (chosen for 6 frames)" in repr(monitor)
    assert ("popqorn-fast (chosen for 6 frames)" in caplog.text) == (checks > 0)
    monkeypatch.setattr(choice, "_PATIENCE", 0.0)  # would choose another one
    again = CertifiedRadiusMonitor(**options)
    trained(again, tmp_path / "last.ckpt", epochs=2)
    methods = [entry.settings["method"] for entry in read_certifications(again.path)]
    assert methods == ["popqorn-fast", "popqorn-fast"]


@pytest.mark.parametrize("checks", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_one_that_takes_longer_than_an_epoch_is_given_up_at_the_first_certification(
    checks, few, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(choice, "_PATIENCE", 0.0)
    monitor = CertifiedRadiusMonitor(samples=6, folder=tmp_path, rtol=1e-3)
    trainer = trained(monitor, num_sanity_val_steps=checks)
    assert "CertifiedRadiusMonitor certifies by ibp: a certification by popqorn-fast" in caplog.text
    [found] = read_certifications(monitor.path)
    assert found.settings["method"] == "ibp"
    model = trainer.lightning_module.eval()
    radii = certified_radius(model, *batch(6, 6), method="ibp", rtol=1e-3)
    torch.testing.assert_close(monitor.last.radii, radii.double(), rtol=3e-3, atol=1e-9)


def test_outside_of_fit_the_frames_decide(few):
    monitor = CertifiedRadiusMonitor(samples=3)
    trainer = pl.Trainer(callbacks=[monitor], logger=False, **QUIET)
    trainer.validate(Classifier(nn.RNN), datamodule=Long(), verbose=False)
    assert monitor.last.settings["method"] == "popqorn-fast"
    trainer.validate(Classifier(nn.RNN), val_loader(), verbose=False)
    assert monitor.last.settings["method"] == "popqorn-fast"  # once


def test_all_monitors_without_a_method_share_a_state():
    assert CertifiedRadiusMonitor().state_key != CertifiedRadiusMonitor(method="ibp").state_key
    before = CertifiedRadiusMonitor()
    key = before.state_key
    before._certifier.choice.left = ("ibp",)
    assert before.state_key == key
