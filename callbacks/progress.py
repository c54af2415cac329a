"""Progress of a certification, inside the progress bar that Lightning shows."""

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

from popqorn_train.callbacks.lightning_packages import Trainer, namesakes, rank_zero_info
from popqorn_train.evaluation.progress import Bar, LogLines, Progress, Silent, in_jupyter

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
    if not sys.stdout.isatty() and not in_jupyter():
        return LogLines(what, total, rank_zero_info)
    if isinstance(bar, _RICH) and bar.progress is not None:
        return _RichTask(bar.progress, what, total)
    if isinstance(bar, _TQDM):
        return Bar(what, total, position=2 * bar.process_position + 2, leave=False, file=sys.stdout)
    return Silent()


class _Lines(io.TextIOBase):
    """Hands on what is written, line by line."""

    def __init__(self, say: Callable[[str], Any]) -> None:
        self._say, self._begun = say, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._say(line)
        return len(text)


@contextlib.contextmanager
def above_bars(trainer: Trainer) -> Iterator[None]:
    """Print what is logged and warned of meanwhile above the live bars, so that they stay whole.

    Handlers that write elsewhere, into a file for one, are left alone.
    """
    say = _printer(trainer.progress_bar_callback)
    if say is None:
        yield
        return
    lines, handlers = _Lines(say), _terminal_handlers()
    before = [handler.setStream(lines) for handler in handlers]
    try:
        with contextlib.redirect_stderr(lines):
            yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            handler.setStream(stream)


def _printer(bar: Any) -> Callable[[str], Any] | None:
    """What prints a line above live bars; None where there are none."""
    if not getattr(bar, "is_enabled", False) or not sys.stdout.isatty():
        return None
    if isinstance(bar, _RICH) and bar.progress is not None:
        console = bar.progress.console
        return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
    if isinstance(bar, _TQDM):
        from tqdm import tqdm

        return lambda line: tqdm.write(line, file=sys.stdout)
    return None


def _terminal_handlers() -> list[Any]:
    """Handlers of logging that write to the terminal, also past what Rich puts in its place."""
    streams = [sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__]
    streams += [getattr(stream, "rich_proxied_file", None) for stream in streams]
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return [
        handler
        for logger in loggers
        for handler in getattr(logger, "handlers", ())
        if type(handler) is logging.StreamHandler
        and any(handler.stream is stream for stream in streams)
    ]
