"""``popqorn-train certify MODEL --data ...``: certify a data set and write a report."""

import argparse
import shlex
import sys
import textwrap
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.cli.files import write_certification
from popqorn_train.cli.fragile_samples import FrameByFrame
from popqorn_train.cli.notes import note, say
from popqorn_train.cli.options import add_certify_options, class_names
from popqorn_train.cli.subject import batches, first_inputs, loaded_model, opened_data, question_of
from popqorn_train.errors import UnsupportedModelError
from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.folder import FolderLock, is_disk_full
from popqorn_train.evaluation.fragile import (
    FragileSample,
    Vocabulary,
    vocabulary,
)
from popqorn_train.evaluation.ledger import Ledger
from popqorn_train.evaluation.loader import certify_loader
from popqorn_train.evaluation.provenance import data_fingerprint, fingerprint, versions
from popqorn_train.evaluation.sample_rows import SampleRow
from popqorn_train.evaluation.summaries import nice_epsilons, promise, summary
from popqorn_train.plots.report import Report
from popqorn_train.plots.report_pictures import check_image, report_figures

_FIRST = 16  # samples whose fingerprint a resumed run must share
REFUSED = (ValueError, TypeError, OSError, ImportError, RuntimeError, UnsupportedModelError)


def add_certify(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    command = commands.add_parser(
        "certify",
        help="certify a data set; write every row, a summary and report.html",
        description=__doc__,
    )
    add_certify_options(command)
    command.set_defaults(run=run_certify)


def run_certify(options: argparse.Namespace) -> int:
    """Certify and report; see ``popqorn_train.cli.main`` for the exit status."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warned
            lock = FolderLock(options.folder)
            try:
                _Run.prepared(options).finish()
            finally:
                lock.release()
    except KeyboardInterrupt:
        say(
            f"popqorn-train certify: stopped; what is certified is in {options.folder}, go on with "
            "--resume"
        )
        return 130
    except REFUSED as error:
        said = _full(options) if is_disk_full(error) else str(error)
        say(f"popqorn-train certify: {said}")
        return 1
    return 0


def _full(options: argparse.Namespace) -> str:
    return (
        f"no space is left on the disk of {options.folder}. The rows certified so far are kept "
        "there; make room and go on with --resume."
    )


def _warned(message: Warning | str, *_: Any, **__: Any) -> None:
    note(message)


@dataclass
class _Run:
    """One run of the command.

    Attributes:
        options: of the command.
        model: on its device.
        loader: gives the same batches every time.
        axis: the batch axis of the inputs.
        question: what is asked about every sample.
        settings: what a row depends on.
        words: names of the tokens.
        classes: names of the classes.
        ledger: keeps the rows.
    """

    options: argparse.Namespace
    model: BoundModel
    loader: Iterable[Any]
    axis: int
    question: Examination
    settings: dict[str, Any]
    words: Vocabulary | None
    classes: Sequence[str]
    ledger: Ledger

    @classmethod
    def prepared(cls, options: argparse.Namespace) -> "_Run":
        """Load everything, and refuse what does not fit before anything is computed."""
        model = loaded_model(options)
        loader = opened_data(options, model)
        inputs = first_inputs(options, model, loader)
        instance, axis = model.instance(inputs), model.batch_axis(inputs)
        _, frames, features = instance.center.shape
        check_image(options.image, frames, features)
        question = question_of(options, frames, features)
        instance.placed(question.ball)  # inputs must lie in the domain
        settings = {
            "model": options.model,
            "checkpoint": options.checkpoint and str(options.checkpoint),
            "prefix": options.prefix,
            "data": options.data,
            "perturb": options.perturb,
            "frame_axis": options.frame_axis,
            "output_is": options.output_is,
            "select": options.select,
            "moved": instance.plan.source.name,
            **question.settings(),
            "weights": fingerprint(model.model),
            "first_samples": data_fingerprint(batches(loader), _FIRST, axis),
        }
        words = vocabulary(options.words) if options.words else None
        classes = class_names(options.classes, instance.plan.classes)
        ledger = Ledger(options.folder, settings, resume=options.resume)
        return cls(options, model, loader, axis, question, settings, words, classes, ledger)

    def finish(self) -> None:
        """Certify, look at the fragile samples, write and print everything."""
        started = time.monotonic()
        rows = self._certified()
        self.ledger.rewrite(rows)
        look = FrameByFrame(self.model, self.loader, self.question, self.words, self.ledger)
        spent = time.monotonic() - started
        fragile = look.most_fragile(rows, self.options.fragile, spent)
        certification = self._certification(rows, time.monotonic() - started)
        epsilons = self.options.epsilons or nice_epsilons(certification)
        print(summary(certification, epsilons))
        figures = self._figures(certification, fragile)
        files = ("samples.csv", "samples.jsonl", "certification.json")
        report = Report(certification, epsilons, fragile, self.classes, figures, files)
        names = write_certification(self.options.folder, certification, figures, report)
        print("\n" + textwrap.fill(promise(certification.settings), 79))
        print(textwrap.fill(f"written to {self.options.folder}: {', '.join(names)}", 79))

    def _certified(self) -> list[SampleRow]:
        question = self.question
        return certify_loader(
            self.model,
            self.loader,
            **question.moving(),
            method=question.method,
            max_radius=question.max_radius,
            rtol=question.rtol,
            confirm=question.confirm,
            attack=question.attack,
            epsilons=question.epsilons,
            samples=self.options.samples,
            seconds=self.options.seconds,
            known=self.ledger.known,
            tell=self.ledger.add,
        )

    def _certification(self, rows: Sequence[SampleRow], seconds: float) -> Certification:
        settings = dict(self.settings)
        weights = settings.pop("weights")
        settings |= {
            "samples": len(rows),
            "data_fingerprint": data_fingerprint(batches(self.loader), len(rows), self.axis),
            "command": shlex.join(["popqorn-train", *sys.argv[1:]]),
            "versions": versions("popqorn-train", "torch"),
        }
        return Certification(
            0, 0, tuple(rows), seconds, settings=settings, weights=weights, stage="certify"
        )

    def _figures(
        self, certification: Certification, fragile: Sequence[FragileSample]
    ) -> dict[str, bytes]:
        if not certification.answered:
            return {}
        try:
            return report_figures(
                certification, fragile, classes=self.classes, image=self.options.image
            )
        except ImportError as error:
            note(f"no pictures. {error}")
            return {}
