"""Radii of samples, one row each, with a status: what the monitor and ``certify_loader`` report."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from popqorn_train.evaluation.measures import MEASURES, RADIUS, Measure


class Status(StrEnum):
    """What became of a sample."""

    CERTIFIED = "certified"
    NOT_CERTIFIED = "not certified"
    ERROR = "error"
    NOT_ATTEMPTED = "not attempted"


@dataclass(frozen=True)
class SampleRow:
    """What is known of one sample.

    Attributes:
        index: position in the data set.
        label: its class.
        status: one of ``Status``.
        prediction: class that the model gives the clean input; -1 where a logit is NaN.
        radius: largest epsilon proved, in the units of the input; 0 where the prediction is wrong.
        capped: whether that is the largest that was tried.
        empirical: smallest distortion an attack found, ``inf`` if none did.
        evaluations: margins computed for it.
        measure: ``"share"`` where ``radius`` and ``empirical`` are shares of a box, from 0 to 1,
            ``"level"`` where they are shares of the peak of the sample; otherwise ``"radius"``.
        rate: by which the next search begins, see ``RadiusSearch``.
        bend: likewise.
        margin: certified margin at the epsilon that was asked for.
        error: what went wrong.

    None stands for what was not worked out.
    """

    index: int
    label: int | None
    status: Status
    prediction: int | None = None
    radius: float | None = None
    capped: bool = False
    empirical: float | None = None
    evaluations: int = 0
    margin: float | None = None
    error: str = ""
    rate: float | None = None
    measure: str = "radius"
    bend: float | None = None

    def __repr__(self) -> str:
        """Show what was worked out."""
        values = (
            (column.name, column.default, getattr(self, column.name)) for column in fields(self)
        )
        said = [f"{name}={_text(value)}" for name, default, value in values if value != default]
        return f"SampleRow({', '.join(said)})"

    @property
    def answered(self) -> bool:
        """Whether it was found out if the sample can be certified."""
        return self.status in (Status.CERTIFIED, Status.NOT_CERTIFIED)


def check_row(row: SampleRow) -> None:
    """Refuse a row that was read and can be none.

    Raises:
        ValueError: naming the column.
    """
    whole, numbers = (int, type(None)), (int, float, type(None))
    kinds: dict[str, Any] = {
        **dict.fromkeys(("label", "prediction"), whole), "index": int, "evaluations": int,
        **dict.fromkeys(("radius", "margin", "rate", "bend"), numbers),
        "capped": bool, "error": str,
    }  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(getattr(row, name), kind):
            raise ValueError(f"`{name}` of a row cannot be {getattr(row, name)!r}.")
    if Status(row.status) in (Status.CERTIFIED, Status.NOT_CERTIFIED) and row.radius is None:
        raise ValueError("`radius` of an answered row is missing.")


def _text(value: Any) -> str:
    return repr(str(value)) if isinstance(value, Status) else repr(value)


def measure_of_rows(rows: Iterable[SampleRow]) -> Measure:
    """Whether the radii of rows are radii of balls or shares of a box."""
    known = (MEASURES[row.measure] for row in rows if row.radius is not None)
    return next(known, RADIUS)


def count_statuses(rows: Iterable[SampleRow]) -> dict[Status, int]:
    """How many rows have each status, zeros included."""
    counts = dict.fromkeys(Status, 0)
    for row in rows:
        counts[Status(row.status)] += 1
    return counts
