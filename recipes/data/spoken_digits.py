"""Spoken digits: the Free Spoken Digit Dataset as raw waves at 8 kHz, six speakers.

Z. Jackson et al., "Free Spoken Digit Dataset", CC BY-SA 4.0. One file holds all waves in a row:
``signal`` int16, ``lengths``, ``label``, ``speaker`` and ``take``, one of each an utterance.
The first five takes of every digit and speaker are the test set, as in Ryou et al., "Scalable
Polyhedral Verification of Recurrent Neural Networks", CAV 2021.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torch.utils.data import DataLoader

from popqorn_train.recipes.data.sequences import (
    Loader,
    SequenceData,
    SequenceSet,
    SimilarLengths,
    data_folder,
    hold_out,
    not_found,
    padded,
)

FILE = "spoken_digits.npz"
_TEST_TAKES = 5
_RATE = 8000  # samples a second
_BLOCK = 256
_PADDED = 800  # to whole multiples of which batches are padded in training


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
        speed: share by which an utterance may be slower or faster in training.
        cut: samples that either end may lose in training.
        tilt: share of the sample before that may be added to, or taken off, each one in training,
            as other microphones and rooms do.
        colour: deviation, in dB, of each of three smooth waves over the mel scale by which the
            spectrum of an utterance is amplified at random in training, as other voices are.
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
        speed: float = 0.0,
        cut: int = 0,
        tilt: float = 0.0,
        colour: float = 0.0,
        seed: int = 0,
    ) -> None:
        if most < 1:
            raise ValueError(f"`most` must be at least 1, got {most}.")
        if min(cut, colour) < 0 or not 0 <= speed < 1 or not 0 <= tilt < 1:
            raise ValueError(
                "`cut` and `colour` must be at least 0, `speed` and `tilt` lie in [0, 1), got "
                f"{cut}, {colour}, {speed} and {tilt}."
            )
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
        self._changes = cut, speed, tilt, colour
        self._collate_training = self._changed

    def train_dataloader(self) -> Loader:
        """Shuffled, with utterances of similar lengths in a batch."""
        assert isinstance(self.train, SequenceSet)
        lengths = [len(wave) for wave in self.train.sequences]
        order = SimilarLengths(lengths, self.batch_size)
        return DataLoader(
            self.train, self.batch_size, sampler=order, collate_fn=self._collate_training
        )

    def _changed(self, samples: list[tuple[Tensor, Tensor]]) -> Any:
        samples = [(changed(wave, *self._changes), label) for wave, label in samples]
        (waves, lengths), labels = padded(samples)
        # A loss traces the network once for each number of frames.
        return (pad(waves, (0, -waves.shape[1] % _PADDED)), lengths), labels


def changed(wave: Tensor, cut: int, speed: float, tilt: float, colour: float = 0.0) -> Tensor:
    """An utterance ``(L,)`` as another take of the same speaker might be, over its own peak.

    Drawn by the global generator; see ``SpokenDigits`` for the arguments. One of up to
    ``6 cut`` samples is not cut.
    """
    if len(wave) > 6 * cut:
        start, stop = torch.randint(cut + 1, (2,)).tolist()
        wave = wave[start : len(wave) - stop]
    if tilt:
        share = tilt * (2 * torch.rand(()).item() - 1)
        wave = wave + share * pad(wave[:-1], (1, 0))
    if colour:
        wave = _coloured(wave, colour * torch.randn(3))
    if speed:
        size = round(len(wave) * (1 + speed * (2 * torch.rand(()).item() - 1)))
        wave = interpolate(wave[None, None], size, mode="linear", align_corners=True)[0, 0]
    return _over_peak(wave)


def _coloured(wave: Tensor, decibels: Tensor) -> Tensor:
    """A wave whose spectrum is amplified by so much of each of three waves over the mel scale."""
    size = _BLOCK * math.ceil(len(wave) / _BLOCK)  # of other sizes transforms take long
    gain = torch.exp(math.log(10) / 20 * decibels @ _over_mel(size))
    return torch.fft.irfft(torch.fft.rfft(wave, size) * gain, size)[: len(wave)]


@cache
def _over_mel(size: int) -> Tensor:
    """A slope and both waves of one period over the mel scale, ``(3, size // 2 + 1)``."""
    hertz = torch.linspace(0, _RATE / 2, size // 2 + 1)
    place = 2 * torch.log1p(hertz / 700) / math.log1p(_RATE / 1400) - 1
    return torch.stack([place, (math.pi * place).cos(), (math.pi * place).sin()])


def read_utterances(
    path: str | Path | None,
) -> tuple[list[Tensor], Tensor, "np.ndarray", "np.ndarray"]:
    """The waves ``(L_s,)`` as they were recorded, their labels, speakers and takes."""
    folder = data_folder(path)
    file = folder / FILE if folder.is_dir() else folder
    if not file.is_file():
        raise not_found("Free Spoken Digit Dataset", FILE, folder)
    with file.open("rb") as stream, np.load(stream) as found:
        signal = torch.from_numpy(found["signal"].astype(np.float32))
        waves = list(torch.split(signal, found["lengths"].tolist()))
        labels = torch.from_numpy(found["label"].astype(np.int64))
        return waves, labels, found["speaker"], found["take"]


def _scaled(wave: Tensor, most: int) -> Tensor:
    """The middle of a wave, over its peak; silence stays."""
    first = max(0, len(wave) - most) // 2
    return _over_peak(wave[first : first + most])


def _over_peak(wave: Tensor) -> Tensor:
    return wave / wave.abs().max().clamp(min=1e-6)
