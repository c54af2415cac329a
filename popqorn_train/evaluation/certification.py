"""One certification of a set of samples, and the file that all of them are kept in.

The file is append-only, one JSON line a certification, on the disk before the line counts as
written. A line that a crash cut off is skipped, one that is not as it was written left out with a
warning. A resumed run takes the place of what the same run certified after the step that it starts
from.

B: batch, R: epsilons.
"""

import html
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popqorn_train.evaluation.folder import flushed
from popqorn_train.evaluation.measures import Measure
from popqorn_train.evaluation.sample_list import SampleRows
from popqorn_train.evaluation.sample_rows import SampleRow, Status, check_row, measure_of_rows
from popqorn_train.evaluation.stored import line_of, mend_end, objects_in

_COLUMNS = tuple(column.name for column in fields(SampleRow))


def count_certified(radii: Tensor, epsilons: Tensor) -> Tensor:
    """Count the certified radii ``(B,)`` that reach each epsilon ``(R,)``; NaN reaches none.

    A radius of 0 means a wrong prediction or no proof, and counts nowhere.
    """
    radii = radii.to(epsilons)[None]
    return ((radii >= epsilons[:, None]) & (radii > 0)).sum(dim=1)


def lower_quantile(values: Tensor, share: float) -> Tensor:
    """The largest value that at most a share of the others lies below: one of them, never mixed."""
    return values.sort().values[int((len(values) - 1) * share)]


@dataclass(frozen=True)
class Certification:
    """Radii of the same samples at one step of training.

    Attributes:
        epoch: being trained.
        step: optimizer steps taken.
        rows: one per sample, by index.
        seconds: that it took.
        run: which training it belongs to.
        settings: what the radii depend on but the model, as plain values.
        weights: fingerprint of the weights that were certified.
        stage: ``"fit"``, ``"validate"`` or ``"test"``.
        part: which part of the samples it is of, from 0 on; None if of all.
    """

    epoch: int
    step: int
    rows: tuple[SampleRow, ...]
    seconds: float = 0.0
    run: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    stage: str = "fit"
    part: int | None = None

    @property
    def title(self) -> str:
        """Its epoch, and which part of the samples it is of, in words."""
        return f"epoch {self.epoch}" + ("" if self.part is None else f", part {self.part + 1}")

    def __repr__(self) -> str:
        rows = repr(SampleRows(self.rows)).strip("<>").removeprefix("SampleRows: ")
        return f"<Certification: {self.stage}, epoch {self.epoch}, step {self.step}, {rows}>"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self).strip('<>'))}</p>{SampleRows(self.rows)._repr_html_()}"

    @property
    def answered(self) -> list[SampleRow]:
        """Rows that are certified or not; those in error or not attempted say neither."""
        return [row for row in self.rows if row.answered]

    @property
    def complete(self) -> bool:
        """Whether every sample is answered, so that epochs can be compared."""
        return len(self.answered) == len(self.rows) > 0

    @property
    def measure(self) -> Measure:
        """Whether its radii are radii of balls or shares of a box."""
        return measure_of_rows(self.rows)

    @property
    def radii(self) -> Tensor:
        """Certified radii, or shares of a box, of the answered samples; 0 where they are wrong."""
        return torch.tensor([row.radius for row in self.answered], dtype=torch.float64)

    @property
    def empirical(self) -> Tensor | None:
        """Smallest distortions found for the answered samples; None if no attack was run."""
        found = [row.empirical for row in self.answered]
        if not found or found[0] is None:
            return None
        return torch.tensor(found, dtype=torch.float64)

    @property
    def clean_accuracy(self) -> float:
        """Share of the answered samples whose prediction is right."""
        right = [row.prediction == row.label for row in self.answered]
        return sum(right) / len(right)

    def certified_accuracy(self, epsilons: Sequence[float]) -> list[float]:
        """Share of the answered samples that are proved at each epsilon; at 0 the clean one."""
        counted = count_certified(self.radii, torch.tensor(epsilons, dtype=torch.float64))
        shares = (counted.double() / len(self.answered)).tolist()
        pairs = zip(epsilons, shares, strict=True)
        return [share if epsilon > 0 else self.clean_accuracy for epsilon, share in pairs]

    def attacked_accuracy(self, epsilons: Sequence[float]) -> list[float]:
        """Share of the answered samples that the attack did not break at each epsilon.

        Raises:
            ValueError: no attack was run.
        """
        broke = self.empirical
        if broke is None:
            raise ValueError("`attack` was off in this certification; switch it on.")
        return [(broke > epsilon).double().mean().item() for epsilon in epsilons]

    def by_class(self) -> dict[int, float]:
        """Mean certified radius of the answered samples of each class."""
        classes: dict[int, list[float]] = {}
        for row in self.answered:
            if row.label is not None and row.radius is not None:
                classes.setdefault(row.label, []).append(row.radius)
        return {label: sum(radii) / len(radii) for label, radii in sorted(classes.items())}

    def plain(self) -> dict[str, Any]:
        """The same as values that JSON and a checkpoint can hold; rows become columns."""
        columns = {name: [_plain(getattr(row, name)) for row in self.rows] for name in _COLUMNS}
        names = ("run", "stage", "epoch", "step", "part", "seconds", "weights", "settings")
        return {**{name: _plain(getattr(self, name)) for name in names}, "samples": columns}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Certification":
        """Read what ``plain`` gave.

        Raises:
            ValueError: it gave something else.
        """
        values = dict(plain)
        try:
            columns = values.pop("samples")
            # Columns of a later version are left out, those it does not know yet are not there.
            known = [name for name in _COLUMNS if name in columns]
            cells = zip(*[columns[name] for name in known], strict=True)
            rows = [_typed(SampleRow(**dict(zip(known, row, strict=True)))) for row in cells]
            return cls(rows=tuple(rows), **values)._checked()
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"no certification: {type(error).__name__}: {error}") from error

    def _checked(self) -> "Certification":
        kinds: dict[str, Any] = {
            "epoch": int,
            "step": int,
            "seconds": (int, float),
            "run": str,
            "stage": str,
        }
        for name, kind in {**kinds, "settings": dict, "part": (int, type(None))}.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"`{name}` cannot be {getattr(self, name)!r}")
        return self


