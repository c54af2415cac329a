"""What a certificate is about: which weights, which data, which versions."""

import hashlib
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, unpack_sequence


def fingerprint(module: nn.Module) -> str:
    """Hash of all weights and buffers, the same on every device: what a certificate is about."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            _add(digest, name, value)
    return digest.hexdigest()[:16]


def data_fingerprint(
    batches: Iterable[tuple[tuple[Any, ...], Tensor]], samples: float, axis: int
) -> str:
    """Hash of the first samples and their labels, whatever the size of the batches.

    Args:
        batches: inputs and labels.
        samples: how many count.
        axis: the batch axis of the inputs.
    """
    digest, seen = DataDigest(axis), 0
    for inputs, target in batches:
        digest.add(inputs, target, samples - seen)
        seen += len(target)
        if seen >= samples:
            break
    return digest.text()


class DataDigest:
    """Hash of samples and their labels, whatever the size of the batches.

    Args:
        axis: the batch axis of the inputs.
    """

    def __init__(self, axis: int) -> None:
        self._axis, self._digest = axis, hashlib.sha256()

    def add(self, inputs: tuple[Any, ...], target: Tensor, most: float) -> None:
        """Take in the first so many samples of a batch."""
        values = [found for value in inputs if (found := _samples(value, self._axis)) is not None]
        for at in range(int(min(len(target), most))):
            for value in (*values, target):
                _add(self._digest, "", value[at])

    def text(self) -> str:
        """Of everything so far."""
        return str(self._digest.hexdigest()[:16])


def _samples(value: Any, axis: int) -> Any:
    """An input sample by sample; None for what is no tensor."""
    if isinstance(value, PackedSequence):
        return unpack_sequence(value)
    return value.movedim(min(axis, value.ndim - 1), 0) if isinstance(value, Tensor) else None


def _add(digest: Any, name: str, value: Tensor) -> None:
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    flat = value.detach().cpu().contiguous().flatten()
    digest.update(flat.view(torch.uint8).numpy().tobytes())


def versions(*names: str) -> dict[str, str]:
    """Installed versions by name of the distribution, and that of Python."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
