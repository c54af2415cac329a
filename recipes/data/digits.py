"""scikit-learn's handwritten digits as sequences of rows; they come with its wheel."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from popqorn_train.recipes.data.sequences import Loader, SequenceData


class Digits(SequenceData):
    """1797 images of 8 rows x 8 pixels in [0, 1]: 1219 to train on, 128 to watch, 450 to test.

    Args:
        batch_size: of training.
        seed: of the split and of the order in training.
    """

    def __init__(self, batch_size: int = 64, seed: int = 0) -> None:
        self.seed = seed
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        x = torch.tensor(images, dtype=torch.float32).view(-1, 8, 8)[order] / 16
        y = torch.tensor(labels)[order]
        parts = (slice(578, None), slice(450, 578), slice(450))
        train, validation, test = (TensorDataset(x[part], y[part]) for part in parts)
        super().__init__(train, validation, test, features=8, classes=10, batch_size=batch_size)

    def train_dataloader(self) -> Loader:
        """Shuffled, in an order that depends on the seed alone."""
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.train, self.batch_size, shuffle=True, generator=generator)
