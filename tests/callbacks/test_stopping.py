import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import CSVLogger

from popqorn_train.callbacks import CertifiedEarlyStopping, CertifiedRadiusMonitor
from tests.fitting import Classifier, fit, val_loader


@pytest.fixture
def medians(monkeypatch):
    """Let certifications log these medians, one after the other."""

    def use(*values):
        left = list(values)

        def replaced(certification, epsilons):
            return {"certified_radius/median": left.pop(0)}

        monkeypatch.setattr("popqorn_train.callbacks.certifier_record.scalars", replaced)

    return use


def run(stopping, epochs=12, **options):
    monitor = CertifiedRadiusMonitor(samples=3, method="ibp", max_overhead=None, **options)
    trainer, _ = fit(monitor, stopping, epochs=epochs)
    return trainer.current_epoch


def test_epochs_without_certification_do_not_count(medians):
    medians(*[0.1 * step for step in range(1, 9)])
    usual = EarlyStopping("certified_radius/median", patience=1, mode="max")
    assert run(usual, every_n_epochs=2) < 12
    medians(*[0.1 * step for step in range(1, 9)])
    assert run(CertifiedEarlyStopping(patience=1), every_n_epochs=2) == 12


def test_it_stops_after_some_certifications_without_improvement(medians):
    medians(0.1, 0.3, 0.2, 0.2, 0.2)
    assert run(CertifiedEarlyStopping(patience=2), every_n_epochs=2) == 7  # epochs 0 2 4 6


def test_smaller_can_be_better(medians):
    medians(0.3, 0.2, 0.1, 0.2, 0.3)
    assert run(CertifiedEarlyStopping(mode="min", patience=2)) == 5


def test_it_needs_a_monitor_before_it():
    with pytest.raises(ValueError, match="CertifiedEarlyStopping needs a CertifiedRadiusMonitor"):
        fit(CertifiedEarlyStopping())
    with pytest.raises(ValueError, match="before it in the list of callbacks"):
        fit(CertifiedEarlyStopping(), CertifiedRadiusMonitor(samples=3))
    with pytest.raises(ValueError, match="`monitor`='l2/certified_radius/mean'"):
        fit(
            CertifiedRadiusMonitor(samples=3, name="linf"),
            CertifiedEarlyStopping("l2/certified_radius/mean"),
        )


def rates(monitor, epochs, **options):
    """Learning rate in every epoch under ReduceLROnPlateau."""

    class Plateau(Classifier):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 1.0)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
            scheduler = plateau(optimizer, mode="max", patience=1, factor=0.5, threshold=0.0)
            how = {"scheduler": scheduler, "monitor": monitor, "strict": False}
            return {"optimizer": optimizer, "lr_scheduler": how}

        def on_train_epoch_start(self):
            found.append(self.optimizers().param_groups[0]["lr"])

    found = []
    watching = CertifiedRadiusMonitor(samples=3, method="ibp", max_overhead=None, **options)
    fit(watching, module=Plateau(), epochs=epochs)
    return found


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric")
@pytest.mark.parametrize("name", [pytest.param("", marks=pytest.mark.slow), "l2"])
def test_a_plateau_of_fresh_values_counts_certifications_alone(medians, name):
    key = f"{name}/certified_radius/median" if name else "certified_radius/median"
    medians(*[0.1 * step for step in range(1, 9)])
    assert min(rates(key, 9, every_n_epochs=3, name=name)) < 1  # as if nothing grew
    medians(*[0.1 * step for step in range(1, 9)])
    assert rates(f"fresh/{key}", 9, every_n_epochs=3, name=name) == [1.0] * 9
    medians(0.3, 0.2, 0.1, 0.1, 0.1)
    assert rates(f"fresh/{key}", 9, every_n_epochs=3, name=name) == [1.0] * 7 + [0.5] * 2


def test_fresh_values_are_gone_in_the_next_epoch_and_are_not_logged(tmp_path):
    seen = []

    class Watching(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append({key for key in trainer.callback_metrics if key.startswith("fresh/")})

    logger = CSVLogger(tmp_path, name="", version="")
    monitor = CertifiedRadiusMonitor(samples=3, method="ibp", max_overhead=None, every_n_epochs=2)
    fit(monitor, Watching(), epochs=4, logger=logger, log_every_n_steps=1)
    assert [bool(keys) for keys in seen] == [True, False, True, True]
    assert {"fresh/certified_radius/median", "fresh/certified_accuracy/0p05"} < seen[0]
    assert not any("certification" in key for key in seen[0])
    assert "fresh/c" not in (tmp_path / "metrics.csv").read_text()


def test_it_does_not_stand_in_the_way_of_validate_and_test():
    class Tested(Classifier):
        def test_step(self, batch, batch_idx):
            pass

    module = Tested()
    trainer, _ = fit(
        CertifiedRadiusMonitor(samples=3), CertifiedEarlyStopping(), module=module, epochs=1
    )
    trainer.validate(module, val_loader(), verbose=False)
    trainer.test(module, val_loader(), verbose=False)


def test_it_listens_to_the_monitor_of_that_name():
    named = CertifiedRadiusMonitor(samples=3, name="l2")
    stopping = CertifiedEarlyStopping("l2/certified_radius/median")
    fit(CertifiedRadiusMonitor(samples=3), named, stopping, epochs=1, module=Classifier())
    assert stopping._watched is named
