"""The files that ``popqorn-train certify`` leaves, and how they are read back."""

import json
from collections.abc import Mapping
from pathlib import Path

from popqorn_train.evaluation.certification import Certification, read_certifications
from popqorn_train.evaluation.folder import write_whole
from popqorn_train.evaluation.stored import object_in, with_checksum
from popqorn_train.plots.report import Report

CERTIFICATION = "certification.json"


def write_certification(
    folder: Path, certification: Certification, figures: Mapping[str, bytes], report: Report
) -> list[str]:
    """Write numbers, pictures and report beside the rows; return the names of all files."""
    names = ["report.html", CERTIFICATION, "samples.csv", "samples.jsonl"]
    plain = with_checksum(certification.plain())
    text = json.dumps(plain, indent=1, allow_nan=False)
    write_whole(folder / CERTIFICATION, text + "\n")
    for name, svg in figures.items():
        write_whole(folder / f"{name}.svg", svg)
        names.append(f"{name}.svg")
    write_whole(folder / "report.html", report.html())
    return names


def read_certification(path: Path) -> Certification:
    """Read what ``certify`` wrote, or the newest complete entry of a ``certification.jsonl``.

    Entries of all samples come before those of a part.

    Args:
        path: of the file, or of the folder that holds it.

    Raises:
        ValueError: the file holds no certification.
        OSError: it cannot be read.
    """
    if path.is_dir():
        path = path / CERTIFICATION
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a {CERTIFICATION}, its folder or a .jsonl.")
    if path.suffix == ".jsonl":
        complete = [entry for entry in read_certifications(path) if entry.complete]
        if not complete:
            raise ValueError(f"{path} holds no certification with every sample answered.")
        return ([entry for entry in complete if entry.part is None] or complete)[-1]
    try:
        return Certification.of(object_in(path))
    except ValueError as error:
        raise ValueError(
            f"{path} must be a {CERTIFICATION} or a .jsonl of a monitor: {error}"
        ) from error
