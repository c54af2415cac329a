"""Pen-written digits: a digit is eight places of the pen, in the order in which it was there.

Alpaydin and Alimoglu, "Pen-Based Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1996, CC BY 4.0. One file holds ``x_tra`` and ``x_tes``, ``(S, 8, 2)`` bytes from 0 to
100, and ``y_tra`` and ``y_tes``. Other people wrote the digits to test; who wrote which of the
others is not said, so digits that are held out are by people who are trained on.

B: batch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from torch.utils.data.dataloader import default_collate

from popqorn_train.recipes.data.sequences import SequenceData, data_folder, hold_out, not_found

FILE = "pen_digits.npz"
POINTS = 8
_NAMES = ("x_tra", "y_tra", "x_tes", "y_tes")


class PenDigits(SequenceData):
    """7494 digits to train on and 3498 to test; both coordinates of a point lie in [0, 1].

    Args:
        path: the file or its folder; None takes ``$POPQORN_DATA`` or ``data``.
        batch_size: of training.
        validation: digits held out of those to train on.
        stretch: deviation of a factor on each coordinate in training, around the middle.
        shift: deviation of a shift of each coordinate in training.
        slant: deviation of a shear in training, along the first coordinate.
        seed: of the digits held out.

    Raises:
        DataNotFoundError: the file is not there.
        ValueError: an argument out of range, or a file of another form.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        batch_size: int = 128,
        validation: int = 1000,
        stretch: float = 0.0,
        shift: float = 0.0,
        slant: float = 0.0,
        seed: int = 0,
    ) -> None:
        if min(stretch, shift, slant) < 0:
            raise ValueError(
                f"`stretch`, `shift` and `slant` must be at least 0, got {stretch}, {shift} and "
                f"{slant}."
            )
        (x, y), test = _read(data_folder(path))
        train, held = hold_out(len(y), validation, seed)
        super().__init__(
            TensorDataset(x[train], y[train]),
            TensorDataset(x[held], y[held]),
            TensorDataset(*test),
            features=2,
            classes=10,
            batch_size=batch_size,
        )
        self._changes = stretch, shift, slant
        self._collate_training = self._changed

    def _changed(self, samples: list[tuple[Tensor, Tensor]]) -> Any:
        points, labels = default_collate(samples)
        return changed(points, *self._changes), labels


def changed(points: Tensor, stretch: float, shift: float, slant: float) -> Tensor:
    """Digits ``(B, 8, 2)`` as another person might have written them, inside [0, 1].

    Drawn by the global generator; see ``PenDigits`` for the arguments.
    """
    drawn = torch.randn(5, len(points), 1).to(points)
    middle = points - 0.5
    sheared = middle[..., 0] + slant * drawn[0] * middle[..., 1]
    across = sheared * (1 + stretch * drawn[1]) + shift * drawn[2]
    up = middle[..., 1] * (1 + stretch * drawn[3]) + shift * drawn[4]
    return (torch.stack([across, up], -1) + 0.5).clamp(0, 1)


def _read(place: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Points in [0, 1] and labels, for training and for the test.

    Raises:
        DataNotFoundError: the file is not there.
        ValueError: another form.
    """
    file = place / FILE if place.is_dir() else place
    if not file.is_file():
        raise not_found("Pen-written digits", FILE, place)
    with file.open("rb") as stream, np.load(stream) as stored:
        if missing := set(_NAMES) - set(stored.files):
            raise ValueError(f"{file} must hold {', '.join(_NAMES)}, lacks {sorted(missing)}.")
        parts = [_tensors(file, *(stored[name] for name in _NAMES[at : at + 2])) for at in (0, 2)]
    return parts[0], parts[1]


def _tensors(file: Path, points: Any, labels: Any) -> tuple[Tensor, Tensor]:
    shape = points.shape
    if shape[1:] != (POINTS, 2) or labels.shape != shape[:1] or points.max() > 100:
        raise ValueError(
            f"{file} must hold points (S, {POINTS}, 2) from 0 to 100 with S labels, got {shape} "
            f"with {labels.shape}."
        )
    return torch.from_numpy(points / 100).float(), torch.from_numpy(labels.astype(np.int64))
