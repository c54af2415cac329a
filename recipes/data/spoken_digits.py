"""Spoken digits: the Free Spoken Digit Dataset as raw waves at 8 kHz, six speakers.

Z. Jackson et al., "Free Spoken Digit Dataset", CC BY-SA 4.0. One file holds all waves in a row:
``signal`` int16, ``lengths``, ``label``, ``speaker`` and ``take``, one of each an utterance.
The first five takes of every digit and speaker are the test set, as in Ryou et al., "Scalable
Polyhedral Verification of Recurrent Neural Networks", CAV 2021.
"""

from pathlib import Path

import numpy as np
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

FILE = "spoken_digits.npz"
_TEST_TAKES = 5


class SpokenDigits(SequenceData):
    """2700 utterances to train on, 300 to test; each wave over its own peak.

    An epsilon of ``10 ** (dB / 20)`` is then a perturbation of that many dB below the peak of every
    utterance.

    Args:
        path: the file or its folder; None takes ``$POPQORN_DATA`` or ``data``.
        batch_size: of training.
        validation: utterances held out of those to train on.
        speaker: tested alone and not trained on, on all takes; None tests the first five takes.
        most: samples of a wave that are kept, from its middle.
        seed: of the utterances held out.

    Raises:
        DataNotFoundError: the file is not there.
        ValueError: a speaker that is not in it, or an argument out of range.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        batch_size: int = 64,
        validation: int = 300,
        speaker: str | None = None,
        most: int = 8056,
        seed: int = 0,
    ) -> None:
        if most < 1:
            raise ValueError(f"`most` must be at least 1, got {most}.")
        waves, labels, speakers, takes = read_utterances(path)
        held = takes < _TEST_TAKES
        if speaker is not None:
            held = speakers == speaker
            if not held.any():
                known = ", ".join(sorted(set(speakers.tolist())))
                raise ValueError(f"`speaker` must be one of {known}, got {speaker!r}.")
        every = SequenceSet([_scaled(wave, most) for wave in waves], labels)
        rest, test = (torch.from_numpy(np.flatnonzero(part)) for part in (~held, held))
        train, out = hold_out(len(rest), validation, seed)
        super().__init__(
            every.some(rest[train]),
            every.some(rest[out]),
            every.some(test),
            features=1,
            classes=10,
            batch_size=batch_size,
            collate=padded,
        )


def read_utterances(
    path: str | Path | None,
) -> tuple[list[Tensor], Tensor, "np.ndarray", "np.ndarray"]:
    """The waves ``(L_s,)`` as they were recorded, their labels, speakers and takes."""
    folder = data_folder(path)
    file = folder / FILE if folder.is_dir() else folder
    if not file.is_file():
        raise not_found("Free Spoken Digit Dataset", FILE, folder)
    found = np.load(file)
    signal = torch.from_numpy(found["signal"].astype(np.float32))
    waves = list(torch.split(signal, found["lengths"].tolist()))
    labels = torch.from_numpy(found["label"].astype(np.int64))
    return waves, labels, found["speaker"], found["take"]


def _scaled(wave: Tensor, most: int) -> Tensor:
    """The middle of a wave, over its peak; silence stays."""
    first = max(0, len(wave) - most) // 2
    wave = wave[first : first + most]
    return wave / wave.abs().max().clamp(min=1e-6)
