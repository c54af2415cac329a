"""Progress of a certification, inside the progress bar that Lightning shows."""

import sys
from typing import Any

from popqorn_train.callbacks.lightning_packages import Trainer, namesakes, rank_zero_info
from popqorn_train.evaluation.progress import Bar, LogLines, Progress, Silent

_RICH = namesakes("callbacks", "RichProgressBar")
_TQDM = namesakes("callbacks", "TQDMProgressBar")


class _RichTask:
    """A task below Lightning's own in its Rich display."""

    def __init__(self, progress: Any, what: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=total)

    def advance(self, count: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, advance=count, refresh=True)

    def close(self) -> None:
        """Take the bar away, Lightning's stay."""
        self._progress.remove_task(self._task)


def progress_in(trainer: Trainer, what: str, total: int) -> Progress:
    """Show the progress of ``total`` samples where the trainer shows its own.

    Without a terminal a line is logged every tenth; without a progress bar nothing is shown.
    """
    bar = trainer.progress_bar_callback
    if not getattr(bar, "is_enabled", False) or not trainer.is_global_zero or total == 0:
        return Silent()
    if not sys.stdout.isatty():
        return LogLines(what, total, rank_zero_info)
    if isinstance(bar, _RICH) and bar.progress is not None:
        return _RichTask(bar.progress, what, total)
    if isinstance(bar, _TQDM):
        return Bar(what, total, position=2 * bar.process_position + 2, leave=False, file=sys.stdout)
    return Silent()
