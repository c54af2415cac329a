"""Every objective works in fit, validate and test, where Lightning may switch gradients off."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from popqorn_train import objectives
from tests.fitting import QUIET, Classifier, train_loader, val_loader

MAKERS = {
    **objectives.OBJECTIVES,
    "fused": lambda epsilon: objectives.crown_ibp(epsilon, fused=True),
    "signal": lambda epsilon: objectives.ibp(epsilon, signal=0.1, kappa=0.5),
    "mixture": lambda epsilon: objectives.mixture(
        [objectives.radius(epsilon), objectives.mtl(epsilon)], [0.5, 0.5]
    ),
}


class Robust(Classifier):
    """The loss in every stage, behind a normalisation whose statistics move in training."""

    def __init__(self, loss):
        super().__init__(dropout=0.0)
        self.norm, self.loss = nn.BatchNorm1d(3), loss
        self.seen = {}

    def forward(self, x):
        return self.head(self.rnn(self.norm(x.transpose(1, 2)).transpose(1, 2))[0][:, -1])

    def training_step(self, batch, batch_idx):
        return self.loss(self, *batch)

    def validation_step(self, batch, batch_idx):
        stage = "test" if self.trainer.testing else "validation"
        self.seen.setdefault(stage, []).append(self.loss(self, *batch))

    test_step = validation_step


@pytest.mark.one_in(3)
@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_an_objective_works_in_every_stage(name, inference):
    torch.manual_seed(0)
    loss = MAKERS[name]() if name == "standard" else MAKERS[name](0.02)
    module = Robust(loss)
    settings = {**QUIET, "logger": False, "inference_mode": inference, "limit_val_batches": 1}
    settings |= {"limit_train_batches": 1, "limit_test_batches": 1, "max_epochs": 1}
    trainer = pl.Trainer(**settings)
    trainer.fit(module, train_loader(), val_loader())
    assert module.norm.num_batches_tracked == 1
    trainer.validate(module, val_loader(), verbose=False)
    trainer.test(module, val_loader(), verbose=False)
    # Validation after training, validate and test ask the same of the same weights.
    _, after, again = module.seen["validation"]
    torch.testing.assert_close(after, again)
    torch.testing.assert_close(module.seen["test"], [again])
    assert after.isfinite()
    assert module.norm.num_batches_tracked == 1
