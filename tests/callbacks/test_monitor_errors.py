import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from popqorn_train.callbacks import CertifiedRadiusMonitor, EpsilonSchedule
from popqorn_train.training.loss import CertifiedLoss
from tests.fitting import QUIET, Classifier, fit, samples, train_loader, val_loader


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "`samples` must be at least 1, got 0"),
        ({"samples": 1e2}, "`samples` must be at least 1, got 100.0"),
        ({"rtol": 2}, "`rtol` must be a number strictly between 0 and 1, got 2"),
        ({"max_radius": -1}, "`max_radius` must be a positive number, got -1"),
        ({"every_n_epochs": 0}, "`every_n_epochs` must be at least 1"),
        ({"p": 0.5}, "`p` must be a number from 1"),
        ({"method": "crown"}, "`method` must be one of 'ibp'"),
        ({"epsilons": (0.2, 0.1)}, "`epsilons` must be positive and increasing"),
        ({"confirm": "yes"}, "`confirm` must be 'float64', 'deployed' or None"),
        ({"low": 1.0, "high": 0.0}, "`low` must not exceed `high`"),
    ],
)
def test_a_bad_argument_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        CertifiedRadiusMonitor(**options)


def test_a_shuffled_validation_loader_is_refused():
    trainer = pl.Trainer(callbacks=[CertifiedRadiusMonitor()], logger=False, **QUIET)
    with pytest.raises(ValueError, match=r"`val_dataloaders`.*RandomSampler.*shuffle=False"):
        trainer.validate(Classifier(), val_loader(shuffle=True), verbose=False)


def test_a_batch_that_is_no_pair_is_refused():
    class Lone(Classifier):
        def validation_step(self, batch, batch_idx):
            pass

    loader = DataLoader(torch.utils.data.TensorDataset(samples(4).tensors[0]), 2)
    trainer = pl.Trainer(callbacks=[CertifiedRadiusMonitor()], logger=False, **QUIET)
    with pytest.raises(RuntimeError, match=r"\(inputs, target\), got a list of 1; .*unpack="):
        trainer.validate(Lone(), loader, verbose=False)


def test_an_unknown_sub_module_is_refused():
    with pytest.raises(ValueError, match=r"`model` must name a sub-module .*\(rnn, head"):
        fit(CertifiedRadiusMonitor(model="net"))


def test_inputs_outside_the_domain_are_refused_before_training():
    module = Classifier()
    with pytest.raises(ValueError, match=r"`inputs` must lie inside \[low, high\]"):
        fit(CertifiedRadiusMonitor(low=0.0, high=1.0), module=module)
    assert module._trainer.global_step == 0


def test_a_schedule_needs_a_loss_to_ramp():
    with pytest.raises(ValueError, match="found no CertifiedLoss or other Objective in Classifier"):
        fit(EpsilonSchedule())


def test_a_schedule_needs_an_end_of_training():
    module = Classifier()
    module.loss = CertifiedLoss(0.1)
    trainer = pl.Trainer(callbacks=[EpsilonSchedule()], max_epochs=-1, logger=False, **QUIET)
    with pytest.raises(ValueError, match="when training ends; pass max_epochs"):
        trainer.fit(module, train_loader())


def test_two_monitors_under_one_name_are_refused():
    with pytest.raises(ValueError, match="two CertifiedRadiusMonitors have the `name` ''"):
        fit(CertifiedRadiusMonitor(), CertifiedRadiusMonitor(2))


def test_a_fit_without_validation_is_warned_of():
    trainer = pl.Trainer(callbacks=[CertifiedRadiusMonitor()], max_epochs=1, logger=False, **QUIET)
    with pytest.warns(UserWarning, match="certifies nothing: fit has no validation"):
        trainer.fit(Classifier(), train_loader())


def test_an_unpack_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="`unpack` must be a function, got str"):
        CertifiedRadiusMonitor(unpack="x")


@pytest.mark.parametrize(
    "options",
    [{"start_epsilon": -0.1}, {"start_kappa": 1.5}, {"start_kappa": -0.5}, {"ramp": 2.0}],
)
def test_a_schedule_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        EpsilonSchedule(**options)
