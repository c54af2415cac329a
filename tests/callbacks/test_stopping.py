import pytest
from pytorch_lightning.callbacks import EarlyStopping

from popqorn_train.callbacks import CertifiedEarlyStopping, CertifiedRadiusMonitor
from tests.fitting import Classifier, fit, val_loader


@pytest.fixture
def medians(monkeypatch):
    """Let certifications log these medians, one after the other."""

    def use(*values):
        left = list(values)

        def replaced(certification, epsilons):
            return {"certified_radius/median": left.pop(0)}

        monkeypatch.setattr("popqorn_train.callbacks.set_certifier.scalars", replaced)

    return use


def run(stopping, epochs=12, **options):
    monitor = CertifiedRadiusMonitor(samples=3, max_overhead=None, **options)
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
