"""What is asked about samples: radii, or whether a ball is certified.

B: batch, S: samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from popqorn_train.bounds.methods import Method, name_of
from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.certificate import Confirm, certify
from popqorn_train.certificates.empirical import search_empirical
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.kept import check_samples
from popqorn_train.certificates.probes import PROBES
from popqorn_train.certificates.radius import search_radius
from popqorn_train.certificates.search import Decided, Start
from popqorn_train.evaluation.batches import Picked
from popqorn_train.evaluation.measures import LEVEL, RADIUS, SHARE, Measure
from popqorn_train.evaluation.sample_rows import SampleRow, Status
from popqorn_train.perturbations.box import Box, Perturbation
from popqorn_train.perturbations.peak_box import PeakBox


@dataclass(frozen=True)
class Examination:
    """What is asked about every sample.

    Attributes:
        ball: what may move, an ``LpBall`` whose epsilon does not matter, or a ``Box``.
        method: how to bound.
        max_radius: see ``certified_radius``, as for the next two.
        rtol: relative precision.
        confirm: prove every radius again in float64.
        attack: also look for the smallest distortion that breaks the prediction.
        epsilons: where certified samples will be counted; see ``certified_radius``.
        probes: points at which the model is compared with what was proved, see ``certify``.
    """

    ball: Perturbation
    method: Method
    max_radius: float | None
    rtol: float
    confirm: Confirm
    attack: bool
    epsilons: tuple[float, ...] = ()
    probes: int = PROBES

    def rows(
        self, model: BoundModel, picked: Picked, start: Start | None, decided: Decided
    ) -> list[SampleRow]:
        """Examine samples at once.

        Args:
            model: the classifier.
            picked: S samples.
            start: where to begin, ``(S,)`` each.
            decided: told how many samples are decided; each is half done before its attack.

        Raises:
            BadSamplesError: samples that cannot be asked about.
            ValueError, TypeError, UnsupportedModelError: as ``certified_radius``.
        """
        with undisturbed(model.model):  # one trace for all that is asked
            check_samples(model, picked.inputs)
            return self._rows(model, picked, start, decided)

    def _rows(
        self, model: BoundModel, picked: Picked, start: Start | None, decided: Decided
    ) -> list[SampleRow]:
        inputs, labels, share = picked.inputs, picked.labels, 0.5 if self.attack else 1.0
        found = search_radius(
            model,
            inputs,
            labels,
            self.ball,
            method=self.method,
            max_radius=self.max_radius,
            rtol=self.rtol,
            confirm=self.confirm,
            start=start,
            epsilons=self.epsilons,
            probes=self.probes,
            decided=lambda count: decided(share * count),
        )
        assert found.bend is not None
        columns = [found.radius, found.capped, found.evaluations, found.rate, found.bend]
        columns.append(_predictions(model, inputs))
        empirical: Sequence[float | None] = [None] * len(labels)
        if self.attack:
            broke = search_empirical(
                model,
                inputs,
                labels,
                self.ball,
                max_radius=self.max_radius,
                decided=lambda count: decided((len(labels) + count) / 2),
            )
            empirical = broke.tolist()
        answers = zip(
            picked.positions.tolist(),
            labels.tolist(),
            *[column.tolist() for column in columns],
            empirical,
            strict=True,
        )
        measure = measure_of(self.ball).name
        return [replace(_row(*answer), measure=measure) for answer in answers]

    def told(self) -> str:
        """What is searched, in a few words."""
        if isinstance(self.ball, Box):
            return f"shares of {'the peak' if isinstance(self.ball, PeakBox) else 'a box'}"
        return f"l_{self.ball.p:g}"

    def moving(self) -> dict[str, Any]:
        """What may move, as arguments of ``certified_radius`` and ``certify_loader``."""
        if isinstance(self.ball, Box):
            return {"box": self.ball}
        names = ("p", "frames", "features", "scope", "low", "high")
        return {name: getattr(self.ball, name) for name in names}

    def settings(self) -> dict[str, Any]:
        """Everything that a radius depends on but the model, as plain values."""
        return {
            **_moving(self.ball),
            "method": name_of(self.method),
            "max_radius": _plain(self.max_radius),
            "rtol": _plain(self.rtol),
            "confirm": self.confirm,
            "attack": self.attack,
            "probes": self.probes,
        }


@dataclass(frozen=True)
class AtBall:
    """Whether every sample is certified in one ball.

    Attributes:
        ball: of one size for all samples.
        method: how to bound.
        confirm: prove again in float64.
        probes: see ``certify``.
    """

    ball: Perturbation
    method: Method
    confirm: Confirm
    probes: int = PROBES

    def rows(
        self, model: BoundModel, picked: Picked, start: Start | None, decided: Decided
    ) -> list[SampleRow]:
        """Certify samples at once; see ``Examination.rows``."""
        inputs, labels = picked.inputs, picked.labels
        options: dict[str, Any] = {"method": self.method, "confirm": self.confirm}
        with undisturbed(model.model):  # one trace for both
            check_samples(model, inputs)
            found = certify(model, inputs, labels, self.ball, probes=self.probes, **options)
            predictions = _predictions(model, inputs)
        columns = (
            picked.positions,
            labels,
            found.certified,
            predictions,
            found.margin,
        )
        return [
            SampleRow(
                index,
                label,
                Status.CERTIFIED if certified else Status.NOT_CERTIFIED,
                prediction,
                margin=margin,
            )
            for index, label, certified, prediction, margin in zip(
                *[column.tolist() for column in columns], strict=True
            )
        ]


def _predictions(model: BoundModel, inputs: tuple[Any, ...]) -> Tensor:
    with torch.no_grad(), undisturbed(model.model):
        instance = model.instance(inputs, check=False)
        logits = instance.logits(instance.center)
        return logits.argmax(1).masked_fill(logits.isnan().any(1), -1)


def _row(
    index: int,
    label: int,
    radius: float,
    capped: bool,
    evaluations: int,
    rate: float,
    bend: float,
    prediction: int,
    empirical: float | None,
) -> SampleRow:
    status = Status.CERTIFIED if radius > 0 else Status.NOT_CERTIFIED
    row = SampleRow(index, label, status, prediction, radius, capped, empirical, evaluations)
    row = replace(row, rate=_known(rate), bend=_known(bend))
    if empirical is not None and empirical < radius:
        # One of the two is wrong; neither may pass for an answer.
        problem = f"attacked at {empirical:.6g}, below what was certified, {radius:.6g}"
        row = replace(row, status=Status.ERROR, radius=None, empirical=None, error=problem)
    return row


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def measure_of(ball: Perturbation) -> Measure:
    """What is measured of a perturbation whose size is searched."""
    if isinstance(ball, PeakBox):
        return LEVEL
    return SHARE if isinstance(ball, Box) else RADIUS


def _moving(ball: Perturbation) -> dict[str, Any]:
    """What may move, as plain values."""
    if isinstance(ball, Box):
        ends: Any = dict(zip(("lower", "upper"), map(_plain, ball.ends), strict=True))
        masks = zip(("frames", "features"), map(_plain, ball.masks), strict=True)
        return {"box": "peak" if isinstance(ball, PeakBox) else ends, **dict(masks)}
    names = ("low", "high", "frames", "features")
    return {
        "p": str(ball.p),
        "scope": ball.scope,
        **{name: _plain(getattr(ball, name)) for name in names},
    }


def _plain(value: float | Tensor | None) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return None if value is None else float(value)  # also from numpy's numbers
