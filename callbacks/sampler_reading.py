"""Which samples every batch of a loader will hold, read from its sampler without moving it."""

import copy
import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from popqorn_train.callbacks.isolation import isolated_random

Indices = Sequence[Sequence[int]]
_DRAWS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def index_lists(loader: Any, batches: float) -> Indices:
    """The indices of the samples of every batch, in the order of the loader.

    Args:
        loader: of this process.
        batches: that will be read.

    Raises:
        ValueError: it may give other batches next time, or reads no samples by their index.
    """
    if not isinstance(loader, DataLoader):
        raise _refusal(loader)
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            "`val_dataloaders` must read samples by their index, so that the certified ones stay "
            f"the same, got the IterableDataset {type(loader.dataset).__name__}. Read it into a "
            "list once: DataLoader(list(dataset), batch_size=32)."
        )
    batched, sampler = loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)
    for part in (sampler, batched):
        if isinstance(part, _DRAWS) or getattr(part, "shuffle", False):
            raise _refusal(part)
    if batched is None:
        raise _refusal(loader.sampler)
    count = None if batches == float("inf") else int(batches)
    first, second = _read_twice(_copied(batched, loader.dataset), count)
    if first != second:
        raise _refusal(sampler or batched)
    if not first:
        raise ValueError("`val_dataloaders` is empty: there is no sample to certify.")
    return first


def _refusal(found: Any) -> ValueError:
    return ValueError(
        "`val_dataloaders` must be a DataLoader that reads the same batches of a data set, in the "
        f"same order, every time, so that the certified samples stay the same, got "
        f"{type(found).__name__}. Use shuffle=False and a batch_size for validation, or a "
        "batch_sampler whose lists never change."
    )


def _copied(batched: Iterable[Any], dataset: Any) -> Iterable[Any]:
    """A sampler whose state is no other's."""
    if isinstance(batched, list | tuple):
        return batched
    try:
        return copy.deepcopy(batched, {id(dataset): dataset})
    except Exception as error:  # whatever a user's sampler holds
        raise _refusal(batched) from error


def _read_twice(batched: Iterable[Any], count: int | None) -> list[list[list[int]]]:
    """The lists under two seeds and in two epochs."""
    found = []
    for epoch in (0, 1):
        with isolated_random():
            torch.manual_seed(epoch)
            np.random.seed(epoch)  # noqa: NPY002  (the global generator)
            random.seed(epoch)
            for part in (getattr(batched, "sampler", None), batched):
                if hasattr(part, "set_epoch"):
                    cast(Any, part).set_epoch(epoch)
            try:
                found.append([[int(at) for at in lot] for lot in itertools.islice(batched, count)])
            except (TypeError, ValueError) as error:
                raise _refusal(batched) from error
    return found
