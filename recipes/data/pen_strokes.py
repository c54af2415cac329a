"""MNIST digits as a pen writes them: one step a frame, dx, dy, end of stroke, end of digit.

E. de Jong, "MNIST digits stroke sequence data", 2016: one text file an image, one step a line, four
numbers separated by blanks; the first step leads to the start point.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from popqorn_train.recipes.data.sequences import (
    SequenceData,
    SequenceSet,
    data_folder,
    hold_out,
    not_found,
    padded,
)

FEATURES = 4


class PenStrokes(SequenceData):
    """Pen steps of digits, split by the seed into those to train on and those to test.

    Args:
        path: folder of the files; None takes ``$POPQORN_DATA`` or ``data``.
        labels: file with one label per line, in the order of the files' numbers.
        pattern: of the files' names.
        batch_size: of training.
        test: share of the digits to test.
        seed: of the split.

    Raises:
        DataNotFoundError: the files are not there.
        ValueError: files of another form.
    """

    def __init__(
        self,
        path: str | Path | None,
        labels: str | Path,
        *,
        pattern: str = "*inputdata*.txt",
        batch_size: int = 64,
        test: float = 0.2,
        seed: int = 0,
    ) -> None:
        folder = data_folder(path)
        files = sorted(folder.glob(pattern), key=_number)
        if not files or not Path(labels).is_file():
            raise not_found("Pen strokes", f"{pattern} and the file of labels", folder)
        known = torch.tensor([int(label) for label in Path(labels).read_text().split()])
        if len(known) < len(files):
            raise ValueError(f"`labels` must be one per file, got {len(known)} for {len(files)}.")
        every = SequenceSet([read_strokes(file) for file in files], known[: len(files)])
        train, held = hold_out(len(files), int(test * len(files)), seed, "test")
        super().__init__(
            every.some(train),
            every.some(held[:0]),
            every.some(held),
            features=FEATURES,
            classes=int(known.max()) + 1,
            batch_size=batch_size,
            collate=padded,
        )


def _number(file: Path) -> tuple[int, str]:
    """Files by the number in their name: 10 after 9."""
    found = re.search(r"\d+", file.stem)
    return (int(found[0]) if found else -1, file.name)


def read_strokes(file: Path) -> Tensor:
    """The steps ``(T, 4)`` of one digit, up to the end of the digit.

    Raises:
        ValueError: another format.
    """
    steps = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != FEATURES or not all(re.fullmatch(r"-?\d+", part) for part in parts):
            raise ValueError(
                f"{file}, line {number}: a step must be dx dy eos eod, got {line.strip()!r}."
            )
        steps.append([float(part) for part in parts])
        if steps[-1][3]:
            break
    if not steps:
        raise ValueError(f"{file} must hold at least one step, got none.")
    return torch.tensor(steps)
