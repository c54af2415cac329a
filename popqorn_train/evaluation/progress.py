"""How far a computation has come: a bar on a terminal or in Jupyter, lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
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


class Group:
    """Moves a bar by samples that are examined together, as they are decided one by one.

    Samples that are asked about again after an error do not count twice.

    Args:
        progress: the bar.
        samples: how many there are.
    """

    def __init__(self, progress: Progress, samples: int) -> None:
        self._progress, self._samples, self._done = progress, samples, 0

    def reach(self, count: float) -> None:
        """Say that so many of them are decided, whole ones counted."""
        done = min(int(count), self._samples)
        if done > self._done:
            self._progress.advance(done - self._done)
            self._done = done

    def finish(self) -> None:
        """Say that all of them are done, whatever became of them."""
        self.reach(self._samples)


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
    """Seconds as a person says them: 0.4 s, 40 s, 12 min, 3.5 h."""
    if 0.05 <= seconds < 9.5:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Allowance:
    """Time for a number of alike tasks; the first one is always allowed.

    Args:
        seconds: that they may take together.
    """

    def __init__(self, seconds: float) -> None:
        self._left, self._longest = seconds, 0.0

    def allows(self) -> bool:
        """Whether another task as long as the longest so far fits."""
        return self._longest <= self._left

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Measure one task."""
        started = time.monotonic()
        yield
        taken = time.monotonic() - started
        self._left, self._longest = self._left - taken, max(self._longest, taken)


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
    """Return a bar on a terminal or in Jupyter where tqdm is installed, else lines on stderr."""
    if sys.stderr.isatty() or in_jupyter():
        try:
            return Bar(what, total)
        except ImportError:
            pass
    return Silent() if total is None else LogLines(what, total, _to_stderr)


def in_jupyter() -> bool:
    """Whether output goes to a notebook, which shows bars though it is no terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
