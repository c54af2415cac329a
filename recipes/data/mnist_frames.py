"""MNIST digits as sequences: an image cut into frames of whole rows.

LeCun, Cortes and Burges, "The MNIST database of handwritten digits", 1998.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from popqorn_train.recipes.data.sequences import SequenceData, data_folder, hold_out, not_found

Bytes = NDArray[np.uint8]
_MOST = 2**26  # bytes of the largest file, 60000 images, and some
_WANTED = "mnist.npz (x_train, y_train, x_test, y_test) or the four IDX files (plain or .gz)"
_IDX = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


class MNISTFrames(SequenceData):
    """28 x 28 pixels in [0, 1] as ``frames`` frames of 784 / frames pixels.

    55000 images to train on, 5000 to watch, 10000 to test, unless said otherwise.

    Args:
        frames: 4, 7, 14 or 28.
        path: folder of the files, or ``mnist.npz`` itself; None takes ``$POPQORN_DATA`` or
            ``data``.
        batch_size: of training.
        validation: images held out of the 60000 for training.
        train_images: how many of the rest to train on; None takes all.
        seed: of the images held out and taken.

    Raises:
        DataNotFoundError: the files are not there.
        ValueError: an argument out of range, or files of another form.
    """

    def __init__(
        self,
        frames: int = 4,
        path: str | Path | None = None,
        *,
        batch_size: int = 256,
        validation: int = 5000,
        train_images: int | None = None,
        seed: int = 0,
    ) -> None:
        if frames not in (4, 7, 14, 28):
            raise ValueError(f"`frames` must be 4, 7, 14 or 28, got {frames}.")
        if train_images is not None and train_images < 1:
            raise ValueError(f"`train_images` must be at least 1, got {train_images}.")
        (x, y), test = (_tensors(*part, frames) for part in _load(data_folder(path)))
        train, held = hold_out(len(y), validation, seed)
        train = train[:train_images]
        super().__init__(
            TensorDataset(x[train], y[train]),
            TensorDataset(x[held], y[held]),
            TensorDataset(*test),
            features=784 // frames,
            classes=10,
            batch_size=batch_size,
        )


def _tensors(images: Bytes, labels: Bytes, frames: int) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(images.copy()).view(len(images), frames, -1).float() / 255
    return x, torch.from_numpy(labels.astype(np.int64))


def _load(place: Path) -> tuple[tuple[Bytes, Bytes], tuple[Bytes, Bytes]]:
    """Images ``(S, 28, 28)`` and labels ``(S,)`` for training and for the test."""
    archive = place / "mnist.npz" if place.is_dir() else place
    if archive.is_file():
        with archive.open("rb") as stream, np.load(stream) as stored:
            if missing := {"x_train", "y_train", "x_test", "y_test"} - set(stored.files):
                raise ValueError(f"{archive} must hold {_WANTED}, lacks {sorted(missing)}.")
            return _checked(
                (stored["x_train"], stored["y_train"]), (stored["x_test"], stored["y_test"]), place
            )
    files = [[_idx_file(place, name) for name in pair] for pair in _IDX]
    train, test = [(_read_idx(images), _read_idx(labels)) for images, labels in files]
    return _checked(train, test, place)


def _idx_file(place: Path, name: str) -> Path:
    spellings = (name, f"{name}.gz", name.replace("-idx", ".idx"))
    found = next((place / one for one in spellings if (place / one).is_file()), None)
    if found is None:
        raise not_found("MNIST", _WANTED, place)
    return found


def _read_idx(file: Path) -> Bytes:
    """An array in the IDX format: two zeros, a kind, the number of axes, their sizes, the values.

    Raises:
        ValueError: another format.
    """
    content = _unpacked(file)
    kind, axes = content[2:4] if content[:2] == b"\0\0" and len(content) >= 4 else (0, 0)
    if kind != 0x08 or axes not in (1, 3):
        raise ValueError(f"{file} must be an IDX file of bytes, got {content[:4]!r} at its start.")
    start = 4 + 4 * axes
    if len(content) < start:
        raise ValueError(f"{file} must hold the sizes of {axes} axes; is it cut off?")
    sizes = struct.unpack(f">{axes}I", content[4:start])
    values = np.frombuffer(content, np.uint8, offset=start)
    if len(values) != math.prod(sizes):
        raise ValueError(f"{file} must hold {sizes} bytes, got {len(values)}; is it cut off?")
    return values.reshape(sizes)


def _unpacked(file: Path) -> bytes:
    """What is in a file that may be packed by gzip; no more than MNIST can be."""
    with file.open("rb") as start:
        packed = start.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(file) if packed else file.open("rb") as content:
            found: bytes = content.read(_MOST + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file} cannot be unpacked: {error}") from error
    if len(found) > _MOST:
        raise ValueError(f"{file} must hold at most {_MOST:,} bytes.")
    return found


def _checked(
    train: tuple[Bytes, Bytes], test: tuple[Bytes, Bytes], place: Path
) -> tuple[tuple[Bytes, Bytes], tuple[Bytes, Bytes]]:
    for images, labels in (train, test):
        if images.shape[1:] != (28, 28) or images.dtype != np.uint8 or len(images) != len(labels):
            raise ValueError(
                f"MNIST in {str(place)!r} must be bytes (S, 28, 28) with S labels, got "
                f"{images.dtype} {images.shape} with {len(labels)}."
            )
    return train, test
