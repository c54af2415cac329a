"""What the data modules of the recipes share: where files lie, splits, padding and loaders.

B: batch, T: frames, N: features.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

Loader = DataLoader[Any]
Collate = Callable[[list[tuple[Tensor, Tensor]]], Any] | None
_FOLDER = "POPQORN_DATA"


class DataNotFoundError(FileNotFoundError):
    """Files of a data set are missing; the message says where to put them."""


def data_folder(path: str | Path | None) -> Path:
    """The given folder or file, else ``$POPQORN_DATA``, else ``data``."""
    return Path(path or os.environ.get(_FOLDER, "data")).expanduser()


def not_found(what: str, wanted: str, folder: Path) -> DataNotFoundError:
    """The error of a data module whose files are missing."""
    return DataNotFoundError(
        f"{what} was not found in {str(folder)!r}: put {wanted} there, or name its folder by "
        f"--data.path or the environment variable {_FOLDER}."
    )


def hold_out(
    count: int, held: int, seed: int, argument: str = "validation"
) -> tuple[Tensor, Tensor]:
    """Positions to train on and positions held out of them, drawn by the seed.

    Raises:
        ValueError: nothing would be left to train on.
    """
    if not 0 <= held < count:
        raise ValueError(f"`{argument}` must lie between 0 and {count - 1}, got {held}.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held:], order[:held].sort().values


class SequenceSet(Dataset[tuple[Tensor, Tensor]]):
    """Sequences of different lengths with their labels.

    Args:
        sequences: S tensors, ``(T_s, N)`` or ``(T_s,)`` tokens.
        labels: ``(S,)``.
    """

    def __init__(self, sequences: Sequence[Tensor], labels: Tensor) -> None:
        self.sequences, self.labels = sequences, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.sequences[index], self.labels[index]

    def some(self, chosen: Tensor) -> "SequenceSet":
        """Some of the samples."""
        return SequenceSet([self.sequences[i] for i in chosen.tolist()], self.labels[chosen])


Samples = TensorDataset | SequenceSet


def padded(samples: list[tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """A batch ``((x, lengths), labels)``; x is padded with 0 behind each sequence."""
    sequences, labels = zip(*samples, strict=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return (pad_sequence(list(sequences), batch_first=True), lengths), torch.stack(labels)


class SimilarLengths(Sampler[int]):
    """An order in which batches hold samples of similar lengths, so that little is padded.

    Samples are shuffled by the global generator, sorted by length within pools of a few batches,
    and the batches are shuffled again; the last one may be smaller.

    Args:
        lengths: of the samples.
        batch_size: of the batches.
        pool: how many batches are sorted together.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, pool: int = 8) -> None:
        self._lengths, self._batch, self._pool = torch.tensor(lengths), batch_size, pool

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self))
        pools = torch.split(order, self._batch * self._pool)
        ordered = torch.cat([pool[self._lengths[pool].argsort()] for pool in pools])
        *whole, last = torch.split(ordered, self._batch)
        batches = [whole[at] for at in torch.randperm(len(whole)).tolist()]
        yield from torch.cat([*batches, last]).tolist()


class SequenceData(pl.LightningDataModule):
    """Three sets of sequences, and what a network has to know of them.

    The order in training depends on the seed of the run alone.

    Args:
        train: to train on, samples ``(sequence, label)``.
        validation: held out of the training data; may be empty.
        test: looked at once, in the end.
        features: of a frame, or the size of a word's vector.
        classes: number of them.
        batch_size: of training.
        collate: how samples become a batch; None stacks them.

    Attributes:
        words: of the vocabulary; None where frames are vectors.
        synonyms: what may stand in the place of a token; None where nothing is said of it.
        names: of the classes.

    Raises:
        ValueError: a batch of no samples.
    """

    def __init__(
        self,
        train: Samples,
        validation: Samples,
        test: Samples,
        *,
        features: int,
        classes: int,
        batch_size: int,
        collate: Collate = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        self.train, self.validation, self.test = train, validation, test
        self.features, self.classes, self.batch_size = features, classes, batch_size
        self.words: int | None = None
        self.synonyms: dict[int, list[int]] | None = None
        self.names = tuple(str(number) for number in range(classes))
        self._collate = self._collate_training = collate

    def train_dataloader(self) -> Loader:
        """Shuffled by the global generator, which ``seed_everything`` sets."""
        return DataLoader(
            self.train, self.batch_size, shuffle=True, collate_fn=self._collate_training
        )

    def val_dataloader(self) -> Loader | list[Loader]:
        """In order, as the monitor needs it."""
        return self._in_order(self.validation) if len(self.validation) else []

    def test_dataloader(self) -> Loader:
        """In order."""
        return self._in_order(self.test)

    def _in_order(self, part: Samples) -> Loader:
        return DataLoader(part, 256, collate_fn=self._collate)
