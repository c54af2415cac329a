"""``popqorn-train certify MODEL --data ...``: certify a data set and write a report."""

import argparse
import time
from typing import Any

from popqorn_train.cli.options import add_certify_options
from popqorn_train.cli.outcome import carried_out
from popqorn_train.cli.run import Run
from popqorn_train.cli.shards import certify_shard
from popqorn_train.evaluation.folder import FolderLock
from popqorn_train.evaluation.ledger import Ledger


def add_certify(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    command = commands.add_parser(
        "certify",
        help="certify a data set; write every row, a summary and report.html",
        description=__doc__,
    )
    add_certify_options(command)
    command.set_defaults(run=run_certify)


def run_certify(options: argparse.Namespace) -> int:
    """Certify and report; see ``popqorn_train.cli.main`` for the exit status."""
    work = _certify if options.shard is None else certify_shard
    again = f"results so far are in {options.folder}, continue with --resume"
    return carried_out(options, work, again)


def _certify(options: argparse.Namespace) -> None:
    lock = FolderLock(options.folder)
    try:
        run = Run.opened(options)
        ledger = Ledger(options.folder, run.settings, resume=options.resume)
        started = time.monotonic()
        rows = run.certified(ledger)
        run.report(rows, ledger, time.monotonic() - started)
    finally:
        lock.release()
