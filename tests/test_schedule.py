import pytest
import pytorch_lightning as pl

from popqorn_train.callbacks import EpsilonSchedule
from popqorn_train.loss import CertifiedLoss
from popqorn_train.schedule import LinearRamp
from tests.fitting import QUIET, Classifier, train_loader


@pytest.mark.parametrize(
    ("progress", "value"), [(0, 1), (0.19, 1), (0.2, 1), (0.4, 2), (0.6, 3), (0.9, 3), (1, 3)]
)
def test_a_ramp_is_flat_then_straight_then_flat(progress, value):
    assert LinearRamp(1.0, 3.0, warmup=0.2, ramp=0.4).at(progress) == pytest.approx(value)


def test_a_ramp_of_no_length_jumps():
    ramp = LinearRamp(0.0, 1.0, warmup=0.5, ramp=0.0)
    assert (ramp.at(0.49), ramp.at(0.5)) == (0.0, 1.0)


class Robust(Classifier):
    def __init__(self):
        super().__init__()
        self.loss, self.seen = CertifiedLoss(0.2, kappa=0.3), []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.loss.epsilon, self.loss.kappa))
        return self.loss(self, *batch)


def test_epsilon_rises_and_kappa_falls_to_the_values_of_the_loss():
    module = Robust()
    schedule = EpsilonSchedule(warmup=0.25, ramp=0.5)
    trainer = pl.Trainer(max_epochs=4, callbacks=[schedule], logger=False, **QUIET)
    trainer.fit(module, train_loader())
    epsilons, kappas = zip(*module.seen, strict=True)
    assert len(epsilons) == 12
    assert (epsilons[0], kappas[0]) == (0.0, 1.0)
    assert list(epsilons) == sorted(epsilons)
    assert list(kappas) == sorted(kappas, reverse=True)
    assert (epsilons[-1], kappas[-1]) == (0.2, 0.3)
    assert trainer.callback_metrics["certified_training/epsilon"] == pytest.approx(0.2)


def test_an_interrupted_fit_puts_the_end_values_back():
    class Broken(Robust):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("interrupted")

    module = Broken()
    trainer = pl.Trainer(max_epochs=1, callbacks=[EpsilonSchedule()], logger=False, **QUIET)
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer.fit(module, train_loader())
    assert (module.loss.epsilon, module.loss.kappa) == (0.2, 0.3)
