"""scikit-learn's handwritten digits as sequences of rows; they come with its wheel."""

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

Rows = DataLoader[tuple[Tensor, ...]]


class Digits(pl.LightningDataModule):
    """1797 images of 8 rows x 8 pixels in [0, 1]: 1219 to train on, 128 to watch, 450 to test.

    Args:
        batch_size: of training.
        seed: of the split and of the order in training.
    """

    def __init__(self, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        x = torch.tensor(images, dtype=torch.float32).view(-1, 8, 8)[order] / 16
        y = torch.tensor(labels)[order]
        self.test = TensorDataset(x[:450], y[:450])
        self.validation = TensorDataset(x[450:578], y[450:578])
        self.train = TensorDataset(x[578:], y[578:])

    def train_dataloader(self) -> Rows:
        """Shuffled, in an order that depends on the seed alone."""
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.train, self.batch_size, shuffle=True, generator=generator)

    def val_dataloader(self) -> Rows:
        """In order, as the monitor needs it."""
        return DataLoader(self.validation, len(self.validation))

    def test_dataloader(self) -> Rows:
        """All at once."""
        return DataLoader(self.test, len(self.test))
