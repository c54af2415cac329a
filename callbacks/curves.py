"""What loggers show of a certification beyond scalars: charts, histograms, tables, settings.

Scalars go to every logger through ``log``. Some show more, each through an adapter of views.py; a
logger without one shows the scalars alone.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from popqorn_train.callbacks.failsafe import Failsafe
from popqorn_train.callbacks.views import VIEWS, View
from popqorn_train.evaluation.certification import Certification

_RARELY = 10  # certifications; a table adds files to a run, a figure takes a while to draw


class Curves:
    """The views of one monitor in all loggers of a trainer, each guarded.

    Args:
        loggers: of the trainer.
        prefix: put before every key, ends with ``/`` or is empty.
        failsafe: counts what fails.
    """

    def __init__(self, loggers: Iterable[Any], prefix: str, failsafe: Failsafe) -> None:
        self._views = [
            view(logger, prefix)
            for logger in loggers
            for kinds, view in VIEWS.items()
            if isinstance(logger, kinds)
        ]
        self._failsafe = failsafe
        self._shown = 0
        self._left: Sequence[Certification] = ()  # newest history not shown in full

    def define(self, keys: Iterable[str], settings: dict[str, Any]) -> None:
        """Prepare every logger for scalars of these names, and for the configuration of a run."""
        names = list(keys)
        self._each(lambda view: view.define(names, settings))

    def show(self, history: Sequence[Certification]) -> None:
        """Show the newest certification of a training.

        Args:
            history: all of it, by step.
        """
        if not history[-1].complete:
            return
        shown = [entry for entry in history if entry.complete]
        self._each(lambda view: view.show(shown))
        self._left = shown
        if self._shown % _RARELY == 0:
            self.finish()
        self._shown += 1

    def finish(self) -> None:
        """Show the newest certification in full, unless that was done."""
        left, self._left = self._left, ()
        if left:
            self._each(lambda view: view.show_rarely(left))

    def keep(self, files: Sequence[Path]) -> None:
        """Upload files at the end of a training."""
        self._each(lambda view: view.keep(files))

    def _each(self, act: Callable[[View], None]) -> None:
        for view in self._views:
            with self._failsafe.catching(type(view.logger).__name__):
                act(view)
