"""A small LightningModule and its data, for tests of callbacks."""

import tempfile

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "default_root_dir": tempfile.mkdtemp(prefix="popqorn-train-"),
}


class Classifier(pl.LightningModule):
    """As a user would write it: dropout, a recurrent layer, a read-out.

    Gates cost a bound ten times as much, and callbacks do not see them.
    """

    def __init__(self, cell=nn.RNN, dropout=0.2):
        super().__init__()
        self.rnn, self.dropout = cell(3, 6, batch_first=True), dropout
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(nn.functional.dropout(self.rnn(x)[0][:, -1], self.dropout, self.training))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def samples(count, seed=0):
    x = torch.randn(count, 4, 3, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sum((1, 2)).sign().long() + 1)


def train_loader():
    generator = torch.Generator().manual_seed(0)
    return DataLoader(samples(48), 16, shuffle=True, generator=generator)


def val_loader(**options):
    return DataLoader(samples(20, seed=1), 8, **options)


def fit(*callbacks, module=None, epochs=2, **options):
    pl.seed_everything(0, verbose=False)
    module = Classifier() if module is None else module
    options = {**QUIET, "logger": False, "max_epochs": epochs, **options}
    trainer = pl.Trainer(callbacks=list(callbacks), **options)
    trainer.fit(module, train_loader(), val_loader())
    return trainer, module
