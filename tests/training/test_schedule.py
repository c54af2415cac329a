import math

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from popqorn_train import objectives
from popqorn_train.callbacks import EpsilonSchedule
from popqorn_train.training.loss import CertifiedLoss
from popqorn_train.training.schedule import LinearRamp, RampClock, SmoothRamp
from tests.fitting import QUIET, Classifier, fit, train_loader


@pytest.mark.parametrize(
    ("progress", "value"), [(0, 1), (0.19, 1), (0.2, 1), (0.4, 2), (0.6, 3), (0.9, 3), (1, 3)]
)
def test_a_ramp_is_flat_then_straight_then_flat(progress, value):
    assert LinearRamp(1.0, 3.0, warmup=0.2, ramp=0.4).at(progress) == pytest.approx(value)


def test_a_ramp_of_no_length_jumps():
    ramp = LinearRamp(0.0, 1.0, warmup=0.5, ramp=0.0)
    assert (ramp.at(0.49), ramp.at(0.5)) == (0.0, 1.0)


@pytest.mark.parametrize(("middle", "power"), [(0.25, 4.0), (0.5, 2.0), (0.1, 7.5)])
def test_a_smooth_ramp_is_a_power_then_a_line_that_touches_it(middle, power):
    ramp = SmoothRamp(0.0, 1.0, warmup=0.0, ramp=1.0, middle=middle, power=power)
    assert (ramp.at(0.0), ramp.at(1.0)) == (0.0, 1.0)
    step, values = 1e-6, [ramp.at(i / 100) for i in range(101)]
    assert values == sorted(values)
    before, at, after = (ramp.at(middle + side * step) for side in (-1, 0, 1))
    assert (at - before) / step == pytest.approx((after - at) / step, rel=1e-4)
    early = middle / 2
    assert ramp.at(early) == pytest.approx(at * 0.5**power)
    line = [ramp.at(middle + share * (1 - middle)) for share in (0.0, 0.5, 1.0)]
    assert line[2] - line[1] == pytest.approx(line[1] - line[0])
    assert ramp.at(early) < early  # below the straight line


def test_a_smooth_ramp_of_power_one_is_straight():
    smooth, straight = SmoothRamp(0.2, 0.7, 0.1, 0.5, power=1.0), LinearRamp(0.2, 0.7, 0.1, 0.5)
    for i in range(41):
        assert smooth.at(i / 40) == pytest.approx(straight.at(i / 40))


