"""Samples that were set aside, examined together, in the process that trains or in another one."""

import math
from collections.abc import Sequence

import torch

from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.search import Start
from popqorn_train.evaluation.batches import Picked, grouped
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.examiner import Examiner
from popqorn_train.evaluation.progress import Group, Progress
from popqorn_train.evaluation.sample_rows import SampleRow


def examined(
    question: Examination,
    model: BoundModel,
    picked: Sequence[Picked],
    known: Sequence[SampleRow],
    progress: Progress,
) -> tuple[list[SampleRow], Exception | None]:
    """Rows of the samples, and the first error that kept some of them from having one.

    Args:
        question: what is asked about every sample.
        model: about which.
        picked: samples of one or more batches.
        known: what was found out when samples were last examined.
        progress: moved for every sample.
    """
    rows: list[SampleRow] = []
    failure: Exception | None = None
    examiner = Examiner(question, model)
    for chunk in _chunks(model, picked):
        group = Group(progress, len(chunk.labels))
        examiner.decided = group.reach
        try:
            rows += examiner.rows(chunk, _start(known, chunk))
        except Exception as error:
            failure = failure or error
        group.finish()
    return rows, failure


def _chunks(model: BoundModel, picked: Sequence[Picked]) -> list[Picked]:
    if not picked:
        return []
    return list(grouped(list(picked), model.batch_axis(picked[0].inputs)))


def _start(known: Sequence[SampleRow], picked: Picked) -> Start:
    """Where the search begins for these samples."""
    found = {row.index: (row.radius or 0.0, _or_nan(row.rate), _or_nan(row.bend)) for row in known}
    unknown = 0.0, math.nan, math.nan
    begin = [found.get(position, unknown) for position in picked.positions.tolist()]
    return Start(*picked.labels.new_tensor(begin, dtype=torch.float64).T)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
