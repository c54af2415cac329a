"""Sequences made on the spot, for a complete run in seconds."""

import torch
from torch.utils.data import TensorDataset

from popqorn_train.recipes.data.sequences import SequenceData


class Generated(SequenceData):
    """One smooth curve per class, shifted and noisy, in [0, 1].

    Args:
        samples: in all; a fifth is held out to watch, two fifths to test.
        frames: of a sequence.
        features: of a frame.
        classes: number of them.
        noise: standard deviation, in the units of the input.
        batch_size: of training.
        seed: of everything.

    Raises:
        ValueError: too few samples.
    """

    def __init__(
        self,
        samples: int = 320,
        frames: int = 5,
        features: int = 3,
        classes: int = 3,
        *,
        noise: float = 0.05,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        if samples < 5:
            raise ValueError(f"`samples` must be at least 5, got {samples}.")
        generator = torch.Generator().manual_seed(seed)
        turns = torch.arange(classes)[:, None, None] / classes
        phases = 6.283 * (turns + torch.rand(1, 1, features, generator=generator))
        labels = torch.randint(classes, (samples,), generator=generator)
        times = torch.linspace(0, 3, frames)[:, None]
        shift = 0.3 * torch.randn(samples, 1, 1, generator=generator)
        curves = 0.5 + 0.4 * torch.sin(times + phases[labels] + shift)
        x = curves + noise * torch.randn(curves.shape, generator=generator)
        every, held = TensorDataset(x.clamp(0, 1), labels), samples // 5
        parts = (range(3 * held, samples), range(held), range(held, 3 * held))
        train, validation, test = (TensorDataset(*every[list(part)]) for part in parts)
        super().__init__(
            train, validation, test, features=features, classes=classes, batch_size=batch_size
        )
