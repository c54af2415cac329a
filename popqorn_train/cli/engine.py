"""``certify --engine ray``: rows that workers find go into the same ledger."""

import argparse
import math
import time
from pathlib import Path
from typing import Any

from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.ledger import Ledger
from popqorn_train.evaluation.progress import Silent, shown
from popqorn_train.evaluation.ray_rows import Workers, dataset_of, left_of, streamed
from popqorn_train.evaluation.ray_worker import Job
from popqorn_train.evaluation.sample_list import SampleRows
from popqorn_train.evaluation.sample_rows import SampleRow, Status
from popqorn_train.evaluation.subject import Subject


def certified_on_ray(
    options: argparse.Namespace,
    subject: Subject,
    question: Examination,
    identity: dict[str, Any],
    ledger: Ledger,
) -> list[SampleRow]:
    """Rows of all samples, each kept as soon as it comes.

    Raises:
        ValueError: no sample could be examined, or a worker has other files.
        ImportError, ConnectionError, RuntimeError: see ``ray_of`` and ``streamed``.
    """
    most = math.inf if options.samples is None else options.samples
    until = math.inf if options.seconds is None else time.time() + options.seconds
    job = Job(subject, question, identity, str(Path.cwd()), most, until)
    asked = {name: getattr(options, name) for name in ("address", "num_cpus", "num_gpus")}
    given = {name: value for name, value in asked.items() if value is not None}
    workers = Workers(options.workers or 2, **given)
    items = left_of(job, ledger.known)
    rows = list(ledger.known.values())
    total = sum(len(item["left"]) for item in items)
    bar = shown("certifying", total) if total else Silent()
    try:
        for found in streamed(dataset_of(job, workers, items)) if items else ():
            ledger.add(found)
            rows += found
            bar.advance(len(found))
    finally:
        bar.close()
    wrong = [row for row in rows if row.status == Status.ERROR]
    if wrong and len(wrong) == len(rows):
        raise ValueError(f"all {len(rows)} samples ended in an error, first {wrong[0].error}")
    return SampleRows(sorted(rows, key=lambda row: row.index))
