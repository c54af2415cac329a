"""The guard: a training that collapses is rescued, one that does not is left alone."""

import math
import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from popqorn_train import LpBall, certify, objectives
from popqorn_train.callbacks import CertifiedTrainingGuard, EpsilonSchedule
from popqorn_train.collapse import Collapse
from tests.fitting import QUIET, Classifier, fit, samples

COLLAPSED = "ignore:CertifiedTrainingGuard, step"


class Robust(Classifier):
    """The usual small module, with dropout, on a certified loss."""

    def __init__(self, loss=None, dropout=0.2):
        torch.manual_seed(0)
        super().__init__(dropout=dropout)
        self.loss = loss or objectives.ibp(0.1, kappa=0.3)
        self.spoiled = ()

    def training_step(self, batch, batch_idx):
        loss = self.loss(self, *batch)
        return loss * math.nan if self.trainer.global_step in self.spoiled else loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(self, *batch))


class Says(Collapse):
    """Calls it a collapse at certain looks."""

    def __init__(self, *looks):
        super().__init__(5.0, 0.7, 50)
        self.looks, self.count, self.heard = looks, 0, []

    def tell(self, seen, steps):
        self.count += 1
        self.heard.append(seen)
        return "as told" if self.count in self.looks else None

    def state(self):
        return {**super().state(), "count": self.count}

    def restore(self, state):
        super().restore(state)
        self.count = state["count"]


def guard_that_says(*looks, action="rollback", good=True, slower=0.5, **options):
    guard = CertifiedTrainingGuard(action, every_n_steps=1, slower=slower, **options)
    guard._collapse = Says(*looks)
    guard._collapse.good = lambda seen: good
    return guard


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, two):
    return all(torch.equal(value, two[name]) for name, value in one.items())


class Record(pl.Callback):
    """Weights, optimizer state and epsilon after every step."""

    def __init__(self):
        self.weights, self.states, self.epsilons = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append(weights(pl_module))
        state = trainer.optimizers[0].state_dict()["state"]
        self.states.append({key: {n: v.clone() for n, v in s.items()} for key, s in state.items()})
        self.epsilons.append(pl_module.loss.epsilon)


