"""What a monitor takes over from a checkpoint, and what it must not."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from popqorn_train import search_radius
from popqorn_train.callbacks import CertifiedRadiusMonitor
from popqorn_train.evaluation.certification import read_certifications
from popqorn_train.plots import draw_certifications
from tests.fitting import QUIET, Classifier, fit, train_loader, val_loader


def run(monitor, epochs, *callbacks, ckpt_path=None, save=None, module=None, **options):
    pl.seed_everything(0, verbose=False)
    options = {**QUIET, "enable_checkpointing": bool(callbacks), **options}
    trainer = pl.Trainer(
        callbacks=[monitor, *callbacks], logger=False, max_epochs=epochs, **options
    )
    trainer.fit(module or Classifier(), train_loader(), val_loader(), ckpt_path=ckpt_path)
    if save is not None:
        trainer.save_checkpoint(save)
    return trainer


def test_a_resumed_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    starts = []

    def spied(*arguments, start, **options):
        starts.append(start)
        return search_radius(*arguments, start=start, **options)

    monkeypatch.setattr("popqorn_train.evaluation.examination.search_radius", spied)
    options = {"samples": 8, "max_overhead": None, "folder": tmp_path}
    first, second = CertifiedRadiusMonitor(**options), CertifiedRadiusMonitor(**options)
    run(first, 2, save=tmp_path / "last.ckpt")
    run(second, 4, ckpt_path=tmp_path / "last.ckpt")
    found = read_certifications(first.path)
    assert [entry.epoch for entry in found] == [0, 1, 2, 3]
    assert len({entry.run for entry in found}) == 1
    positions = [[row.index for row in entry.rows] for entry in found]
    assert positions == positions[:1] * 4
    assert len(second.state_dict()["reports"]["history"]) == 4
    # The first certification of the resumed run starts from the last radii of the first.
    assert [start is not None and start.radius.any().item() for start in starts] == [
        *(False, False, False, True),  # pre-flight, as it is and with right predictions; cold, warm
        *(False, False, True, True),
    ]
    torch.testing.assert_close(starts[6].radius, found[1].radii)
    rates = torch.tensor([row.rate or math.nan for row in found[1].rows], dtype=torch.float64)
    torch.testing.assert_close(starts[6].rate, rates, equal_nan=True)


def test_whoever_watches_finds_a_value_at_the_first_validation_of_a_resumed_run(tmp_path):
    options = {"samples": 3, "every_n_epochs": 9, "folder": tmp_path}
    run(CertifiedRadiusMonitor(**options), 2, save=tmp_path / "last.ckpt")
    best = ModelCheckpoint(tmp_path / "best", monitor="certified_radius/median", mode="max")
    trainer = run(CertifiedRadiusMonitor(**options), 4, best, ckpt_path=tmp_path / "last.ckpt")
    assert best.best_model_score is not None
    assert trainer.current_epoch == 4


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_an_older_checkpoint_starts_another_end_of_the_same_curve(tmp_path):
    options = {"samples": 3, "max_overhead": None, "folder": tmp_path}
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, monitor=None)
    monitor = CertifiedRadiusMonitor(**options)
    run(monitor, 4, keep)
    again = CertifiedRadiusMonitor(**options)
    run(again, 3, keep, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert [entry.epoch for entry in read_certifications(monitor.path)] == [0, 1, 2]


def test_a_checkpoint_loaded_to_validate_leaves_the_next_fit_alone(tmp_path):
    monitor = CertifiedRadiusMonitor(
        samples=3, every_n_epochs=2, max_overhead=None, folder=tmp_path
    )
    trainer = run(monitor, 4, save=tmp_path / "last.ckpt")
    trainer.validate(Classifier(), val_loader(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    before = read_certifications(tmp_path / "certification.jsonl")
    run(monitor, 2)
    after = read_certifications(tmp_path / "certification.jsonl")
    assert [entry.epoch for entry in before] == [0, 2, 3]
    assert [entry.epoch for entry in after] == [0, 1]
    assert before[0].run != after[0].run


def test_other_samples_are_drawn_where_other_samples_are_asked_for(tmp_path):
    run(CertifiedRadiusMonitor(samples=3, folder=tmp_path), 1, save=tmp_path / "last.ckpt")
    monitor = CertifiedRadiusMonitor(samples=7, seed=3, folder=tmp_path)
    run(monitor, 2, ckpt_path=tmp_path / "last.ckpt")
    assert len(monitor.last.rows) == 7


def test_settings_given_as_numpy_numbers_are_kept_as_plain_ones(tmp_path):
    options = {
        "samples": np.int64(4),
        "seed": np.int64(1),
        "epsilons": np.linspace(0.1, 0.2, 3),
        "max_radius": np.float64(1.0),
        "high": np.float64(9.0),
        "low": -np.inf,
        "folder": tmp_path,
    }
    run(CertifiedRadiusMonitor(**options), 1, save=tmp_path / "last.ckpt")
    monitor = CertifiedRadiusMonitor(**options)
    run(monitor, 2, ckpt_path=tmp_path / "last.ckpt")
    assert monitor.failures == 0
    assert [entry.epoch for entry in read_certifications(monitor.path)] == [0, 1]


def test_the_budget_holds_in_the_last_epoch_too(tmp_path):
    monitor = CertifiedRadiusMonitor(samples=3, max_overhead=1e-6, folder=tmp_path)
    fit(monitor, epochs=2, val_check_interval=1)
    assert [entry.step for entry in read_certifications(monitor.path)] == [1, 6]


def test_values_that_forward_logs_are_those_of_training():
    class Telling(Classifier):
        def forward(self, x):
            logits = super().forward(x)
            if not self.training and self._trainer is not None and not torch.is_grad_enabled():
                self.log("calls", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
            return logits

    def calls(*callbacks):
        trainer, _ = fit(*callbacks, module=Telling(), epochs=1)
        return trainer.callback_metrics["calls"]

    assert calls(CertifiedRadiusMonitor(samples=20)) == calls()


def test_a_forked_training_has_no_path_and_says_so():
    with pytest.raises(ValueError, match=r"got None\. Where processes were forked"):
        draw_certifications(CertifiedRadiusMonitor().path)
