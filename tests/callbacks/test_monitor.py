import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from popqorn_train import UnsupportedModelError, certified_radius
from popqorn_train.callbacks import CertifiedRadiusMonitor
from tests.fitting import QUIET, Classifier, fit, samples, val_loader


def test_final_weights_are_bit_identical_with_and_without_it():
    weights = []
    for callbacks in ([], [CertifiedRadiusMonitor(samples=7)]):
        pl.seed_everything(0, verbose=False)
        _, module = fit(*callbacks, module=Classifier(nn.GRU))
        weights.append(module.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_it_logs_radii_and_accuracies_that_agree_with_certified_radius():
    monitor = CertifiedRadiusMonitor(samples=20, epsilons=(0.01, 1.0), rtol=1e-3)
    trainer, module = fit(monitor, epochs=1)
    x, y = val_loader().dataset.tensors
    radius = certified_radius(module.eval(), x, y, method="popqorn-fast")
    torch.testing.assert_close(monitor.last.radii, radius.double(), rtol=2e-3, atol=1e-9)
    logged = trainer.callback_metrics
    expected = {
        "certified_radius/mean": monitor.last.radii.mean().item(),
        "certified_radius/median": monitor.last.radii.sort().values[9].item(),
        "certified_radius/p10": monitor.last.radii.sort().values[1].item(),
        "certified_radius/capped_fraction": 0.0,
        "certified_accuracy/0": (module(x).argmax(1) == y).double().mean().item(),
        "cert_r": monitor.last.radii.sort().values[9].item(),
        "certified_accuracy/0p01": (monitor.last.radii >= 0.01).double().mean().item(),
        "certified_accuracy/1": (monitor.last.radii >= 1.0).double().mean().item(),
    }
    for name, value in expected.items():
        assert logged[name].item() == pytest.approx(value, abs=1e-6), name
    assert expected["certified_accuracy/0p01"] > expected["certified_accuracy/1"]


def test_the_subset_is_spread_over_the_set_and_the_same_every_time():
    monitor, seen = CertifiedRadiusMonitor(samples=5), []

    class Watching(pl.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                seen.append([row.index for row in monitor.last.rows])

    fit(monitor, Watching(), epochs=3)
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 5


def test_it_certifies_at_first_then_every_n_epochs_and_at_last():
    monitor, epochs = CertifiedRadiusMonitor(samples=3, every_n_epochs=2, max_overhead=None), []

    class Watching(pl.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            epochs.append(None if monitor.last is None else monitor.last.epoch)

    fit(monitor, Watching(), epochs=6)
    assert epochs == [None, 0, 0, 2, 2, 4, 5]  # the last epoch always


def test_checkpoints_and_early_stopping_can_watch_it(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="certified_radius/median", mode="max")
    stop = EarlyStopping("certified_radius/median", patience=5, mode="max")
    monitor = CertifiedRadiusMonitor(samples=6, max_overhead=None)
    trainer, _ = fit(monitor, best, stop, enable_checkpointing=True)
    assert best.best_model_score >= trainer.callback_metrics["certified_radius/median"]
    saved = torch.load(best.best_model_path, weights_only=True)
    assert len(saved["callbacks"][monitor.state_key]["certifier"]["last"]["samples"]["radius"]) == 6


def test_monitors_with_other_settings_have_other_states():
    options = [{"p": 1}, {"p": 2}, {}, {"method": "ibp"}, {"low": -9.0}, {"name": "other"}]
    assert len({CertifiedRadiusMonitor(**option).state_key for option in options}) == 6


def test_two_named_monitors_log_under_their_names():
    narrow = CertifiedRadiusMonitor(2, samples=4, name="l2")
    wide = CertifiedRadiusMonitor(samples=4)
    trainer, _ = fit(narrow, wide, epochs=1)
    for monitor, prefix in ((narrow, "l2/"), (wide, "")):
        logged = trainer.callback_metrics[f"{prefix}certified_radius/mean"].item()
        assert logged == pytest.approx(monitor.last.radii.mean().item(), rel=1e-5)
    assert narrow.last.radii.mean() > wide.last.radii.mean()


def test_it_works_in_validate_where_inference_mode_is_on():
    monitor = CertifiedRadiusMonitor(samples=6)
    trainer = pl.Trainer(callbacks=[monitor], logger=False, **QUIET)
    [logged] = trainer.validate(Classifier(), val_loader(), verbose=False)
    assert logged["certified_radius/mean"] >= 0


def test_it_works_with_fast_dev_run_and_a_csv_logger(tmp_path):
    fit(CertifiedRadiusMonitor(samples=6), fast_dev_run=True)
    logger = CSVLogger(tmp_path, name="", version="")
    fit(CertifiedRadiusMonitor(samples=6), logger=logger, log_every_n_steps=1)
    assert "certified_radius/median" in (tmp_path / "metrics.csv").read_text()


def test_an_unsupported_model_fails_at_the_sanity_check():
    class Multiplied(Classifier):
        def forward(self, x):
            states = self.rnn(x)[0]
            return self.head(states.cumprod(1)[:, -1])

    module = Multiplied()
    with pytest.raises(UnsupportedModelError, match="cumprod"):
        fit(CertifiedRadiusMonitor(), module=module)
    assert module._trainer.global_step == 0


def test_a_named_sub_module_gives_the_logits():
    class Wrapped(Classifier):
        def __init__(self):
            super().__init__()
            self.net = Classifier()

        def forward(self, x):
            return self.net(x).argsort(1)  # nothing a bound could be put on

    monitor = CertifiedRadiusMonitor(samples=4, model="net")
    trainer = pl.Trainer(callbacks=[monitor], logger=False, **QUIET)
    module = Wrapped()
    module.validation_step = lambda batch, batch_idx: None
    trainer.validate(module, val_loader(), verbose=False)
    assert len(monitor.last.radii) == 4


def test_unpack_reads_other_batches():
    class Named(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            x, y = samples(6)[index]
            return {"rows": x, "digit": y}

    module = Classifier()
    module.validation_step = lambda batch, batch_idx: None
    monitor = CertifiedRadiusMonitor(unpack=lambda batch: (batch["rows"], batch["digit"]))
    trainer = pl.Trainer(callbacks=[monitor], logger=False, **QUIET)
    trainer.validate(module, DataLoader(Named(), 4), verbose=False)
    assert [row.index for row in monitor.last.rows] == list(range(6))


def test_one_epsilon_is_enough():
    trainer, _ = fit(CertifiedRadiusMonitor(samples=4, epsilons=(0.01,)), epochs=1)
    assert "certified_accuracy/0p01" in trainer.callback_metrics


def test_a_second_fit_certifies_its_own_model_at_its_first_validation():
    monitor = CertifiedRadiusMonitor(samples=20, every_n_epochs=9, max_overhead=None)
    fit(monitor, epochs=2)
    other = Classifier()
    fit(monitor, module=other, epochs=1)
    x, y = val_loader().dataset.tensors
    radius = certified_radius(other.eval(), x, y, rtol=1e-2, method="popqorn-fast")
    torch.testing.assert_close(monitor.last.radii, radius.double(), rtol=3e-2, atol=1e-9)


def test_its_text_says_what_it_watches_and_found():
    monitor = CertifiedRadiusMonitor(2, samples=6, method="ibp")
    assert repr(monitor) == ("<CertifiedRadiusMonitor: 6 samples, l_2, ibp; nothing certified yet>")
    assert "nothing certified yet" in monitor._repr_html_()
    fit(monitor, epochs=1)
    assert "; epoch 0, SampleRows: 6 samples, " in repr(monitor)
    assert monitor._repr_html_().count("<tr>") == 7


def test_an_empty_validation_set_is_named():
    nothing = DataLoader(TensorDataset(*[part[:0] for part in val_loader().dataset.tensors]), 4)
    trainer = pl.Trainer(callbacks=[CertifiedRadiusMonitor()], logger=False, max_epochs=1, **QUIET)
    with (
        pytest.warns(UserWarning, match="Total length of"),
        pytest.warns(UserWarning, match="certifies nothing: `val_dataloaders` is empty"),
    ):
        trainer.fit(Classifier(), val_loader(), nothing)
