"""The guard in runs of every kind: broken gradients, accumulation, resumed, half precision, DDP."""

import math
import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from popqorn_train import objectives
from popqorn_train.callbacks import CertifiedTrainingGuard, EpsilonSchedule
from popqorn_train.training.collapse import Collapse
from tests.fitting import QUIET, fit, samples
from tests.rescues import COLLAPSED, Record, Robust, guard_that_says, same


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
