"""Rows on the disk as they come: a run that is killed loses nothing that was reported.

``samples.jsonl`` is what a later run goes on from, ``samples.csv`` is the same for a spreadsheet,
``settings.json`` says what the rows are about, and that each has a checksum: a row that is not as
it was written is no row, and its sample is certified again.
"""

import csv
import io
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import IO, Any

from popqorn_train.evaluation.folder import flushed, write_whole
from popqorn_train.evaluation.sample_rows import SampleRow, Status, check_row
from popqorn_train.evaluation.stored import Lines, line_of, object_in, objects_in

COLUMNS = tuple(column.name for column in fields(SampleRow))
_ROWS, _FRAMES, _SETTINGS = "samples.jsonl", "frames.jsonl", "settings.json"
_FORMAT = {"checksum": "crc32"}  # of every line; rows of earlier versions have none


class Ledger:
    """The rows of one certification in a folder.

    Args:
        folder: made if need be.
        settings: what the rows depend on, as plain values.
        resume: go on from what is there.

    Attributes:
        known: rows that are answered, by position.
        frames: radii of single frames, by position of the sample.

    Raises:
        ValueError: the folder holds a certification and is not resumed, or one with other
            settings, or with none.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool = False) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.known: dict[int, SampleRow] = {}
        self.frames: dict[int, list[float]] = {}
        if resume:
            self._read(settings)
        elif _holds(folder / _ROWS):
            raise ValueError(
                f"`--folder` {folder} holds {_ROWS} of an earlier run. Continue with --resume, or "
                "name another folder."
            )
        self.rewrite(())
        frames = "".join(map(_frame_line, self.frames.items()))
        write_whole(folder / _FRAMES, frames)
        # Last: before it, rows of an earlier version need no checksum.
        write_whole(folder / _SETTINGS, json.dumps({**settings, **_FORMAT}, indent=2) + "\n")

    def _read(self, settings: dict[str, Any]) -> None:
        if not (self.folder / _SETTINGS).exists():
            if _holds(self.folder / _ROWS):
                raise ValueError(
                    f"`--resume` needs {_SETTINGS} beside {_ROWS} in {self.folder}: nothing else "
                    "says what the rows are about. Put it back, or name another folder."
                )
            return
        before, checked = read_settings(self.folder)
        for name in sorted({*before, *settings}):
            old, new = before.get(name), settings.get(name)
            if old != new:
                raise ValueError(
                    f"`--resume` needs the settings of the run in {self.folder}: {name} was "
                    f"{old!r}, is {new!r}. Name another folder."
                )
        try:
            rows, damage = read_rows(self.folder, checked=checked)
            self.known = {row.index: row for row in rows if row.answered}
            frames = _lines(self.folder / _FRAMES, checked=checked)
            for plain in frames.objects:
                self.frames[int(plain["index"])] = [float(radius) for radius in plain["radii"]]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"`--resume` cannot read the rows in {self.folder}: a line was not written by "
                "certify. Remove it, or name another folder."
            ) from error
        for damaged in filter(None, (damage, frames.damage)):
            warnings.warn(f"{damaged}: what stood there is worked out again.", stacklevel=3)

    def add(self, rows: Sequence[SampleRow]) -> None:
        """Append rows, and wait until they are on the disk."""
        with (self.folder / _ROWS).open("a") as file:
            file.writelines(_line(row) for row in rows)
            flushed(file)
        with (self.folder / "samples.csv").open("a", newline="") as file:
            _write_csv(file, rows)
            flushed(file)

    def add_frames(self, index: int, radii: list[float]) -> None:
        """Append the radii of the frames of one sample."""
        self.frames[index] = radii
        with (self.folder / _FRAMES).open("a") as file:
            file.write(_frame_line((index, radii)))
            flushed(file)

    def rewrite(self, rows: Iterable[SampleRow]) -> None:
        """Put rows, and known ones that are not among them, in the place of what is there."""
        every = self.known | {row.index: row for row in rows}
        ordered = [every[index] for index in sorted(every)]
        write_whole(self.folder / _ROWS, "".join(map(_line, ordered)))
        file = io.StringIO(newline="")
        csv.writer(file).writerow(COLUMNS)
        _write_csv(file, ordered)
        write_whole(self.folder / "samples.csv", file.getvalue())


def read_settings(folder: Path) -> tuple[dict[str, Any], bool]:
    """What the rows of a ledger are about, and whether each must have a checksum.

    Raises:
        ValueError: that cannot be read.
    """
    plain = object_in(folder / _SETTINGS)
    checked = _FORMAT.keys() <= plain.keys()
    return {name: value for name, value in plain.items() if name not in _FORMAT}, checked


def read_rows(folder: Path, *, checked: bool) -> tuple[list[SampleRow], str]:
    """Every row that a ledger holds, as they were written, and what is damaged; see ``Lines``."""
    lines = _lines(folder / _ROWS, checked=checked)
    return [_row(plain) for plain in lines.objects], lines.damage


def _line(row: SampleRow) -> str:
    plain = asdict(row)
    if row.empirical is not None:
        plain["empirical"] = str(row.empirical) if row.empirical == float("inf") else row.empirical
    return line_of(plain)


def _row(plain: dict[str, Any]) -> SampleRow:
    row = SampleRow(**{name: plain[name] for name in COLUMNS if name in plain})
    check_row(row)
    empirical = None if row.empirical is None else float(row.empirical)
    return replace(row, status=Status(row.status), empirical=empirical)


def _frame_line(entry: tuple[int, list[float]]) -> str:
    return line_of({"index": entry[0], "radii": entry[1]})


def _write_csv(file: IO[str], rows: Iterable[SampleRow]) -> None:
    writer = csv.writer(file)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in COLUMNS])


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula begins with an apostrophe instead."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value


def _holds(path: Path) -> bool:
    """Whether something was written to a file."""
    return path.exists() and path.stat().st_size > 0


def _lines(path: Path, *, checked: bool) -> Lines:
    """Every whole line, if there is a file."""
    return objects_in(path, checked=checked) if path.exists() else Lines([])
