"""How a command ends: carried out, refused in one sentence, or stopped."""

import argparse
import warnings
from collections.abc import Callable
from typing import Any

from popqorn_train.cli.notes import note, say
from popqorn_train.errors import UnsupportedModelError
from popqorn_train.evaluation.folder import is_disk_full

REFUSED = (ValueError, TypeError, OSError, ImportError, RuntimeError, UnsupportedModelError)


def carried_out(
    options: argparse.Namespace, work: Callable[[argparse.Namespace], None], again: str
) -> int:
    """Do what a command asks; what is refused or fails is said in one sentence.

    Args:
        options: of the command, with the folder of its results.
        work: what is done.
        again: what is kept where it is stopped, and how to go on.

    Returns:
        The exit status.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warned
            work(options)
    except KeyboardInterrupt:
        say(f"popqorn-train {options.command}: stopped; {again}")
        return 130
    except REFUSED as error:
        said = _full(options, again) if is_disk_full(error) else str(error)
        say(f"popqorn-train {options.command}: {said}")
        return 1
    return 0


def _full(options: argparse.Namespace, again: str) -> str:
    return f"no space is left on the disk of {options.folder}. Free some; {again}"


def _warned(message: Warning | str, *_: Any, **__: Any) -> None:
    note(message)