def _plain(value: Any) -> Any:
    """JSON has no infinity, a checkpoint no enum."""
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, str) or value in (torch.inf, -torch.inf) else value


def _typed(row: SampleRow) -> SampleRow:
    check_row(row)
    empirical = None if row.empirical is None else float(row.empirical)
    return replace(row, status=Status(row.status), empirical=empirical)


def append_certification(path: Path, certification: Certification) -> None:
    """Add a line and wait until it is on the disk.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = line_of(certification.plain())
    mend_end(path)
    with path.open("ab") as file:
        file.write(line.encode())
        flushed(file)


def read_certifications(path: str | Path, run: str | None = None) -> list[Certification]:
    """Read the certifications of one run, by step; outside of ``fit`` every one that was made.

    A line that is damaged is left out with a warning.

    Args:
        path: of a ``certification.jsonl``.
        run: which run; None takes the one that was written last.

    Raises:
        ValueError: the file holds none, or something else.
    """
    lines = objects_in(Path(path))
    try:
        found = [Certification.of(plain) for plain in lines.objects]
    except ValueError as error:
        raise ValueError(f"`path` must hold certifications alone; {path}: {error}.") from error
    if not found:
        raise ValueError(f"`path` must hold certifications, got none in {path}.")
    if lines.damage:
        warnings.warn(f"{lines.damage}: what was certified there is left out.", stacklevel=2)
    run = found[-1].run if run is None else run
    kept: list[Certification] = []
    for entry in found:
        if entry.run == run:
            if entry.stage == "fit":
                at = entry.epoch, entry.step
                kept = [before for before in kept if (before.epoch, before.step) < at]
            kept.append(entry)
    return kept
