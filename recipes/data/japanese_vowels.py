"""JapaneseVowels: nine speakers told apart by 7 to 29 frames of 12 cepstrum coefficients.

Kudo, Toyama and Shimbo, "Multidimensional curve classification using passing-through regions",
Pattern Recognition Letters, 1999. The wheels of sktime and of aeon hold the files.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from popqorn_train.recipes.data.sequences import (
    SequenceData,
    SequenceSet,
    data_folder,
    hold_out,
    not_found,
    padded,
)

_FILES = ("JapaneseVowels_TRAIN.ts", "JapaneseVowels_TEST.ts")
_WANTED = (
    'JapaneseVowels_TRAIN.ts and JapaneseVowels_TEST.ts (or: pip install "popqorn-train[speech]")'
)


class JapaneseVowels(SequenceData):
    """270 utterances to train on and 370 to test; each feature in standard deviations.

    Mean and deviation are those of the frames that are trained on.

    Args:
        path: folder of the two files; None takes sktime's or aeon's, else ``$POPQORN_DATA`` or
            ``data``.
        batch_size: of training.
        validation: utterances held out of the 270.
        cut: frames that either end of an utterance may lose in training.
        warp: share by which it may be drawn out or pressed together in training.
        offset: deviation of a shift in training, one for every feature of an utterance.
        seed: of the utterances held out.

    Raises:
        DataNotFoundError: the files are not there.
        ValueError: an argument out of range, or files of another form.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        batch_size: int = 64,
        validation: int = 45,
        cut: int = 0,
        warp: float = 0.0,
        offset: float = 0.0,
        seed: int = 0,
    ) -> None:
        if cut < 0 or not 0 <= warp < 1 or offset < 0:
            raise ValueError(
                f"`cut` and `offset` must be at least 0 and `warp` lie in [0, 1), got {cut}, "
                f"{offset} and {warp}."
            )
        known, test = (_read(file) for file in _find(path))
        train, held = hold_out(len(known), validation, seed)
        frames = torch.cat(list(known.some(train).sequences))
        mean, deviation = frames.mean(0), frames.std(0)
        known, test = (
            SequenceSet([(x - mean) / deviation for x in part.sequences], part.labels)
            for part in (known, test)
        )
        super().__init__(
            known.some(train),
            known.some(held),
            test,
            features=len(mean),
            classes=9,
            batch_size=batch_size,
            collate=padded,
        )
        self.names = tuple(f"speaker {number}" for number in range(1, 10))
        self._changes = cut, warp, offset
        self._collate_training = self._changed

    def _changed(self, samples: list[tuple[Tensor, Tensor]]) -> Any:
        return padded([(changed(x, *self._changes), label) for x, label in samples])


def changed(x: Tensor, cut: int, warp: float, offset: float) -> Tensor:
    """An utterance ``(T, N)`` as another take of the same speaker might be.

    Drawn by the global generator; see ``JapaneseVowels`` for the arguments. One of up to
    ``2 cut + 6`` frames is not cut.
    """
    if len(x) > 2 * cut + 6:
        start, stop = torch.randint(cut + 1, (2,)).tolist()
        x = x[start : len(x) - stop]
    if warp:
        frames = round(len(x) * (1 + warp * (2 * torch.rand(()).item() - 1)))
        x = interpolate(x.T[None], frames, mode="linear", align_corners=True)[0].T
    return x + offset * torch.randn(1, x.shape[1])


def _find(path: str | Path | None) -> list[Path]:
    shipped = [spec for name in ("sktime", "aeon") if (spec := find_spec(name)) is not None]
    roots = [Path(root) for spec in shipped for root in spec.submodule_search_locations or ()]
    folders = [root / "datasets" / "data" / "JapaneseVowels" for root in roots]
    folders = [data_folder(path)] if path is not None else [*folders, data_folder(None)]
    for folder in folders:
        files = [folder / name for name in _FILES]
        if all(file.is_file() for file in files):
            return files
    raise not_found("JapaneseVowels", _WANTED, folders[-1])


def _read(file: Path) -> SequenceSet:
    """One utterance a line: features apart by colons, their frames by commas, then the speaker.

    Raises:
        ValueError: another format.
    """
    sequences: list[Tensor] = []
    speakers = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line[0] in "#@":
            continue
        try:
            *features, speaker = line.split(":")
            rows = [[float(value) for value in feature.split(",")] for feature in features]
            sequences.append(torch.tensor(rows).T.contiguous())
            speakers.append(int(speaker) - 1)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: no utterance with its speaker.") from error
    return SequenceSet(sequences, torch.tensor(speakers))
