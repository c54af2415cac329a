"""One run of ``popqorn-train certify``: the question, the rows, the report."""

import argparse
import shlex
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.cli.engine import certified_on_ray
from popqorn_train.cli.files import write_certification
from popqorn_train.cli.fragile_samples import FrameByFrame
from popqorn_train.cli.notes import note
from popqorn_train.cli.options import class_names
from popqorn_train.cli.scale_options import check_scale
from popqorn_train.cli.subject import loaded_model, question_of, sizes_of, subject_of
from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.fragile import (
    FragileSample,
    Vocabulary,
    chosen_samples,
    most_fragile,
    vocabulary,
)
from popqorn_train.evaluation.ledger import Ledger
from popqorn_train.evaluation.loader import certify_loader
from popqorn_train.evaluation.provenance import data_fingerprint, versions
from popqorn_train.evaluation.rounding_cost import rounding_loss
from popqorn_train.evaluation.sample_rows import SampleRow
from popqorn_train.evaluation.subject import Subject, batches
from popqorn_train.evaluation.summaries import nice_epsilons, promise, summary
from popqorn_train.plots.report import Report
from popqorn_train.plots.report_pictures import check_image, report_figures

_MEASURED = 8  # samples of which it is measured what rounding costs


@dataclass
class Run:
    """What a command asks, with everything loaded.

    Attributes:
        options: of the command.
        subject: the model and its data by name.
        identity: what these names stand for.
        model: on its device.
        loader: gives the same batches every time.
        axis: the batch axis of the inputs.
        question: what is asked about every sample.
        settings: what a row depends on.
        words: names of the tokens.
        classes: names of the classes.
    """

    options: argparse.Namespace
    subject: Subject
    identity: dict[str, Any]
    model: BoundModel
    loader: Iterable[Any]
    axis: int
    question: Examination
    settings: dict[str, Any]
    words: Vocabulary | None
    classes: Sequence[str]

    @classmethod
    def opened(cls, options: argparse.Namespace) -> "Run":
        """Load everything, and refuse what does not fit before anything is computed."""
        check_scale(options)
        subject = subject_of(options)
        model = loaded_model(subject)
        loader = subject.opened_data(model)
        inputs = subject.first_inputs(model, loader)
        instance, axis = model.instance(inputs), model.batch_axis(inputs)
        _, frames, features = instance.center.shape
        check_image(options.image, frames, features)
        question = question_of(options, frames, features)
        instance.placed(question.ball)  # inputs must lie in the domain
        identity = subject.identity(model, loader, axis)
        settings = {**identity, "moved": instance.plan.source.name, **question.settings()}
        words = vocabulary(options.words) if options.words else None
        classes = class_names(options.classes, instance.plan.classes)
        asked = options, subject, identity, model, loader, axis, question, settings
        return cls(*asked, words, classes)

    def certified(self, ledger: Ledger, shard: str | None = None) -> list[SampleRow]:
        """Rows of all samples, or of those of a shard; each is kept as soon as it is known."""
        if self.options.engine is not None:
            asked = self.options, self.subject, self.question
            return certified_on_ray(*asked, self.identity, ledger)
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
            known=ledger.known,
            tell=ledger.add,
            shard=shard,
        )

    def report(
        self, rows: Sequence[SampleRow], ledger: Ledger, seconds: float, again: str = "--resume "
    ) -> None:
        """Look at the fragile samples, write and print everything.

        Args:
            rows: of all samples.
            ledger: in which they are kept.
            seconds: that they took.
            again: options, beside ``--fragile``, of a command that looks at more of them.
        """
        ledger.rewrite(rows)
        started = time.monotonic()
        look = FrameByFrame(self.model, self.loader, self.question, self.words, ledger, again)
        fragile = look.most_fragile(rows, self.options.fragile, seconds)
        certification = self._certification(rows, seconds + time.monotonic() - started)
        epsilons = sizes_of(self.options) or nice_epsilons(certification)
        print(summary(certification, epsilons))
        rounding = self._rounding(rows)
        figures = self._figures(certification, fragile)
        files = ("samples.csv", "samples.jsonl", "certification.json")
        report = Report(certification, epsilons, fragile, self.classes, figures, files, rounding)
        names = write_certification(ledger.folder, certification, figures, report)
        print("\n" + textwrap.fill(promise(certification.settings, rounding), 79))
        print(textwrap.fill(f"written to {ledger.folder}: {', '.join(names)}", 79))

    def _rounding(self, rows: Sequence[SampleRow]) -> float | None:
        """The share of a radius that it costs to certify the model as it computes, if that was."""
        if self.question.confirm != "deployed":
            return None
        smallest = chosen_samples(self.model, self.loader, most_fragile(rows, _MEASURED))
        return rounding_loss(self.model, smallest, self.question)

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
