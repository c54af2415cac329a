"""The batches of a loader by number, so that several processes can share them.

Who certifies a part of a data set takes whole batches of the loader: the samples are then examined
in the groups in which one process examines them, and have the same rows.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, IterableDataset

from popqorn_train.evaluation.batches import Unpack, unpacked


@dataclass(frozen=True)
class Shard:
    """One of several parts of a data set: every so-manieth batch.

    Attributes:
        number: from 1 on.
        count: of all parts.
    """

    number: int
    count: int

    @classmethod
    def of(cls, text: str) -> "Shard":
        """Read ``"2/8"``.

        Raises:
            ValueError: it is no shard.
        """
        number, slash, count = text.partition("/")
        try:
            shard = cls(int(number), int(count))
        except ValueError:
            shard = cls(0, 0)
        if not slash or not 1 <= shard.number <= shard.count:
            raise ValueError(
                f"`shard` must be its number and how many there are, from 1/8 to 8/8, got {text!r}."
            )
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def owns(self, block: int) -> bool:
        """Whether the batch of this number, from 0 on, belongs to it."""
        return block % self.count == self.number - 1


class Block(NamedTuple):
    """A batch and where it stands.

    Attributes:
        number: of the batch, from 0 on.
        first: position of its first sample in the data set.
        batch: as the loader gives it.
    """

    number: int
    first: int
    batch: Any


class Blocks:
    """The batches of a loader by number.

    Those that are not wanted are skipped without being read where the loader is a plain DataLoader
    of a data set whose samples have positions, and read otherwise.

    Args:
        loader: gives the same batches every time.
        unpack: from a batch to ``(inputs, target)``.
    """

    def __init__(self, loader: Iterable[Any], unpack: Unpack) -> None:
        self._loader, self._unpack = loader, unpack
        self._reading: Iterator[Block] | None = None
        self._next = 0  # number of the batch that is read next

    @functools.cached_property
    def _indices(self) -> list[list[int]] | None:
        """Which samples every batch of a plain DataLoader holds; None of another loader."""
        loader = self._loader
        if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
            return None
        sampler = loader.batch_sampler
        if sampler is None or isinstance(sampler, Iterator):  # which can be read once
            return None
        return [list(batch) for batch in sampler]

    def positions(
        self, owns: Callable[[int], bool] | None, most: float, *, read: bool = False
    ) -> list[int] | None:
        """Of the samples in the batches that are wanted; see ``chosen``.

        Args:
            owns: whether the batch of a number is wanted; None wants all.
            most: the first position that is not wanted.
            read: the loader if only that tells; otherwise None is returned then.
        """
        if self._indices is None and not read:
            return None
        own = [held for at, held in enumerate(self.held(most)) if owns is None or owns(at)]
        return [position for held in own for position in held]

    def held(self, most: float) -> list[range]:
        """The positions in every batch below ``most``; the loader is read if only that tells."""
        if self._indices is not None:
            sizes = [len(one) for one in self._indices]
        else:
            sizes = [self._size(batch) for batch in self._loader]
        ends = [int(min(end, most)) for end in itertools.accumulate(sizes)]
        return [range(first, end) for first, end in itertools.pairwise([0, *ends])]

    def chosen(self, owns: Callable[[int], bool] | None, most: float) -> Iterator[Block]:
        """Batches by number.

        Args:
            owns: whether the batch of a number is wanted; None wants all.
            most: no batch that begins at this position or later is wanted.

        Raises:
            ValueError: a batch holds another number of samples than its sampler asked for.
        """
        if owns is None or self._indices is None:
            yield from self._read(owns, most)
            return
        sizes = [len(one) for one in self._indices]
        firsts = [0, *itertools.accumulate(sizes)]
        wanted = [at for at in range(len(sizes)) if firsts[at] < most and owns(at)]
        picked = _picked(self._loader, [self._indices[at] for at in wanted])
        for at, batch in zip(wanted, picked, strict=True):
            if self._size(batch) != sizes[at]:
                raise ValueError(
                    f"`loader` gives {self._size(batch)} of the {sizes[at]} samples of batch {at}: "
                    "its collate_fn must leave none out, since a sample is known by its position."
                )
            yield Block(at, firsts[at], batch)

    def at(self, number: int, most: float) -> Block:
        """One batch; where batches have to be read, those before it are read once on the way.

        Raises:
            ValueError: there is no such batch.
        """
        if self._indices is not None:
            found = next(self.chosen(lambda at: at == number, most), None)
        else:
            if self._reading is None or number < self._next:
                self._reading = self._read(None, most)
            found = next((block for block in self._reading if block.number == number), None)
            self._next = number + 1
        if found is None:
            raise ValueError(f"`loader` has no batch {number}: it is not the same every time.")
        return found

    def _read(self, owns: Callable[[int], bool] | None, most: float) -> Iterator[Block]:
        first = 0
        for number, batch in enumerate(self._loader):
            if owns is None or owns(number):
                yield Block(number, first, batch)
            first += self._size(batch)
            if first >= most:
                return

    def _size(self, batch: Any) -> int:
        return len(unpacked(self._unpack, batch)[1])


def _picked(loader: Any, batches: list[list[int]]) -> Iterable[Any]:
    """Some batches of a DataLoader, as it would give them itself."""
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        pin_memory=loader.pin_memory,
    )