@pytest.mark.parametrize(
    ("name", "value"), [("middle", 0.0), ("middle", 1.0), ("power", 0.5), ("power", math.nan)]
)
def test_the_shape_of_a_smooth_ramp_is_checked(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        SmoothRamp(0.0, 1.0, **{name: value})


def test_a_clock_counts_steps_at_its_speed():
    clock = RampClock()
    assert [clock.tell(step) for step in (0, 1, 1, 4)] == [0, 1, 1, 4]
    clock.speed = 0.5
    assert [clock.tell(step) for step in (5, 9)] == [4.5, 6.5]


class Robust(Classifier):
    def __init__(self, loss=None):
        super().__init__()
        self.loss, self.seen = loss or CertifiedLoss(0.2, kappa=0.3), []

    def training_step(self, batch, batch_idx):
        self.seen.append({name: getattr(self.loss, name) for name in self.loss.ramped})
        return self.loss(self, *batch)

    def values(self, name):
        return [values[name] for values in self.seen]


def test_epsilon_rises_and_kappa_falls_to_the_values_of_the_loss():
    schedule = EpsilonSchedule(warmup=0.25, ramp=0.5)
    trainer, module = fit(schedule, module=Robust(), epochs=4)
    epsilons, kappas = module.values("epsilon"), module.values("kappa")
    assert len(epsilons) == 12
    assert (epsilons[0], kappas[0]) == (0.0, 1.0)
    assert epsilons == sorted(epsilons)
    assert kappas == sorted(kappas, reverse=True)
    assert (epsilons[-1], kappas[-1]) == (0.2, 0.3)
    assert module.values("alpha") == [1.0] * 12
    assert trainer.callback_metrics["certified_training/epsilon"] == pytest.approx(0.2)


def test_an_interrupted_fit_puts_the_end_values_back():
    class Broken(Robust):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("interrupted")

    module = Broken()
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(EpsilonSchedule(factor=2.0), module=module)
    assert (module.loss.epsilon, module.loss.kappa) == (0.2, 0.3)


def test_training_goes_to_a_multiple_of_epsilon_and_comes_back():
    _, module = fit(EpsilonSchedule(factor=1.5), module=Robust(), epochs=4)
    assert module.values("epsilon")[-1] == pytest.approx(0.3)
    assert module.loss.epsilon == 0.2


def test_a_smooth_schedule_has_the_values_of_a_smooth_ramp():
    schedule = EpsilonSchedule(shape="smooth", warmup=0.0, ramp=0.75)
    _, module = fit(schedule, module=Robust(), epochs=4)
    ramp = SmoothRamp(0.0, 0.2, 0.0, 0.75)
    assert module.values("epsilon") == [ramp.at(step / 12) for step in range(12)]


def test_beta_falls_from_the_value_of_the_loss():
    module = Robust(objectives.crown_ibp(0.1, beta=0.8))
    trainer, _ = fit(EpsilonSchedule(warmup=0.25, ramp=0.5), module=module, epochs=4)
    betas = module.values("beta")
    assert (betas[0], betas[-1]) == (0.8, 0.0)
    assert betas == sorted(betas, reverse=True)
    assert module.loss.beta == 0.8
    assert trainer.callback_metrics["certified_training/beta"] == 0
    module = Robust(objectives.crown_ibp(0.1, beta=0.8))
    fit(EpsilonSchedule(end_beta=None), module=module, epochs=1)
    assert module.values("beta") == [0.8] * 3


def test_the_signal_term_fades_over_the_ramp():
    module = Robust(CertifiedLoss(0.1, signal=0.4))
    fit(EpsilonSchedule(warmup=0.25, ramp=0.5), module=module, epochs=4)
    weights = module.values("signal")
    assert (weights[0], weights[6], weights[-1]) == pytest.approx((0.4, 0.2, 0.0))
    assert module.loss.signal == 0.4


def test_alpha_rises_to_the_value_of_the_loss():
    module = Robust(objectives.mtl(0.1, alpha=0.6))
    fit(EpsilonSchedule(start_alpha=0.2, warmup=0.25, ramp=0.5), module=module, epochs=4)
    alphas = module.values("alpha")
    assert (alphas[0], alphas[-1]) == (0.2, 0.6)
    assert alphas == sorted(alphas)


def test_weights_of_a_mixture_and_the_objectives_in_it_are_ramped():
    members = [objectives.ibp(0.1), objectives.crown_ibp(0.2)]
    module = Robust(objectives.mixture(members, [0.25, 0.75]))
    schedule = EpsilonSchedule(start_weights=[1.0, 0.0], warmup=0.25, ramp=0.5)
    trainer, _ = fit(schedule, module=module, epochs=4)
    weights = module.values("weights")
    assert (weights[0], weights[6], weights[-1]) == ((1.0, 0.0), (0.625, 0.375), (0.25, 0.75))
    logged = trainer.callback_metrics
    assert logged["certified_training/weights/1"] == 0.75
    assert logged["certified_training/epsilon"] == pytest.approx(0.1)  # of the first
    assert [member.epsilon for member in members] == [0.1, 0.2]
    with pytest.raises(ValueError, match="`start_weights` must hold 2 numbers"):
        fit(EpsilonSchedule(start_weights=[1.0]), module=module)


def test_weights_stay_unless_a_start_is_given():
    module = Robust(objectives.mixture([objectives.ibp(0.1), objectives.pgd(0.1)], [1, 2]))
    fit(EpsilonSchedule(), module=module, epochs=1)
    assert module.values("weights") == [(1.0, 2.0)] * 3


class Slows(pl.Callback):
    """Slows the clock of a schedule at a step, as a guard does."""

    def __init__(self, schedule):
        self.schedule = schedule

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            self.schedule.clock.speed = 0.3


def resumed(tmp_path, every, **options):
    """Values of an uninterrupted run, and of one that was killed and resumed."""
    kept = ModelCheckpoint(tmp_path, every_n_train_steps=every, save_top_k=-1)
    runs = []
    for path in (None, "last"):
        schedule, module = EpsilonSchedule(warmup=0.1, ramp=0.8), Robust()
        callbacks = [schedule, Slows(schedule)] + [kept] * (path is None)
        settings = {**QUIET, "enable_checkpointing": path is None, "logger": False, **options}
        trainer = pl.Trainer(max_epochs=4, callbacks=callbacks, **settings)
        files = sorted(tmp_path.glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
        trainer.fit(module, train_loader(), ckpt_path=files[0] if path else None)
        runs.append(module.values("epsilon"))
    return runs


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("every", [2, 3, 4])
def test_a_resumed_run_has_the_values_of_an_uninterrupted_one(tmp_path, every, accumulated):
    whole, rest = resumed(tmp_path, every, accumulate_grad_batches=accumulated)
    assert len(whole) == 12
    assert 0 < len(rest) < 12
    assert rest == whole[-len(rest) :]
    assert len(set(rest)) > 2
    assert rest[-1] < 0.2  # the ramp was slowed


def test_another_fit_begins_a_ramp_anew():
    schedule, first, second = EpsilonSchedule(), Robust(), Robust()
    fit(schedule, Slows(schedule), module=first)
    fit(schedule, module=second)
    assert second.values("epsilon")[0] == 0
    assert second.values("epsilon")[-1] > first.values("epsilon")[-1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start_epsilon", -1.0),
        ("start_kappa", 1.5),
        ("start_alpha", math.nan),
        ("end_beta", 2.0),
        ("factor", 0.0),
        ("shape", "cubic"),
        ("warmup", 0.7),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        EpsilonSchedule(**{name: value})


def test_a_module_without_an_objective_is_refused():
    with pytest.raises(ValueError, match="no CertifiedLoss"):
        fit(EpsilonSchedule())


def test_one_epsilon_is_ramped_and_not_one_a_sample():
    module = Robust(CertifiedLoss(torch.tensor([0.1])))
    with pytest.raises(ValueError, match="one epsilon"):
        fit(EpsilonSchedule(), module=module)
