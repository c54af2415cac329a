"""When certification itself fails: training goes on, or stops everywhere, as was asked."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from popqorn_train import Status
from popqorn_train.callbacks import CertifiedRadiusMonitor
from popqorn_train.evaluation.certification import read_certifications
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.sample_rows import count_statuses
from tests.fitting import QUIET, Classifier, fit, train_loader, val_loader

rows_of = Examination.rows


def failing(monkeypatch, when):
    """Let the examination of samples fail when ``when(picked, call)`` says so."""
    calls = []

    def rows(self, model, picked, start, decided):
        calls.append(len(picked.labels))
        if when(picked, len(calls)):
            raise FloatingPointError("the bounds fell over")
        return rows_of(self, model, picked, start, decided)

    monkeypatch.setattr(Examination, "rows", rows)


def test_training_goes_on_and_the_samples_say_error(monkeypatch, tmp_path):
    now = {"epoch": 0}
    failing(monkeypatch, lambda picked, call: call > 2 and now["epoch"] == 1)
    monitor = CertifiedRadiusMonitor(samples=6, max_overhead=None, folder=tmp_path)
    logged = []

    class Watching(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            now["epoch"] = trainer.current_epoch

        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                logged.append(dict(trainer.callback_metrics))

    with pytest.warns(
        UserWarning, match=r"6 of 6 samples could not .* epoch 1, first sample \d+: F"
    ):
        trainer, _ = fit(monitor, Watching(), epochs=3)
    assert trainer.current_epoch == 3
    found = read_certifications(monitor.path)
    assert [count_statuses(entry.rows)[Status.ERROR] for entry in found] == [0, 6, 0]
    assert "FloatingPointError: the bounds fell over" in found[1].rows[0].error
    assert [values["certification/fresh"] for values in logged] == [1, 0, 1]
    assert logged[1]["certification/error"] == 6
    # Nothing was found out in epoch 1: its radii are those of epoch 0, not logged anew.
    assert logged[1]["certified_radius/median"] == logged[0]["certified_radius/median"]


def test_a_sample_that_fails_costs_itself_alone_and_no_radii_of_others_are_logged(monkeypatch):
    failing(monkeypatch, lambda picked, call: 7 in picked.positions and call > 1)
    monitor = CertifiedRadiusMonitor(samples=20)
    with pytest.warns(UserWarning, match=r"1 of 20 samples could not .* first sample 7: Floating"):
        trainer, _ = fit(monitor, epochs=1)
    assert [row.index for row in monitor.last.rows if row.status == Status.ERROR] == [7]
    assert len(monitor.last.radii) == 19
    assert "certified_radius/mean" not in trainer.callback_metrics
    assert trainer.callback_metrics["certification/error"] == 1
    assert not monitor.fresh


def test_an_error_that_stays_is_told_once_and_is_not_asked_for_ever(monkeypatch):
    calls = []
    failing(monkeypatch, lambda picked, call: call > 2 and not calls.append(call))
    monitor = CertifiedRadiusMonitor(samples=20, max_overhead=None)
    with pytest.warns(UserWarning, match="20 of 20 samples could not be certified") as told:
        fit(monitor, epochs=3)
    assert len([w for w in told if "could not be certified" in str(w.message)]) == 1
    assert len(calls) <= 3 * 33


def test_raise_stops_training(monkeypatch):
    now = {"epoch": 0}

    class Watching(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            now["epoch"] = trainer.current_epoch

    failing(monkeypatch, lambda picked, call: now["epoch"] == 1)
    monitor = CertifiedRadiusMonitor(samples=6, max_overhead=None, on_error="raise")
    with pytest.raises(RuntimeError, match="6 of 6 samples could not be certified in epoch 1"):
        fit(monitor, Watching(), epochs=3)


def test_samples_that_never_came_were_not_attempted():
    monitor = CertifiedRadiusMonitor(samples=20)

    class Forget(pl.Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *_):
            if batch_idx == 1 and not trainer.sanity_checking:
                monitor._certifier._session.picked.clear()  # as if the first batch was lost

    fit(Forget(), monitor, epochs=1)
    counts = count_statuses(monitor.last.rows)
    assert counts[Status.NOT_ATTEMPTED] == 8
    assert len(monitor.last.answered) == 12


def test_a_certificate_that_an_attack_beats_is_an_error(monkeypatch):
    monkeypatch.setattr(
        "popqorn_train.evaluation.examination.search_empirical",
        lambda model, inputs, target, *_, **__: torch.full((len(target),), 1e-9),
    )
    monitor = CertifiedRadiusMonitor(samples=20, attack=True)
    with pytest.warns(UserWarning, match="attacked at 1e-09, below what was certified"):
        fit(monitor, epochs=1, num_sanity_val_steps=0)
    wrong = [row for row in monitor.last.rows if row.status == Status.ERROR]
    assert wrong
    assert all(row.radius is None for row in wrong)
    assert not monitor.fresh


def test_outside_of_fit_a_certification_without_any_answer_raises(monkeypatch):
    failing(monkeypatch, lambda picked, call: True)
    trainer = pl.Trainer(callbacks=[CertifiedRadiusMonitor()], logger=False, **QUIET)
    with pytest.raises(RuntimeError, match="FloatingPointError: the bounds fell over"):
        trainer.validate(Classifier(), val_loader(), verbose=False)


class Changing(Classifier):
    """From epoch 1 on something about it cannot be certified."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        states = self.rnn(x)[0]
        if self.current_epoch > 0 and self.how == "unbounded":
            return self.head(states.prod(1))
        if self.current_epoch > 0 and self.how == "untraceable" and (states.detach() > 9).any():
            return self.head(states[:, 0])
        return self.head(states[:, -1])

    def val_dataloader(self):
        return val_loader(shuffle=self.current_epoch > 0 and self.how == "shuffled")


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("unbounded", "UnboundedStepError: .*prod"),
        ("untraceable", "UnsupportedModelError: "),
        ("shuffled", "ValueError: `val_dataloaders` must .* RandomSampler"),
    ],
)
def test_training_goes_on_whatever_is_raised_in_a_later_epoch(how, said):
    pl.seed_everything(0, verbose=False)
    monitor = CertifiedRadiusMonitor(samples=6, method="crown-ibp", max_overhead=None)
    settings = {**QUIET, "logger": False, "max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}
    trainer = pl.Trainer(callbacks=[monitor], **settings)
    with pytest.warns(UserWarning, match=rf"(?s)samples could not .* in epoch 1, .*{said}"):
        trainer.fit(Changing(how), train_loader())
    assert trainer.current_epoch == 3
    assert trainer.callback_metrics["certification/error"] > 0
    assert trainer.callback_metrics["certification/fresh"] == 0
    assert len(monitor.last.rows) == 6
    assert not monitor.fresh


@pytest.mark.parametrize("how", ["untraceable", "shuffled"])
def test_training_stops_whatever_is_raised_if_that_is_asked_for(how):
    monitor = CertifiedRadiusMonitor(
        samples=6, method="crown-ibp", max_overhead=None, on_error="raise"
    )
    settings = {**QUIET, "logger": False, "max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}
    trainer = pl.Trainer(callbacks=[monitor], **settings)
    with pytest.raises((RuntimeError, ValueError), match=r"RandomSampler|could not be certified"):
        trainer.fit(Changing(how), train_loader())
    assert trainer.current_epoch == 1


def test_a_loader_that_shuffles_is_refused_without_a_sanity_check_too():
    trainer = pl.Trainer(
        callbacks=[CertifiedRadiusMonitor()],
        max_epochs=1,
        logger=False,
        num_sanity_val_steps=0,
        **QUIET,
    )
    with pytest.raises(ValueError, match="RandomSampler"):
        trainer.fit(Classifier(), train_loader(), val_loader(shuffle=True))


def test_a_batch_that_cannot_be_read_costs_its_own_samples_alone():
    def unpack(batch):
        x, y = batch
        if len(y) == 4:
            raise KeyError("lengths")
        return x, y

    monitor = CertifiedRadiusMonitor(samples=20, method="crown-ibp", unpack=unpack)
    with pytest.warns(UserWarning, match=r"4 of 20 samples could not .* first sample 16: TypeErr"):
        fit(monitor, epochs=1)
    assert [row.index for row in monitor.last.rows if row.status == Status.ERROR] == [
        *range(16, 20)
    ]
    assert len(monitor.last.answered) == 16


@pytest.mark.parametrize("bad", [0, 13])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_sample_that_is_not_finite_is_one_row(bad, value):
    x, y = (part.clone() for part in val_loader().dataset.tensors)
    x[bad, 1, 1] = value
    loader = DataLoader(TensorDataset(x, y), 8)
    monitor = CertifiedRadiusMonitor(samples=20, method="crown-ibp")
    trainer = pl.Trainer(callbacks=[monitor], max_epochs=1, logger=False, **QUIET)
    said = rf"1 of 20 samples could not .* sample {bad}: `x` holds {value}"
    with pytest.warns(UserWarning, match=said):
        trainer.fit(Classifier(), train_loader(), loader)
    assert [row.index for row in monitor.last.rows if row.status == Status.ERROR] == [bad]
    assert len(monitor.last.answered) == 19


def test_weights_that_are_not_finite_are_an_error_and_no_wrong_prediction():
    module = Classifier()

    class Breaking(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            with torch.no_grad():
                module.head.bias[0] = math.nan

    monitor = CertifiedRadiusMonitor(samples=6, method="crown-ibp", max_overhead=None)
    with pytest.warns(UserWarning, match="6 of 6 samples could not be certified in epoch 1"):
        trainer, _ = fit(monitor, Breaking(), module=module, epochs=2)
    assert trainer.current_epoch == 2
    assert all(row.status == Status.ERROR for row in monitor.last.rows)
    assert trainer.callback_metrics["certification/error"] == 6
    assert trainer.callback_metrics["certification/fresh"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "`on_error` must be 'warn' or 'raise', got 'ignore'"),
        ({"max_overhead": 0.0}, "`max_overhead` must be positive or None, got 0.0"),
        ({"dataloader": -1}, "`dataloader` must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CertifiedRadiusMonitor(**options)
