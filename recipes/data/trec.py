"""TREC: which of six kinds of answer a question asks for.

Li and Roth, "Learning question classifiers", COLING 2002.
"""

from pathlib import Path

import torch

from popqorn_train.recipes.data.sequences import data_folder, not_found
from popqorn_train.recipes.data.text import TextData
from popqorn_train.recipes.data.vectors import VectorSettings

NAMES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
_FILES = (("trec_train.txt", "train_5500.label"), ("trec_test.txt", "TREC_10.label"))
_WANTED = "trec_train.txt and trec_test.txt (or train_5500.label and TREC_10.label)"


class TREC(TextData):
    """5452 questions to train on, some of them held out, and 500 to test.

    Args:
        path: folder of the two files; None takes ``$POPQORN_DATA`` or ``data``.
        batch_size: of training.
        validation: questions held out of the 5452.
        at_least: how often a word must occur in training to be known.
        word_dropout: share of the words that are read as unknown while training.
        vectors: how word vectors are learned.
        vectors_file: where they are kept; None learns them every time.
        seed: of the questions held out.

    Raises:
        DataNotFoundError: the files are not there.
        ValueError: an argument out of range, or files of another form.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        batch_size: int = 64,
        validation: int = 500,
        at_least: int = 2,
        word_dropout: float = 0.1,
        vectors: VectorSettings = VectorSettings(),  # noqa: B008 (frozen)
        vectors_file: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        (known, labels), (test, test_labels) = (_read(file) for file in _find(data_folder(path)))
        super().__init__(
            known,
            torch.tensor(labels),
            test,
            torch.tensor(test_labels),
            names=NAMES,
            batch_size=batch_size,
            validation=validation,
            at_least=at_least,
            word_dropout=word_dropout,
            vectors=vectors,
            vectors_file=vectors_file,
            seed=seed,
        )


def _find(folder: Path) -> list[Path]:
    found = [next((folder / n for n in names if (folder / n).is_file()), None) for names in _FILES]
    files = [file for file in found if file is not None]
    if len(files) < len(_FILES):
        raise not_found("TREC", _WANTED, folder)
    return files


def _read(file: Path) -> tuple[list[list[str]], list[int]]:
    """One question per line, ``COARSE:fine word word ...``; some are not UTF-8.

    Raises:
        ValueError: another format.
    """
    questions, labels = [], []
    # Not splitlines(): it would also split at characters of this encoding.
    lines = file.read_text(encoding="iso-8859-1").rstrip("\n").split("\n")
    for number, line in enumerate(lines, 1):
        label, _, question = line.partition(" ")
        kind = label.partition(":")[0]
        if kind not in NAMES:
            raise ValueError(
                f"{file}, line {number}: a line must start with one of {', '.join(NAMES)} and a "
                f"colon, got {label!r}."
            )
        questions.append(question.split())
        labels.append(NAMES.index(kind))
    return questions, labels
