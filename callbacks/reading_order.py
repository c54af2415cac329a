"""Which samples of a data set the processes read, and which of them certifies each one."""

import itertools
import zlib
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from popqorn_train.callbacks.isolation import isolated_random
from popqorn_train.callbacks.sampler_reading import Indices, index_lists
from popqorn_train.evaluation.batches import Unpack, unpacked

Gather = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class Order:
    """How the processes read a data set.

    Attributes:
        loader: of this process.
        batches: the indices that it reads, batch by batch.
        everywhere: those of every process.
        own: indices that this process, and no other one, certifies.
        indices: what all processes read together, increasing.
    """

    loader: "DataLoader[Any]"
    batches: Indices
    everywhere: Sequence[Indices]
    own: Collection[int]
    indices: Sequence[int]

    @classmethod
    def of(
        cls, loader: Any, batches: float, rank: int = 0, gather: Gather = lambda own: [own]
    ) -> "Order":
        """Order of a loader that is read for so many batches; every process must ask at once.

        Args:
            loader: of this process.
            batches: that it reads.
            rank: of this process.
            gather: what every process has in the place of a value.

        Raises:
            ValueError: in some process it may give other samples next time.
        """
        own: Indices | ValueError
        try:
            own = index_lists(loader, batches)
        except ValueError as error:
            own = error  # all processes must come to know
        everywhere = gather(own)
        for part in everywhere:
            if isinstance(part, Exception):
                raise part
        readers: dict[int, list[int]] = {}
        for reader, part in enumerate(everywhere):
            for index in set(itertools.chain.from_iterable(part)):
                readers.setdefault(index, []).append(reader)
        indices = sorted(readers)
        # Who reads the same samples shares the work.
        turns = {at: readers[at][turn % len(readers[at])] for turn, at in enumerate(indices)}
        mine = {index for index, reader in turns.items() if reader == rank}
        return cls(loader, everywhere[rank], everywhere, mine, indices)

    @property
    def identity(self) -> list[int]:
        """Tells apart what is read: the number of samples, and which they are."""
        total = len(self.indices)
        if self.indices == list(range(total)):
            return [total]
        return [total, zlib.crc32(array("q", self.indices).tobytes())]

    def labels(self, unpack: Unpack) -> Tensor:
        """Labels of ``indices``, read without touching the loader's state.

        A data set that draws from a generator of its own moves that one.
        """
        loader, lists = self.loader, self._lists()
        again: DataLoader[Any] = DataLoader(
            loader.dataset,
            batch_sampler=lists,
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
        with isolated_random():
            labels = torch.cat([unpacked(unpack, batch)[1].cpu() for batch in again])
        read = list(itertools.chain.from_iterable(lists))
        check_count(len(labels), len(read))
        at = dict(zip(reversed(read), reversed(range(len(read))), strict=True))
        return labels[[at[index] for index in self.indices]]

    def _lists(self) -> list[list[int]]:
        """Batches that hold all samples, as they are collated in the loaders."""
        seen: set[int] = set()
        lists = []
        for batch in itertools.chain.from_iterable(self.everywhere):
            if not seen.issuperset(batch):
                lists.append(list(batch))
                seen.update(batch)
        return lists


def check_count(labels: int, indices: int) -> None:
    """Refuse batches that hold other samples than their sampler says.

    Raises:
        ValueError: which of its samples a batch holds is not known.
    """
    if labels != indices:
        raise ValueError(
            f"`val_dataloaders` reads {indices} samples, but its batches hold {labels} labels; "
            "return one label for each sample of the sampler, in its order."
        )
