"""Which samples of a loader a monitor certifies: the same ones every time, in every process.

A sample is known by its index in the data set.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from popqorn_train.callbacks.lightning_packages import rank_zero_info
from popqorn_train.callbacks.reading_order import Order
from popqorn_train.evaluation.batches import Unpack


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


def divided(positions: Sequence[int], parts: int, seed: int) -> list[list[int]]:
    """Divide positions at random into so many parts, each as long as the others within one.

    Args:
        positions: increasing, as are those of each part.
        parts: no more than there are positions, or each is a part of its own.
        seed: the same positions and seed give the same parts.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = [positions[at] for at in torch.randperm(len(positions), generator=generator)]
    return [sorted(shuffled[first::parts]) for first in range(min(parts, len(positions)))]


def choose(order: Order, samples: int, seed: int, unpack: Unpack) -> list[int]:
    """Indices of the samples to certify, the same in every process.

    Raises:
        TypeError, ValueError: a batch that ``unpack`` cannot read, or that holds other samples
            than its sampler says.
    """
    total = len(order.indices)
    if samples >= total:
        return list(order.indices)
    rank_zero_info(
        f"CertifiedRadiusMonitor reads {total} labels once, to choose {samples} samples."
    )
    drawn = stratified(order.labels(unpack), samples, seed)
    return [order.indices[at] for at in drawn]
