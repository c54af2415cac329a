"""Several processes certify what one does: the same samples, counts and radii."""

import time
import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch import nn
from torch.utils.data import DataLoader

from popqorn_train.callbacks import CertifiedEarlyStopping, CertifiedRadiusMonitor
from popqorn_train.evaluation.certification import read_certifications
from popqorn_train.evaluation.examination import Examination
from tests.fitting import QUIET, Classifier, samples

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using `DistributedSampler`"),
    pytest.mark.filterwarnings("ignore:It is recommended to use `self.log\\('val_loss'"),
]


def processes(count):
    """Trainer options: forked processes that talk through gloo."""
    if count == 1:
        return {"devices": 1}
    return {"devices": count, "strategy": "ddp_fork"}


def double(size):
    return [(x.double(), y) for x, y in samples(size, seed=1)]


def certified(folder, count, loader, **options):
    """What a validation in so many processes certifies, and what it logs."""
    folder = folder / str(count)
    torch.manual_seed(0)
    monitor = CertifiedRadiusMonitor(samples=6, folder=folder, **options)
    settings = {**QUIET, "logger": False, **processes(count)}
    settings["use_distributed_sampler"] = loader not in (Own, Uneven, Whole)
    trainer = pl.Trainer(callbacks=[monitor], **settings)
    trainer.validate(Classifier().double(), datamodule=loader(), verbose=False)
    [found] = read_certifications(folder / "certification-validate.jsonl")
    return found, {name: value.item() for name, value in trainer.callback_metrics.items()}


class Data(pl.LightningDataModule):
    size = 16

    def val_dataloader(self):
        return DataLoader(double(self.size), 4)


class Few(Data):
    size = 7


class Own(Data):
    """The user's own sampler, without repeated samples; processes read unequal numbers."""

    size = 13

    def val_dataloader(self):
        data = double(self.size)
        if self.trainer.world_size == 1:
            return DataLoader(data, 4)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        sampler = UnrepeatedDistributedSampler(data, world, rank, shuffle=False)
        return DataLoader(data, 4, sampler=sampler)


class Whole(Data):
    """Every process reads everything."""

    def val_dataloader(self):
        return DataLoader(double(self.size), 4)


class Uneven(Own):
    """One process reads another number of batches than the other."""

    size = 9


SLOW = [pytest.param(loader, marks=pytest.mark.slow) for loader in (Data, Own, Whole)]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("loader", [Few, Uneven, *SLOW])
def test_two_and_three_processes_certify_what_one_does(tmp_path, loader):
    alone, logged = certified(tmp_path, 1, loader)
    for count in (2, 3):
        together, also_logged = certified(tmp_path, count, loader)
        assert [row.index for row in together.rows] == [row.index for row in alone.rows]
        for name in ("label", "prediction", "status", "capped"):
            values = [[getattr(row, name) for row in found.rows] for found in (alone, together)]
            assert values[0] == values[1]
        torch.testing.assert_close(together.radii, alone.radii, rtol=1e-9, atol=1e-9)
        for name in ("certified_radius/median", "certified_accuracy/0", "certification/certified"):
            assert also_logged[name] == pytest.approx(logged[name], abs=1e-7)


def trained(count, monitor, cell=nn.RNN, precision="32-true"):
    """Final weights of a training in so many processes."""
    pl.seed_everything(0, verbose=False)
    module = Classifier(cell)
    settings = {**QUIET, "logger": False, **processes(count), "precision": precision}
    callbacks = [monitor, CertifiedEarlyStopping(patience=9)] if monitor else []
    trainer = pl.Trainer(callbacks=callbacks, max_epochs=2, **settings)
    generator = torch.Generator().manual_seed(0)
    train = DataLoader(samples(48), 8, shuffle=True, generator=generator)
    trainer.fit(module, train, DataLoader(samples(13, seed=1), 4))
    return module.state_dict()


GATED = [pytest.param(cell, marks=pytest.mark.slow) for cell in (nn.LSTM, nn.GRU)]


@pytest.mark.parametrize(
    "precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("cell", [nn.RNN, *GATED])
def test_final_weights_are_bit_identical_with_and_without_it(cell, precision, tmp_path):
    monitor = CertifiedRadiusMonitor(samples=5, attack=True, folder=tmp_path)
    without = trained(2, None, cell, precision)
    watched = trained(2, monitor, cell, precision)
    for name, value in without.items():
        assert torch.equal(value, watched[name]), name
    assert [entry.epoch for entry in read_certifications(tmp_path / "certification.jsonl")] == [
        0,
        1,
    ]


class OneFails(Examination):
    """Certification fails in the second process, after the pre-flight."""

    def rows(self, model, picked, start, decided):
        if torch.distributed.get_rank() == 1 and start is not None:
            raise FloatingPointError("the bounds fell over")
        return super().rows(model, picked, start, decided)


def with_one_failing(**options):
    monitor = CertifiedRadiusMonitor(samples=6, **options)
    question = monitor._certifier.question
    monitor._certifier.choice.asked = OneFails(**vars(question))
    return monitor


def test_an_error_in_one_process_is_an_error_in_all_and_nobody_waits():
    started = time.monotonic()
    with pytest.raises(Exception, match=r"2 of 6 samples could not .*FloatingPointError"):
        trained(2, with_one_failing(on_error="raise"))
    assert time.monotonic() - started < 60


def test_training_goes_on_in_all_processes_after_an_error_in_one(tmp_path):
    with warnings.catch_warnings():  # the first process warns, and is not this one
        warnings.simplefilter("ignore")
        trained(2, with_one_failing(folder=tmp_path))
    found = read_certifications(tmp_path / "certification.jsonl")
    assert [entry.epoch for entry in found] == [0, 1]
    for entry in found:
        wrong = [row.index for row in entry.rows if row.status == "error"]
        assert wrong == [row.index for row in entry.rows if row.index % 2 == 1]
        assert len(entry.answered) == 4
