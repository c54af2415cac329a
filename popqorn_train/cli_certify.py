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

import torch

from popqorn_train.batches import on_device, unpack_pair, unpacked
from popqorn_train.bound import BoundModel, bound
from popqorn_train.certificate import Confirm
from popqorn_train.certification import Certification
from popqorn_train.checkpoint import load_weights
from popqorn_train.cli_files import write_certification
from popqorn_train.cli_options import add_certify_options, class_names, mask_of
from popqorn_train.dataset import Source, opened
from popqorn_train.examine import Examination, SampleRow
from popqorn_train.fragile import (
    FragileSample,
    chosen_samples,
    described,
    examined_frames,
    most_fragile,
    vocabulary,
)
from popqorn_train.ledger import Ledger
from popqorn_train.loader import certify_loader
from popqorn_train.methods import method_named
from popqorn_train.named import named_model
from popqorn_train.perturbation import LpBall
from popqorn_train.progress import Silent, shown
from popqorn_train.provenance import data_fingerprint, fingerprint, versions
from popqorn_train.report import Report
from popqorn_train.report_figures import report_figures
from popqorn_train.summary import nice_epsilons, promise, summary
from popqorn_train.tracer import UnsupportedModelError

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
            warnings.showwarning = _note
            _Run.prepared(options).finish()
    except KeyboardInterrupt:
        print(
            f"popqorn-train certify: stopped; what is certified is in {options.folder}, go on with "
            "--resume",
            file=sys.stderr,
        )
        return 130
    except REFUSED as error:
        print(f"popqorn-train certify: {error}", file=sys.stderr)
        return 1
    return 0


def _note(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"note: {message}", file=sys.stderr)


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
        ledger: keeps the rows.
    """

    options: argparse.Namespace
    model: BoundModel
    loader: Iterable[Any]
    axis: int
    question: Examination
    settings: dict[str, Any]
    ledger: Ledger

    @classmethod
    def prepared(cls, options: argparse.Namespace) -> "_Run":
        """Load everything, and refuse what does not fit before anything is computed."""
        model = _loaded(options)
        loader = _opened(options, model)
        inputs = _first(options, model, loader)
        frames, axis = model.case(inputs).center.shape[1], model.batch_axis(inputs)
        question = _question(options, mask_of(options.frames, frames))
        settings = {
            "model": options.model,
            "checkpoint": options.checkpoint and str(options.checkpoint),
            "prefix": options.prefix,
            "data": options.data,
            "perturb": options.perturb,
            **question.settings(),
            "weights": fingerprint(model.model),
            "first_samples": data_fingerprint(_batches(loader), _FIRST, axis),
        }
        ledger = Ledger(options.folder, settings, resume=options.resume)
        return cls(options, model, loader, axis, question, settings, ledger)

    def finish(self) -> None:
        """Certify, look at the fragile samples, write and print everything."""
        started = time.monotonic()
        rows = self._certified()
        self.ledger.rewrite(rows)
        fragile = self._fragile(rows)
        certification = self._certification(rows, time.monotonic() - started)
        epsilons = self.options.epsilons or nice_epsilons(certification)
        print(summary(certification, epsilons))
        classes = class_names(self.options.classes)
        figures = self._figures(certification, fragile, classes)
        files = ("samples.csv", "samples.jsonl", "certification.json")
        report = Report(certification, epsilons, fragile, classes, figures, files)
        names = write_certification(self.options.folder, certification, figures, report)
        print("\n" + textwrap.fill(promise(certification.settings), 100))
        print(f"\nwritten to {self.options.folder}: {', '.join(names)}")

    def _certified(self) -> list[SampleRow]:
        ball, question = self.question.ball, self.question
        return certify_loader(
            self.model,
            self.loader,
            p=ball.p,
            method=question.method,
            frames=ball.frames,
            scope=ball.scope,
            low=ball.low,
            high=ball.high,
            max_radius=question.max_radius,
            rtol=question.rtol,
            confirm=question.confirm,
            attack=question.attack,
            samples=self.options.samples,
            seconds=self.options.seconds,
            known=self.ledger.known,
            tell=self.ledger.add,
        )

    def _fragile(self, rows: Sequence[SampleRow]) -> list[FragileSample]:
        """The most fragile samples frame by frame, by radius; what is known is not done again."""
        wanted = most_fragile(rows, self.options.fragile)
        words = vocabulary(self.options.words) if self.options.words else None
        bar = shown("frames of the most fragile", len(wanted)) if wanted else Silent()
        found = []
        for row, picked in chosen_samples(self.model, self.loader, wanted):
            radii = self.ledger.frames.get(row.index)
            answer = (radii, "") if radii else examined_frames(self.model, picked, self.question)
            if not radii and answer[0]:
                self.ledger.add_frames(row.index, answer[0])
            found.append(described(self.model, row, picked, answer, words))
            bar.advance(1)
        bar.close()
        return sorted(found, key=lambda one: wanted.index(one.row))

    def _certification(self, rows: Sequence[SampleRow], seconds: float) -> Certification:
        settings = dict(self.settings)
        weights = settings.pop("weights")
        settings |= {
            "samples": len(rows),
            "data_fingerprint": data_fingerprint(_batches(self.loader), len(rows), self.axis),
            "command": shlex.join(["popqorn-train", *sys.argv[1:]]),
            "versions": versions("popqorn-train", "torch"),
        }
        return Certification(
            0, 0, tuple(rows), seconds, settings=settings, weights=weights, stage="certify"
        )

    def _figures(
        self,
        certification: Certification,
        fragile: Sequence[FragileSample],
        classes: Sequence[str],
    ) -> dict[str, bytes]:
        if not certification.answered:
            return {}
        try:
            return report_figures(certification, fragile, classes=classes, image=self.options.image)
        except ImportError as error:
            print(f"note: no pictures. {error}", file=sys.stderr)
            return {}


def _loaded(options: argparse.Namespace) -> BoundModel:
    model = named_model(options.model)
    if options.prefix and options.checkpoint is None:
        raise ValueError("`--prefix` belongs to --checkpoint, which is missing.")
    if options.checkpoint is not None:
        load_weights(model, options.checkpoint, options.prefix)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return bound(model.to(device).eval(), perturb=options.perturb)


def _question(options: argparse.Namespace, frames: torch.Tensor | None) -> Examination:
    ball = LpBall(
        0.0,
        options.p,
        frames=frames,
        scope=options.scope,
        low=options.low,
        high=options.high,
    )
    confirm: Confirm = None if options.no_confirm else "float64"
    method = method_named(options.method)
    return Examination(ball, method, options.max_radius, options.rtol, confirm, options.attack)


def _opened(options: argparse.Namespace, model: BoundModel) -> Iterable[Any]:
    return opened(
        Source(
            options.data,
            options.inputs,
            options.target,
            options.divide,
            model.weights_dtype or torch.float32,
            options.batch_size,
        )
    )


def _first(options: argparse.Namespace, model: BoundModel, loader: Iterable[Any]) -> Any:
    """Inputs of the first batch, on the device of the model."""
    first = next(iter(loader), None)
    if first is None:
        raise ValueError(f"`--data` {options.data} must give at least one batch, got none.")
    inputs, target = unpacked(unpack_pair, first)
    device = next((p.device for p in model.parameters()), target.device)
    return on_device(inputs, device)


def _batches(loader: Iterable[Any]) -> Iterable[tuple[tuple[Any, ...], torch.Tensor]]:
    for batch in loader:
        inputs, target = unpacked(unpack_pair, batch)
        yield (inputs if isinstance(inputs, tuple) else (inputs,)), target
