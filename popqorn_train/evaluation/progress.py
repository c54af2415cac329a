"""How far a long computation has come: a bar on a terminal, a line every tenth elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol


class Progress(Protocol):
    """Shows progress until it is closed."""

    def advance(self, count: int) -> None:
        """Say that so many more samples are done."""

    def close(self) -> None:
        """Take it away."""


class Silent:
    """Shows nothing."""

    def advance(self, count: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


_QUIET = 5.0  # seconds; what takes less needs no lines


class LogLines:
    """One line every tenth of what takes longer than a few seconds.

    Args:
        what: what is done, for example ``"certifying"``.
        total: number of samples.
        say: writes a line.
    """

    def __init__(self, what: str, total: int, say: Callable[[str], Any]) -> None:
        self.what, self.total, self.say = what, total, say
        self.done, self._since = 0, time.monotonic()

    def advance(self, count: int) -> None:
        """Write a line if a tenth has been passed."""
        before, self.done = self.done, self.done + count
        passed = 10 * before // self.total < 10 * self.done // self.total
        if passed and time.monotonic() - self._since > _QUIET:
            share = 100 * self.done // self.total
            line = f"{self.what}: {self.done} of {self.total} samples ({share} %)"
            left = (time.monotonic() - self._since) * (self.total - self.done) / self.done
            self.say(line + (f", about {duration(left)} left" if self.done < self.total else ""))

    def close(self) -> None:
        """Do nothing: every line stays."""


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Bar:
    """A bar of tqdm.

    Args:
        what: what is done.
        total: number of samples; None where nobody knows.
        **options: see ``tqdm.tqdm``.
    """

    def __init__(self, what: str, total: int | None, **options: Any) -> None:
        from tqdm import tqdm

        self._bar = tqdm(desc=what, total=total, unit="sample", dynamic_ncols=True, **options)

    def advance(self, count: int) -> None:
        """Move the bar."""
        self._bar.update(count)

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()


def shown(what: str, total: int | None) -> Progress:
    """Return a bar on a terminal where tqdm is installed, else lines on standard error."""
    if sys.stderr.isatty():
        try:
            return Bar(what, total)
        except ImportError:
            pass
    return Silent() if total is None else LogLines(what, total, _to_stderr)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
