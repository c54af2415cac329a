"""Bring together what the processes of a training found out, the same in every one."""

from collections.abc import Sequence
from typing import TypeVar

import torch

from popqorn_train.callbacks.lightning_packages import Trainer
from popqorn_train.evaluation.sample_rows import SampleRow, Status

T = TypeVar("T")


def all_values(trainer: Trainer, own: T) -> list[T]:
    """What every process has in the place of a value, by rank; every process must call it."""
    if trainer.world_size == 1:
        return [own]
    values = [own] * trainer.world_size
    torch.distributed.all_gather_object(values, own)
    return values


def gathered(
    trainer: Trainer, rows: list[SampleRow], seconds: float
) -> tuple[list[SampleRow], float]:
    """Rows of all processes by index, and the seconds of the slowest.

    Every process must call it, whatever happened to it before; one sample counts once.
    """
    parts = all_values(trainer, (rows, seconds))
    found: dict[int, SampleRow] = {}
    for part, _ in parts:
        for row in part:
            found.setdefault(row.index, row)
    return [found[index] for index in sorted(found)], max(spent for _, spent in parts)


def completed(rows: list[SampleRow], wanted: Sequence[int]) -> list[SampleRow]:
    """One row for every wanted sample; those that nobody came to were not attempted."""
    found = {row.index: row for row in rows}
    return [
        found.get(index, SampleRow(index, None, Status.NOT_ATTEMPTED)) for index in sorted(wanted)
    ]
