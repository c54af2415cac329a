"""Damaged files, as many as asked for of each reader: ``make hostile ARGS="--count 10000"``.

A file that takes a reader more than ``--seconds`` of processor time ends the command with an error.
"""

import argparse
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.evaluation.test_hostile_files import ALL, READERS, look


def in_time(read: Callable[[Path], Any], seconds: int) -> Callable[[Path], Any]:
    """A reader that fails if it takes longer."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"a file took longer than {seconds} s")

    def timed(path: Path) -> Any:
        signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            return read(path)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    return timed


def main() -> None:
    """Read damaged files, and print a line for each reader."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=ALL, help="of files for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=10, help="that a file may take")
    names = [reader.__name__ for reader in READERS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="READER")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.fsync = lambda file: None  # nothing here has to outlive a crash
    for reader in (reader for reader in READERS if reader.__name__ in options.only):

        def made(folder: Path, reader: Any = reader) -> tuple[Path, Any]:
            path, read = reader(folder)
            return path, in_time(read, options.seconds)

        with tempfile.TemporaryDirectory(prefix="popqorn-train-") as folder:
            start = time.process_time()
            refused = look(made, Path(folder), options.count, options.seed)
            took = time.process_time() - start
        counts = f"{options.count:,} files, {refused:,} refused, {took:.0f} s"
        print(f"{reader.__name__}: {counts}", flush=True)


if __name__ == "__main__":
    main()
