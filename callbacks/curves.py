"""What loggers show of a certification beyond scalars: charts, histograms, tables, settings.

Scalars go to every logger through ``log``. wandb and TensorBoard show more, each through an adapter
of this file; a logger without one shows the scalars alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from popqorn_train.callbacks.failsafe import Failsafe
from popqorn_train.callbacks.lightning_packages import namesakes
from popqorn_train.callbacks.logged_scalars import best
from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.sample_rows import SampleRow
from popqorn_train.plots import curve_grid, draw_certifications, evenly

WANDB = namesakes("loggers", "WandbLogger")
_RARELY = 10  # certifications; a table adds files to a run, a figure takes a while to draw
_SHOWN = ("index", "label", "prediction", "radius", "empirical", "capped", "status")


class View(ABC):
    """What one logger shows of the certifications of one monitor.

    Args:
        logger: to show them.
        prefix: put before every key, ends with ``/`` or is empty.
    """

    def __init__(self, logger: Any, prefix: str) -> None:
        self.logger, self.prefix = logger, prefix

    def define(self, keys: Iterable[str], settings: dict[str, Any]) -> None:  # noqa: B027
        """Prepare for scalars of these names; called before they are logged."""

    @abstractmethod
    def show(self, history: Sequence[Certification]) -> None:
        """Show the newest certification of a history whose entries are complete."""

    def show_rarely(self, history: Sequence[Certification]) -> None:  # noqa: B027
        """Show what takes time or files."""


class WandbView(View):
    """Curves over epochs, certified accuracy against epsilon, a histogram and a table."""

    def __init__(self, logger: Any, prefix: str) -> None:
        super().__init__(logger, prefix)
        self._defined: set[str] = set()
        self._settings: dict[str, Any] = {}

    def define(self, keys: Iterable[str], settings: dict[str, Any]) -> None:
        """Give every scalar the epoch as its axis, and its best value to the summary.

        Every key is named in full: among patterns wandb takes any that fits, and Lightning's ``*``
        fits everything.
        """
        run = self.logger.experiment
        if settings != self._settings:
            self._settings = settings
            name = f"certification_{self.prefix[:-1]}" if self.prefix else "certification"
            run.config.update({name: settings}, allow_val_change=True)
        for key in sorted(set(keys) - self._defined):
            axis = self._joined("epoch")
            run.define_metric(self._joined(key), step_metric=axis, summary=best(key))
            self._defined.add(key)

    def show(self, history: Sequence[Certification]) -> None:
        """Log chart and histogram at the epoch of the newest one."""
        import wandb

        newest = history[-1]
        histogram = np.histogram(newest.radii.numpy(), bins=min(32, max(4, len(newest.rows) // 4)))
        media = {
            _chart_key(newest): self._chart(evenly(history)),
            f"{newest.measure.certified}/histogram": wandb.Histogram(np_histogram=histogram),
        }
        self._log(media, newest)

    def show_rarely(self, history: Sequence[Certification]) -> None:
        """Log a table with one row per sample."""
        import wandb

        newest = history[-1]
        table = wandb.Table(columns=_titles(newest), data=_cells(newest.rows))
        self._log({f"{newest.measure.certified}/samples": table}, newest)

    def _log(self, media: dict[str, Any], newest: Certification) -> None:
        at = {self._joined("epoch"): newest.epoch, "trainer/global_step": newest.step}
        named = {self._joined(self.prefix + key): value for key, value in media.items()}
        self.logger.experiment.log({**named, **at})

    def _joined(self, key: str) -> str:
        """A key as the logger writes it, behind a prefix of its own."""
        own = getattr(self.logger, "_prefix", "")
        return f"{own}{self.logger.LOGGER_JOIN_CHAR}{key}" if own else key

    def _chart(self, history: Sequence[Certification]) -> Any:
        import wandb

        newest, grid = history[-1], curve_grid(history)
        size = newest.measure.size
        lines = {entry.title: entry.certified_accuracy(grid) for entry in history}
        if newest.empirical is not None:
            lines[f"attacked, {newest.title}"] = newest.attacked_accuracy(grid)
        return wandb.plot.line_series(
            xs=grid,
            ys=list(lines.values()),
            keys=list(lines),
            title=f"{self.prefix}certified accuracy against {size}",
            xname=size,
        )


class TensorBoardView(View):
    """A histogram of radii, and the chart as a figure where matplotlib is installed."""

    def show(self, history: Sequence[Certification]) -> None:
        """Add the histogram at the step of the newest one."""
        newest, writer = history[-1], self.logger.experiment
        name = f"{self.prefix}{newest.measure.certified}/histogram"
        writer.add_histogram(name, newest.radii, newest.step)

    def show_rarely(self, history: Sequence[Certification]) -> None:
        """Add the figure."""
        try:
            figure, _ = draw_certifications(history)
        except ImportError:
            return
        name, step = f"{self.prefix}{_chart_key(history[-1])}", history[-1].step
        self.logger.experiment.add_figure(name, figure, step)


VIEWS: dict[tuple[type[Any], ...], type[View]] = {
    WANDB: WandbView,
    namesakes("loggers", "TensorBoardLogger"): TensorBoardView,
}


def _chart_key(newest: Certification) -> str:
    """Name of the chart of accuracy against epsilon, or against the share of a box."""
    by = "epsilon" if newest.measure.name == "radius" else newest.measure.name
    return f"certified_accuracy/by_{by}"


def _titles(newest: Certification) -> list[int | str]:
    """Head of the table of samples."""
    name = newest.measure.name
    found = ("index", "label", "prediction", f"certified {name}", f"empirical {name}")
    return [*found, "capped", "status"]


def _cells(rows: Iterable[SampleRow]) -> list[list[Any]]:
    cells = [[getattr(row, name) for name in _SHOWN] for row in rows]
    return [[str(cell) if isinstance(cell, str) else cell for cell in row] for row in cells]


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

    def _each(self, act: Callable[[View], None]) -> None:
        for view in self._views:
            with self._failsafe.catching(type(view.logger).__name__):
                act(view)
