"""Where certifications go: the file that keeps them, and the views in the loggers."""

import uuid
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from popqorn_train.callbacks.curves import Curves
from popqorn_train.callbacks.failsafe import Failsafe
from popqorn_train.callbacks.lightning_packages import Trainer
from popqorn_train.callbacks.views import WANDB
from popqorn_train.evaluation.certification import Certification, append_certification
from popqorn_train.evaluation.folder import write_whole
from popqorn_train.plots import evenly
from popqorn_train.plots.report import Report
from popqorn_train.plots.report_pictures import report_figures


class Reports:
    """The certifications of one training, kept and shown; only the first process writes.

    Args:
        name: of the monitor, or empty.
        folder: of the file; None takes that of the run.
        artifacts: whether loggers keep the file, and a report, as an artifact of a training.

    Attributes:
        run: identifies the training, also after it was resumed.
        path: of the file, once something was written.
        failsafe: counts what could not be written.
    """

    def __init__(self, name: str, folder: Path | None, artifacts: bool = False) -> None:
        self.name, self.folder, self._artifacts = name, folder, artifacts
        self.failsafe = Failsafe()
        self.path: Path | None = None
        self.run = ""
        self._history: list[Certification] = []
        self._stage = "fit"
        self._curves: Curves | None = None

    def begin(self, trainer: Trainer, stage: str) -> None:
        """Prepare the loggers of a trainer for a stage: ``"fit"``, ``"validate"`` or ``"test"``."""
        self._stage = stage
        loggers = trainer.loggers if trainer.is_global_zero else []
        self._curves = Curves(loggers, self.prefix, self.failsafe)
        self.run = self.run or uuid.uuid4().hex[:8]

    def forget(self) -> None:
        """Another training begins."""
        self._history, self.run = [], uuid.uuid4().hex[:8]

    @property
    def prefix(self) -> str:
        """What stands before every logged key."""
        return f"{self.name}/" * bool(self.name) + "test/" * (self._stage == "test")

    def define(self, keys: Iterable[str], settings: dict[str, Any]) -> None:
        """Prepare the loggers for scalars of these names, of a certification with settings."""
        if self._curves is not None:
            self._curves.define(keys, settings)

    def log_late(
        self, trainer: Trainer, values: dict[str, float], certification: Certification
    ) -> None:
        """Log scalars under the epoch and step of a certification that has passed."""
        named = {self.prefix + key: value for key, value in values.items()}
        self.define(named, certification.settings)
        at = {"epoch": certification.epoch}
        for logger in trainer.loggers:
            with self.failsafe.catching(type(logger).__name__):
                logger.log_metrics({**named, **at}, step=certification.step)
                logger.save()

    def publish(self, trainer: Trainer, certification: Certification) -> None:
        """Write a certification to the file, then show it."""
        history = [certification]
        if self._stage == "fit":
            self._history.append(certification)
            history = self._history
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        with self.failsafe.catching("certification.jsonl"):
            self.path = self._folder(trainer) / self._file_name()
            append_certification(self.path, certification)
        if self._curves is not None and self._stage != "validate":  # the chart is that of training
            self._curves.show(history)

    def finish(self, trainer: Trainer) -> None:
        """Show what is left at the end of a stage, and keep what a training has left."""
        if self._curves is None:
            return
        self._curves.finish()
        if self._artifacts and self._stage == "fit" and self.path is not None:
            with self.failsafe.catching("the artifact"):
                self._curves.keep([self.path, self._report(trainer, self.path)])

    def _report(self, trainer: Trainer, path: Path) -> Path:
        """Write the report of the newest complete certification beside the file."""
        newest = next(entry for entry in reversed(self._history) if entry.complete)
        named = {"model": type(trainer.lightning_module).__name__, "data": "the validation set"}
        shown = replace(newest, settings={**newest.settings, **named})
        try:
            figures = report_figures(shown, (), classes=(), image=None)
        except ImportError:
            figures = {}
        page = path.with_suffix(".html")
        write_whole(page, Report(shown, newest.settings["epsilons"], figures=figures).html())
        return page

    def _file_name(self) -> str:
        stage = "" if self._stage == "fit" else f"-{self._stage}"
        name = f"-{self.name}".replace("/", "-") if self.name else ""
        return f"certification{stage}{name}.jsonl"

    def _folder(self, trainer: Trainer) -> Path:
        """The folder of the first logger that has one of its own for the run."""
        if self.folder is not None:
            return self.folder
        for logger in trainer.loggers:
            # Two runs of wandb share the folder it is given; the run's own is uploaded with it.
            own = logger.log_dir
            if isinstance(logger, WANDB):
                run = logger.experiment
                own = None if getattr(run, "disabled", False) else run.dir
            if own:
                return Path(own)
        return Path(trainer.default_root_dir)

    def state(self) -> dict[str, Any]:
        """What a resumed training goes on from, as plain values: at most 20 certifications."""
        return {"run": self.run, "history": [entry.plain() for entry in evenly(self._history)]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.run = state["run"]
        self._history = [Certification.of(entry) for entry in state["history"]]
