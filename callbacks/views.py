"""Adapters to loggers that show more of a certification than scalars, one class each."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from popqorn_train.callbacks.lightning_packages import namesakes
from popqorn_train.callbacks.logged_scalars import best
from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.sample_rows import SampleRow
from popqorn_train.plots import curve_grid, draw_certifications, evenly

WANDB = namesakes("loggers", "WandbLogger")
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

    def show(self, history: Sequence[Certification]) -> None:  # noqa: B027
        """Show the newest certification of a history whose entries are complete."""

    @abstractmethod
    def show_rarely(self, history: Sequence[Certification]) -> None:
        """Show what takes time or files."""

    def keep(self, files: Sequence[Path]) -> None:  # noqa: B027
        """Upload files, where the logger keeps versions of them."""


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

    def keep(self, files: Sequence[Path]) -> None:
        """Log one artifact; wandb counts its versions."""
        import wandb

        name = "-".join(["certification", *self.prefix.split("/")[:-1], self.logger.experiment.id])
        artifact = wandb.Artifact(name, type="certification")
        for file in files:
            artifact.add_file(str(file))
        self.logger.experiment.log_artifact(artifact)

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
        name, step = f"{self.prefix}{_chart_key(history[-1])}", history[-1].step
        if (figure := _figure(history)) is not None:
            self.logger.experiment.add_figure(name, figure, step)


class MLflowView(View):
    """The chart as a figure and the samples as a table, among the artifacts of the run."""

    def show_rarely(self, history: Sequence[Certification]) -> None:
        """Log both, named by the step."""
        newest, client, run = history[-1], self.logger.experiment, self.logger.run_id
        if (figure := _figure(history)) is not None:
            client.log_figure(run, figure, f"{self.prefix}{_chart_key(newest)}/{newest.step}.png")
        columns = zip(*_cells(newest.rows), strict=True)
        table = dict(zip(map(str, _titles(newest)), map(list, columns), strict=True))
        path = f"{self.prefix}{newest.measure.certified}/samples/{newest.step}.json"
        client.log_table(run, table, path)


class CometView(View):
    """The chart as a figure and the samples as a table, among the assets of the experiment."""

    def show_rarely(self, history: Sequence[Certification]) -> None:
        """Log both at the step of the newest one."""
        newest, experiment = history[-1], self.logger.experiment
        if (figure := _figure(history)) is not None:
            name = f"{self.prefix}{_chart_key(newest)}"
            experiment.log_figure(figure_name=name, figure=figure, step=newest.step)
        name = f"{self.prefix}{newest.measure.certified}/samples-{newest.step}.csv"
        experiment.log_table(name, _cells(newest.rows), headers=_titles(newest))


VIEWS: dict[tuple[type[Any], ...], type[View]] = {
    WANDB: WandbView,
    namesakes("loggers", "TensorBoardLogger"): TensorBoardView,
    namesakes("loggers", "MLFlowLogger"): MLflowView,
    namesakes("loggers", "CometLogger"): CometView,
}


def _figure(history: Sequence[Certification]) -> Any:
    """The chart of certified accuracy; None without matplotlib."""
    try:
        return draw_certifications(history)[0]
    except ImportError:
        return None


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
