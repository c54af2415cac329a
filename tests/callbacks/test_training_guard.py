"""The guard: a training that collapses is rescued, one that does not is left alone."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from popqorn_train import objectives
from popqorn_train.callbacks import CertifiedTrainingGuard, EpsilonSchedule
from tests.fitting import QUIET, fit
from tests.rescues import COLLAPSED, Record, Robust, guard_that_says, same, weights


class Tiny(pl.LightningModule):
    """A GRU on an easy task that collapses once for certain, whatever the processor.

    In step 6 its units become copies of each other, whose large weights on each other cancel: the
    states hardly differ, their intervals are as wide as can be, and the last layer is 0. There it
    stays until other weights are loaded.
    """

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 4)
        self.loss = objectives.ibp(0.01, low=0.0, high=1.0)
        self.healthy = True

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])

    def training_step(self, batch, batch_idx):
        if self.healthy and self.trainer.global_step == 6:
            self.healthy = False
            self.collapse()
        loss = self.loss(self, *batch)
        return loss if self.head.weight.any() else 0 * loss

    def collapse(self):
        with torch.no_grad():
            for weight in self.parameters():
                weight.zero_()
            self.rnn.weight_ih_l0 += 0.01
            self.rnn.weight_hh_l0 += 50 * torch.tensor([1.0, -1.0] * 4)

    def configure_optimizers(self):
        # Without momentum, which would carry collapsed weights on.
        return torch.optim.SGD(self.parameters(), 0.5)

    @staticmethod
    def data():
        generator, y = torch.Generator().manual_seed(0), torch.arange(64) % 4
        kinds = torch.rand(4, 12, 4, generator=generator)
        noise = 0.1 * torch.randn(64, 12, 4, generator=generator)
        return TensorDataset((kinds[y] + noise).clamp(0, 1), y)


def trained(*guards, epochs=60):
    """How many classes are predicted in the end, and the accuracy."""
    pl.seed_everything(0, verbose=False)
    module, data = Tiny(), Tiny.data()
    trainer = pl.Trainer(max_epochs=epochs, callbacks=list(guards), **{**QUIET, "logger": False})
    trainer.fit(module, DataLoader(data, 16, shuffle=True))
    x, y = data.tensors
    found = module(x).argmax(1)
    return len(found.unique()), (found == y).float().mean().item()


def test_a_training_that_collapses_is_rescued():
    assert trained(epochs=4) == (1, 0.25)  # and stays so
    guard = CertifiedTrainingGuard(every_n_steps=2, patience=10)
    with pytest.warns(UserWarning, match=r"training collapsed .*Back to the weights of step \d"):
        classes, clean = trained(guard)
    assert guard.rescues == 1
    assert classes > 1
    assert clean > 0.5


@pytest.mark.one_in(2)
@pytest.mark.parametrize("objective", ["ibp", "pgd", "radius", "sabr", "crown-ibp"])
def test_a_training_that_learns_is_not_changed_by_one_bit(objective):
    loss = objectives.OBJECTIVES[objective](0.05)
    finals = []
    for guards in ([], [CertifiedTrainingGuard(every_n_steps=1)]):
        _, module = fit(EpsilonSchedule(), *guards, module=Robust(loss), epochs=2)
        finals.append(weights(module))
    assert same(*finals)


def test_a_rollback_restores_weights_optimizer_and_ramp_to_the_last_bit():
    record, schedule = Record(), EpsilonSchedule(warmup=0.0, ramp=1.0)
    guard = guard_that_says(7)
    with pytest.warns(UserWarning, match="Back to the weights of step 6"):
        fit(schedule, guard, record, module=Robust(), epochs=4)
    # Look 7 comes after step 7; looks 1 to 6 were good, the last of them after step 6.
    assert same(record.weights[6], record.weights[5])
    for key, state in record.states[6].items():
        assert same(state, record.states[5][key])
    assert not same(record.weights[7], record.weights[6])  # training goes on
    assert record.epsilons[:7] == pytest.approx([0.1 * step / 12 for step in range(7)])
    # The clock stood at 5 in step 6, and goes on at half its speed.
    assert record.epsilons[7:] == pytest.approx([0.1 * (5 + s / 2) / 12 for s in range(1, 6)])


def test_without_good_weights_it_goes_back_to_the_start_and_skips_the_warm_up():
    record, schedule = Record(), EpsilonSchedule(warmup=0.25, ramp=0.5)
    with pytest.warns(UserWarning, match="Back to the weights of step 0"):
        fit(schedule, guard_that_says(8, good=False), record, module=Robust(), epochs=4)
    assert same(record.weights[7], weights(Robust()))
    assert record.states[7] == {}
    assert record.epsilons[8] == pytest.approx(0.1 * (0.5 / 6))
    assert not same(record.weights[7], record.weights[6])


def test_good_weights_have_to_prove_themselves_again_after_a_rescue():
    record = Record()
    guard = guard_that_says(5, 6)
    with pytest.warns(UserWarning, match="Back to the weights of step"):
        fit(EpsilonSchedule(), guard, record, module=Robust(), epochs=3)
    assert same(record.weights[4], record.weights[3])
    assert record.states[5] == {}  # the second time, the start
    assert guard.rescues == 2


def test_weights_that_were_good_before_there_were_intervals_are_not_gone_back_to():
    record = Record()
    guard = guard_that_says(6)  # intervals come with step 4, as epsilon rises
    guard._collapse.good = lambda seen: not seen.widths
    with pytest.warns(UserWarning, match="Back to the weights of step 0"):
        fit(EpsilonSchedule(warmup=0.25, ramp=0.5), guard, record, module=Robust(), epochs=4)
    assert [bool(seen.widths) for seen in guard._collapse.heard[:5]] == [False] * 4 + [True]


def test_learning_rates_stay_where_their_schedule_has_brought_them():
    class Decaying(Robust):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), 1e-2)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    with pytest.warns(UserWarning, match="Back to the weights of step 0"):
        trainer, _ = fit(guard_that_says(8, good=False), module=Decaying(), epochs=3)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 / 8)


def test_slowing_changes_the_ramp_alone():
    record, plain = Record(), Record()
    fit(EpsilonSchedule(warmup=0, ramp=1), plain, module=Robust(), epochs=3)
    with pytest.warns(UserWarning, match="The ramp goes on at 0.25 of its speed"):
        fit(
            EpsilonSchedule(warmup=0, ramp=1),
            guard_that_says(4, action="slow", slower=0.25),
            record,
            module=Robust(),
            epochs=3,
        )
    assert same(record.weights[3], plain.weights[3])
    assert record.epsilons[4:] == pytest.approx([0.1 * (3 + s / 4) / 9 for s in range(1, 6)])


def test_stopping_ends_training_and_warning_does_not():
    with pytest.warns(UserWarning, match="as told.*It is stopped after 0 rescues"):
        trainer, _ = fit(guard_that_says(4, action="stop"), module=Robust(), epochs=4)
    assert trainer.global_step == 4
    with pytest.warns(UserWarning, match=r"step 4: training collapsed \(as told\)\.$"):
        trainer, _ = fit(guard_that_says(4, action="warn"), module=Robust(), epochs=4)
    assert trainer.global_step == 12


@pytest.mark.filterwarnings(COLLAPSED)
def test_training_is_stopped_when_rescues_do_not_help():
    guard = guard_that_says(2, 4, 6, max_rescues=2)
    trainer, _ = fit(guard, module=Robust(), epochs=4)
    assert (guard.rescues, trainer.global_step) == (2, 6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("on_collapse", "pray"),
        ("every_n_steps", 0),
        ("patience", 0),
        ("max_rescues", 1.5),
        ("max_ratio", math.nan),
        ("max_constancy", 1.5),
        ("slower", 0.0),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        CertifiedTrainingGuard(**{name: value})


def test_what_it_cannot_watch_is_refused_before_training():
    with pytest.raises(ValueError, match="no CertifiedLoss"):
        fit(CertifiedTrainingGuard())
    with pytest.raises(ValueError, match="needs an EpsilonSchedule"):
        fit(CertifiedTrainingGuard("slow"), module=Robust())


def test_another_fit_begins_anew():
    guard, record = guard_that_says(4, good=False), Record()
    with pytest.warns(UserWarning, match="rescue 1 of 3"):
        fit(EpsilonSchedule(), guard, module=Robust())
    guard._collapse.count = 0
    with pytest.warns(UserWarning, match="rescue 1 of 3"):
        fit(EpsilonSchedule(), guard, record, module=Robust())
    assert guard.rescues == 1
    assert same(record.weights[3], weights(Robust()))