class Tiny(pl.LightningModule):
    """A GRU whose intervals drown at once after a warm-up, and its task."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 4)
        self.loss = objectives.ibp(0.1, low=0.0, high=1.0)
        with torch.no_grad():
            for weight in self.rnn.parameters():
                weight.mul_(2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])

    def training_step(self, batch, batch_idx):
        return self.loss(self, *batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.02)

    @staticmethod
    def data():
        generator, y = torch.Generator().manual_seed(0), torch.arange(64) % 4
        kinds = torch.rand(4, 12, 4, generator=generator)
        noise = 0.1 * torch.randn(64, 12, 4, generator=generator)
        return TensorDataset((kinds[y] + noise).clamp(0, 1), y)


def trained(guard):
    """Clean and certified accuracy of the task."""
    pl.seed_everything(0, verbose=False)
    module, data = Tiny(), Tiny.data()
    callbacks = [EpsilonSchedule(), *([guard] if guard else [])]
    settings = {**QUIET, "logger": False, "gradient_clip_val": 1.0}
    trainer = pl.Trainer(max_epochs=40, callbacks=callbacks, **settings)
    trainer.fit(module, DataLoader(data, 16, shuffle=True))
    x, y = data.tensors
    clean = (module(x).argmax(1) == y).float().mean().item()
    ball = LpBall(0.1, low=0.0, high=1.0)
    return clean, certify(module, x, y, ball, method="ibp").certified.float().mean().item()


def test_a_training_that_collapses_is_rescued():
    clean, certified = trained(None)
    assert clean < 0.6
    assert certified < 0.5
    guard = CertifiedTrainingGuard(every_n_steps=2, patience=10)
    with pytest.warns(UserWarning, match=r"training collapsed .*Back to the weights of step 0"):
        clean, certified = trained(guard)
    assert guard.rescues == 1
    assert clean > 0.9
    assert certified > 0.7


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


def test_a_step_without_a_finite_gradient_is_skipped_and_counted():
    record, guard, module = Record(), CertifiedTrainingGuard(every_n_steps=1), Robust()
    module.spoiled = (3, 4)
    trainer, _ = fit(guard, record, module=module, epochs=3, gradient_clip_val=1.0)
    assert guard.skipped == 2
    assert same(record.weights[4], record.weights[2])
    for key, state in record.states[4].items():
        assert same(state, record.states[2][key])
    assert not same(record.weights[5], record.weights[4])
    assert trainer.callback_metrics["training_guard/skipped_steps"] == 2


def test_gradients_that_stay_broken_are_a_collapse():
    module, record = Robust(), Record()
    module.spoiled = range(4, 100)
    guard = CertifiedTrainingGuard("stop", every_n_steps=1, patience=3)
    with pytest.warns(UserWarning, match="3 gradients in a row were not finite"):
        trainer, _ = fit(guard, record, module=module, epochs=4)
    assert trainer.global_step == 7
    assert all(value.isfinite().all() for value in record.weights[-1].values())


def test_what_is_seen_is_logged_and_nothing_else():
    class Keys(pl.Callback):
        seen = ()

        def on_train_batch_end(self, trainer, *_):
            self.seen += (dict(trainer.logged_metrics),)

    keys = Keys()
    module = Robust(objectives.ibp(0.1))
    fit(EpsilonSchedule(warmup=0.5), CertifiedTrainingGuard(every_n_steps=2), keys, module=module,
        log_every_n_steps=1, epochs=2)  # fmt: skip
    names = [
        {key.split("/")[1] for key in entry if key.startswith("training_guard/")}
        for entry in keys.seen
    ]
    always = {"modal_share", "gradient_norm", "skipped_steps", "rescues"}
    ranged = {"bound_loss", "hidden_radius", "wide", "ratio_first", "ratio_middle", "ratio_last"}
    assert names[0] == names[2] == always
    assert names[4] == always | ranged
    assert all(not value.isnan() for entry in keys.seen for value in entry.values())


def test_accumulated_batches_are_one_look():
    guard = guard_that_says(2)
    record = Record()
    with pytest.warns(UserWarning, match="step 2: training collapsed"):
        fit(guard, record, module=Robust(), epochs=2, accumulate_grad_batches=3)
    assert [seen.samples for seen in guard._collapse.heard] == [48, 48]


def test_validation_is_not_looked_at_and_losses_are_left_alone_in_the_end():
    guard, module = guard_that_says(), Robust()
    fit(guard, module=module, epochs=2)
    assert [seen.samples for seen in guard._collapse.heard] == [16] * 6
    assert module.loss.observer is None

    class Broken(Robust):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("interrupted")

    module = Broken()
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(guard_that_says(), module=module)
    assert module.loss.observer is None


class Still(Robust):
    """Without dropout, whose random numbers a checkpoint does not keep."""

    def __init__(self):
        super().__init__(dropout=0.0)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.filterwarnings(COLLAPSED)
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_goes_back_to_weights_from_before_it_was_interrupted(tmp_path):
    finals = []
    for path in (None, tmp_path / "epoch=0-step=3.ckpt"):
        record = Record()
        guard = guard_that_says(5, 6)  # to the start, the second time
        kept = [] if path else [ModelCheckpoint(tmp_path, save_top_k=-1)]
        callbacks = [EpsilonSchedule(), guard, record, *kept]
        pl.seed_everything(0, verbose=False)
        trainer = pl.Trainer(
            max_epochs=3, callbacks=callbacks, **{**QUIET, "enable_checkpointing": not path},
            logger=False,
        )  # fmt: skip
        loader = DataLoader(samples(48), 16)
        trainer.fit(Still(), loader, ckpt_path=path)
        finals.append((record, guard))
    (whole, first), (rest, second) = finals
    assert len(rest.weights) == 6
    assert rest.epsilons == whole.epsilons[3:]
    assert same(rest.weights[1], whole.weights[4])
    assert same(rest.weights[2], whole.weights[5])
    assert first.rescues == second.rescues == 2


@pytest.mark.filterwarnings(COLLAPSED)
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_is_watched_and_rescued(precision):
    guard, record = guard_that_says(5), Record()
    fit(EpsilonSchedule(), guard, record, module=Robust(), epochs=3, precision=precision)
    assert same(record.weights[4], record.weights[3])
    assert all(math.isfinite(seen.modal_share) for seen in guard._collapse.heard)


class Together(Robust):
    """Keeps the final weights of every process."""

    def on_train_end(self):
        total = sum(weight.double().sum() for weight in self.parameters()).detach()
        sums = self.all_gather(total).flatten()
        assert (sums == sums[0]).all()
        rescues = self.all_gather(torch.tensor(self.trainer.callbacks[-1].rescues)).flatten()
        assert (rescues == 1).all()


class AloneBad(Collapse):
    """Judges by the whole: one process alone sees nothing wrong."""

    def tell(self, seen, steps):
        assert seen.samples == 16  # of both processes
        self.count = getattr(self, "count", 0) + 1
        return "as told" if self.count == 3 else None


@pytest.mark.filterwarnings(COLLAPSED)
@pytest.mark.parametrize("good", [True, False])
def test_two_processes_decide_alike_and_stay_alike(good):
    guard = CertifiedTrainingGuard(every_n_steps=1)
    guard._collapse = AloneBad(5.0, 0.7, 50)
    guard._collapse.good = lambda seen: good
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit_together(EpsilonSchedule(), guard)


def fit_together(*callbacks):
    pl.seed_everything(0, verbose=False)
    settings = {**QUIET, "logger": False, "devices": 2, "strategy": "ddp_fork"}
    trainer = pl.Trainer(callbacks=list(callbacks), max_epochs=2, **settings)
    trainer.fit(Together(), DataLoader(samples(48), 8, shuffle=True))


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
