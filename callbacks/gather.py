"""Bring together what the processes of a training found out, the same in every one."""

from collections.abc import Sequence

import torch

from popqorn_train.callbacks.lightning_packages import Trainer
from popqorn_train.evaluation.sample_rows import SampleRow, Status


def gathered(
    trainer: Trainer, rows: list[SampleRow], seconds: float
) -> tuple[list[SampleRow], float]:
    """Rows of all processes by index, and the seconds of the slowest.

    Every process must call it, whatever happened to it before; one sample counts once.
    """
    if trainer.world_size == 1:
        return sorted(rows, key=lambda row: row.index), seconds
    parts: list[tuple[list[SampleRow], float]] = [([], 0.0)] * trainer.world_size
    torch.distributed.all_gather_object(parts, (rows, seconds))
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
