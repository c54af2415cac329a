"""The monitor changes nothing in training, whatever the training is like."""

import pytest
import pytorch_lightning as pl
import torch
import wandb
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import WandbLogger
from torch import nn

from popqorn_train import certified_radius
from popqorn_train.callbacks import CertifiedEarlyStopping, CertifiedRadiusMonitor
from tests.fitting import QUIET, Classifier, fit, samples, val_loader

CHOSEN = "popqorn-fast"  # where no method is named


@pytest.fixture
def disabled(tmp_path):
    """A wandb logger that writes nothing and takes no time."""
    yield WandbLogger(project="tests", save_dir=tmp_path, mode="disabled")
    wandb.finish()
    wandb.teardown()  # or the next run in this process would be disabled too


def weights(callbacks, cell, dropout, **options):
    pl.seed_everything(0, verbose=False)
    _, module = fit(*callbacks, module=Classifier(cell, dropout), **options)
    return module.state_dict()


def watching():
    return [
        CertifiedRadiusMonitor(samples=7, attack=True, max_overhead=None),
        CertifiedEarlyStopping(patience=9),
    ]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_final_weights_are_bit_identical_with_and_without_it(cell, dropout, precision, disabled):
    options = {"precision": precision, "log_every_n_steps": 1}
    without = weights([], cell, dropout, **options)
    watched = weights(watching(), cell, dropout, logger=disabled, **options)
    for name, value in without.items():
        assert torch.equal(value, watched[name]), name


def test_averaged_weights_are_what_is_certified():
    averaging = EMAWeightAveraging(decay=0.5, update_starting_at_step=0)
    monitor = CertifiedRadiusMonitor(samples=20, max_overhead=None)
    raw, averaged = Classifier(), Classifier()

    class Keep(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            if not trainer.sanity_checking:
                raw.load_state_dict(pl_module.state_dict())
                averaged.load_state_dict(averaging._average_model.module.state_dict())

    for callbacks in ([Keep(), averaging, monitor], [Keep(), monitor, averaging]):
        fit(*callbacks, epochs=2)
        x, y = val_loader().dataset.tensors
        seen, other = (
            certified_radius(net.eval(), x, y, rtol=1e-3, method=CHOSEN) for net in (averaged, raw)
        )
        assert not torch.allclose(seen, other, rtol=2e-2)
        torch.testing.assert_close(monitor.last.radii, seen.double(), rtol=1e-2, atol=1e-9)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
HALF = pytest.param("16-mixed", marks=[pytest.mark.gpu, needs_gpu])


@pytest.mark.one_in(2)
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", HALF])
def test_other_precisions_are_certified_as_their_float32_or_float64_copy(precision):
    accelerator = "gpu" if precision == "16-mixed" else "cpu"
    monitor = CertifiedRadiusMonitor(samples=20, max_overhead=None)
    _, module = fit(monitor, epochs=1, precision=precision, accelerator=accelerator)
    dtype = next(module.parameters()).dtype
    copy = Classifier().to(torch.float64 if dtype == torch.float64 else torch.float32)
    copy.load_state_dict(module.state_dict())
    x, y = val_loader().dataset.tensors
    x = x.to(dtype).to(next(copy.parameters()).dtype)
    radius = certified_radius(copy.eval(), x, y, rtol=1e-3, method=CHOSEN)
    torch.testing.assert_close(monitor.last.radii, radius.double(), rtol=1e-2, atol=1e-9)


class Compiled(Classifier):
    """Its network runs as compiled code."""

    def __init__(self):
        super().__init__()
        self.net = torch.compile(Classifier(), backend="eager")

    def forward(self, x):
        return self.net(x)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("model", [None, "net"])
def test_a_compiled_sub_module_is_certified(model):
    monitor = CertifiedRadiusMonitor(samples=20, max_overhead=None, model=model)
    _, module = fit(monitor, module=Compiled(), epochs=1)
    x, y = val_loader().dataset.tensors
    radius = certified_radius(module.net._orig_mod.eval(), x, y, rtol=1e-3, method=CHOSEN)
    torch.testing.assert_close(monitor.last.radii, radius.double(), rtol=1e-2, atol=1e-9)


def test_gradient_accumulation_and_several_validations_an_epoch():
    monitor = CertifiedRadiusMonitor(samples=4, max_overhead=None)
    steps = []

    class Watching(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                steps.append((monitor.last.epoch, monitor.last.step))

    options = {"accumulate_grad_batches": 3, "val_check_interval": 1}
    fit(monitor, Watching(), epochs=2, **options)
    assert steps == [(0, 0), (0, 0), (0, 1), (1, 1), (1, 1), (1, 2)]


def test_one_of_several_validation_loaders_is_watched():
    class Several(Classifier):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            pass

        def val_dataloader(self):
            return [val_loader(), torch.utils.data.DataLoader(samples(9, seed=2), 4)]

    module = Several()
    monitor = CertifiedRadiusMonitor(dataloader=1)
    trainer = pl.Trainer(callbacks=[monitor], logger=False, **QUIET)
    trainer.validate(module, verbose=False)
    x, y = samples(9, seed=2).tensors
    radius = certified_radius(module.eval(), x, y, rtol=1e-3, method=CHOSEN)
    torch.testing.assert_close(monitor.last.radii, radius.double(), rtol=1e-2, atol=1e-9)
    absent = CertifiedRadiusMonitor(dataloader=2)
    trainer = pl.Trainer(callbacks=[absent], logger=False, **QUIET)
    with pytest.raises(ValueError, match="`dataloader` must be less than 2, got 2"):
        trainer.validate(module, verbose=False)


def test_it_certifies_in_test_under_names_of_its_own():
    class Tested(Classifier):
        def test_step(self, batch, batch_idx):
            pass

    monitor = CertifiedRadiusMonitor(samples=6, attack=True)
    trainer = pl.Trainer(callbacks=[monitor], logger=False, **QUIET)
    [logged] = trainer.test(Tested(), val_loader(), verbose=False)
    assert logged["test/certification/certified"] + logged["test/certification/not_certified"] == 6
    assert logged["test/empirical_radius/gap"] >= 0
    assert monitor.path.name == "certification-test.jsonl"
