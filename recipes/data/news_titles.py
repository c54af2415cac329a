"""News titles: which of seven sections of a newspaper a title belongs to.

Vitale, Ferragina and Scaiella, "Classification of short texts by deploying topical annotations",
ECIR 2012 (TagMyNews); read as POPQORN's authors publish it.
"""

import csv
from pathlib import Path

import torch

from popqorn_train.recipes.data.sequences import data_folder, hold_out, not_found
from popqorn_train.recipes.data.text import TextData
from popqorn_train.recipes.data.vectors import VectorSettings

NAMES = ("sport", "world", "us", "business", "health", "entertainment", "sci_tech")
_WANTED = "tagmynews.csv (number, title, description, category 0 to 6)"


class NewsTitles(TextData):
    """Titles that occur once, split by the seed into those to train on, to watch and to test.

    Args:
        path: folder of ``tagmynews.csv``, or the file; None takes ``$POPQORN_DATA`` or ``data``.
        batch_size: of training.
        test: titles to test.
        validation: titles held out of the others.
        at_least: how often a word must occur in training to be known.
        word_dropout: share of the words that are read as unknown while training.
        vectors: how word vectors are learned.
        vectors_file: where they are kept; None learns them every time.
        seed: of both splits.

    Raises:
        DataNotFoundError: the file is not there.
        ValueError: an argument out of range, or a file of another form.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        batch_size: int = 64,
        test: int = 1500,
        validation: int = 700,
        at_least: int = 2,
        word_dropout: float = 0.1,
        vectors: VectorSettings = VectorSettings(),  # noqa: B008 (frozen)
        vectors_file: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        titles, labels = _read(_find(data_folder(path)))
        rest, tested = hold_out(len(titles), test, seed, "test")
        rest, every = rest.sort().values, torch.tensor(labels)
        super().__init__(
            [titles[i] for i in rest.tolist()],
            every[rest],
            [titles[i] for i in tested.tolist()],
            every[tested],
            names=NAMES,
            batch_size=batch_size,
            validation=validation,
            at_least=at_least,
            word_dropout=word_dropout,
            vectors=vectors,
            vectors_file=vectors_file,
            seed=seed,
        )


def _find(place: Path) -> Path:
    file = place / "tagmynews.csv" if place.is_dir() else place
    if not file.is_file():
        raise not_found("The titles of TagMyNews", _WANTED, place)
    return file


def _read(file: Path) -> tuple[list[list[str]], list[int]]:
    """The first row of each title, so that none is trained on and tested.

    Raises:
        ValueError: another format.
    """
    found: dict[str, int] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.reader(lines), 1):
            if len(row) != 4 or not row[3].isdigit() or int(row[3]) >= len(NAMES):
                raise ValueError(f"{file}, row {number}: a row must be {_WANTED}, got {row!r}.")
            found.setdefault(row[1], int(row[3]))
    return [title.split() for title in found], list(found.values())
