"""Which samples of a loader a monitor certifies: the same ones every time, in every process.

A sample is known by its position in a loader that reads in order.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from popqorn_train.callbacks.lightning_packages import isolate_rng, rank_zero_info
from popqorn_train.evaluation.batches import Unpack, unpacked


@contextlib.contextmanager
def isolated_random() -> Iterator[None]:
    """Put every random generator back, whatever happens inside."""
    failure: BaseException | None = None
    with isolate_rng():
        try:
            yield
        except BaseException as error:  # isolate_rng would leave the generators moved
            failure = error
    if failure is not None:
        raise failure


@dataclass(frozen=True)
class Order:
    """How this process reads a data set.

    Attributes:
        loader: reads it in order.
        total: number of samples that all processes read together.
        sharded: whether each process reads its own samples only.
        rank: of this process.
        world: number of processes.
    """

    loader: "DataLoader[Any]"
    total: int
    sharded: bool
    rank: int
    world: int

    @classmethod
    def of(
        cls,
        loader: Any,
        batches: float,
        rank: int = 0,
        world: int = 1,
        together: Callable[[int], int] = int,
    ) -> "Order":
        """Order of a loader that is read for so many batches.

        Args:
            loader: of this process.
            batches: that it reads.
            rank: of this process.
            world: number of processes.
            together: adds a number up over all processes.

        Raises:
            ValueError: it may give samples in another order next time.
        """
        batched = getattr(loader, "batch_sampler", None)
        sampler = getattr(batched, "sampler", None)
        in_order = isinstance(sampler, SequentialSampler)
        if isinstance(sampler, DistributedSampler):
            in_order = not sampler.shuffle
        if not (isinstance(loader, DataLoader) and in_order and type(batched) is BatchSampler):
            raise ValueError(
                "`val_dataloaders` must be a DataLoader that reads batches of a data set in order, "
                "so that the certified samples stay the same, got "
                f"{type(sampler or batched or loader).__name__}. Use shuffle=False and a "
                "batch_size for validation."
            )
        sharded = isinstance(sampler, DistributedSampler)
        read = int(min(len(sampler), batches * batched.batch_size))  # type: ignore[arg-type]
        total = min(together(read), len(loader.dataset)) if sharded else read  # type: ignore[arg-type]
        return cls(loader, total, sharded, rank, world)

    def positions(self, first: int, count: int) -> list[int]:
        """Positions of the ``count`` samples that this process reads after ``first`` others."""
        read = range(first, first + count)
        return [self.rank + self.world * index if self.sharded else index for index in read]

    def own(self, position: int) -> bool:
        """Whether this process, and no other one, certifies a position.

        A sharded loader repeats samples from the start to give every process as many.
        """
        return position < self.total and position % self.world == self.rank

    def labels(self, unpack: Unpack) -> Tensor:
        """Labels of the whole data set, ``(total,)``, read without touching the loader's state.

        A data set that draws from a generator of its own moves that one.
        """
        loader = self.loader
        again: DataLoader[Any] = DataLoader(
            loader.dataset,
            getattr(loader.batch_sampler, "batch_size", 1),
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
        labels: list[Tensor] = []
        with isolated_random():
            for batch in again:
                labels.append(unpacked(unpack, batch)[1].cpu())
                if sum(map(len, labels)) >= self.total:
                    break
        return torch.cat(labels)[: self.total]


def stratified(labels: Tensor, samples: int, seed: int) -> list[int]:
    """Draw positions so that every class keeps its share, within one sample.

    Args:
        labels: ``(n,)``.
        samples: how many to draw, at most n.
        seed: the same labels and seed give the same positions.

    Returns:
        Increasing positions.
    """
    classes, counts = torch.unique(labels, return_counts=True)
    exact = counts * samples / len(labels)
    quota = exact.floor().long()
    missing = samples - int(quota.sum())
    quota[(exact - quota).argsort(descending=True, stable=True)[:missing]] += 1
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels[order]
    drawn = [
        order[shuffled == label][:count]
        for label, count in zip(classes.tolist(), quota.tolist(), strict=True)
    ]
    return torch.cat(drawn).sort().values.tolist()


def choose(order: Order, samples: int, seed: int, unpack: Unpack) -> list[int]:
    """Positions to certify, the same in every process.

    Raises:
        TypeError: a batch that ``unpack`` cannot read.
    """
    if samples >= order.total:
        return list(range(order.total))
    rank_zero_info(
        f"CertifiedRadiusMonitor reads {order.total} labels once, to choose {samples} samples."
    )
    return stratified(order.labels(unpack), samples, seed)
