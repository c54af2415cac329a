"""The data set that a command names: a loader from a function, or arrays from an ``.npz`` file."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from popqorn_train.evaluation.batches import unpack_pair, unpacked
from popqorn_train.evaluation.resolve import resolved
from popqorn_train.evaluation.stored import check_unpacked


class Source(NamedTuple):
    """Where samples come from.

    Attributes:
        name: ``module:name`` of a function, object or Lightning data module, or the path of an
            ``.npz`` file.
        inputs: arrays of the file that are the inputs.
        target: array of the file that holds the labels.
        divide: what the inputs of the file are divided by, as floats; None leaves them.
        dtype: of the floats of the file.
        batch_size: where the loader is made here.
        samples: how many are read of a stream, which may have no end; None takes all.
    """

    name: str
    inputs: tuple[str, ...] = ("x",)
    target: str = "y"
    divide: float | None = None
    dtype: torch.dtype = torch.float32
    batch_size: int = 32
    samples: int | None = None


def opened(source: Source) -> Iterable[Any]:
    """Batches ``(inputs, target)``, the same every time they are read.

    Raises:
        ValueError: nothing of that name, or nothing that gives samples.
        OSError: the file cannot be read.
    """
    if source.name.endswith(".npz"):
        return _batched(*_arrays(source), source.batch_size)
    found = _called(resolved(source.name, "--data"), source)
    if hasattr(found, "test_dataloader"):
        found = _test_loader(found)
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Tensor):
        inputs = found[0] if isinstance(found[0], tuple) else (found[0],)
        return _batched(inputs, found[1], source.batch_size)
    if isinstance(found, Dataset):
        found = DataLoader(found, source.batch_size)
    if isinstance(found, Iterator) or isinstance(getattr(found, "dataset", None), IterableDataset):
        return _kept(found, source)
    if not isinstance(found, Iterable):
        raise ValueError(
            f"`--data` {source.name} must give a loader or (inputs, target), got "
            f"{type(found).__name__}."
        )
    return found


def _kept(stream: Iterable[Any], source: Source) -> list[Any]:
    """Batches of what may give others when it is read again."""
    if getattr(stream, "num_workers", 0) > 1:
        raise ValueError(
            f"`--data` {source.name} reads an IterableDataset with several workers, which may give "
            "samples twice and in any order. Use num_workers=0 or 1."
        )
    kept, left = [], math.inf if source.samples is None else source.samples
    for batch in stream:
        kept.append(batch)
        left -= len(unpacked(unpack_pair, batch)[1])
        if left <= 0:
            break
    return kept


def _called(found: Any, source: Source) -> Any:
    """What a function or a class gives; the user's own error in one sentence."""
    gives = hasattr(found, "__iter__") or isinstance(found, Dataset)
    if not callable(found) or (gives and not isinstance(found, type)):
        return found
    try:
        return found()
    except Exception as error:
        raise ValueError(
            f"`--data` {source.name}() failed: {type(error).__name__}: {error}"
        ) from error


def _test_loader(module: Any) -> Any:
    """The test loader of a Lightning data module."""
    module.prepare_data()
    module.setup("test")
    return module.test_dataloader()


def _arrays(source: Source) -> tuple[tuple[Tensor, ...], Tensor]:
    path = Path(source.name)
    if not path.is_file():
        raise FileNotFoundError(f"`--data` must be a file, got {path}.")
    check_unpacked(path, packed=True)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            held = {name: file[name] for name in (*source.inputs, source.target) if name in file}
            known = ", ".join(file.files)
    except Exception as error:  # objects, or no .npz: one that is damaged fails in many ways
        raise ValueError(f"`--data` {path} cannot be read as arrays: {error}") from error
    for option, names in (("--inputs", source.inputs), ("--target", (source.target,))):
        for name in names:
            if name not in held:
                raise ValueError(f"`{option}` names {name!r}, but {path} holds {known}.")
    try:
        inputs = tuple(_tensor(held[name], source) for name in source.inputs)
        return inputs, torch.from_numpy(held[source.target]).long()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`--data` {path} must hold arrays of numbers: {error}") from error


def _tensor(array: np.ndarray[Any, Any], source: Source) -> Tensor:
    """Whole numbers stay what they are, tokens or lengths, unless they are divided."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if source.divide is not None and tensor.ndim > 1:
        return tensor.to(source.dtype) / source.divide
    return tensor.to(source.dtype if tensor.is_floating_point() else torch.int64)


def _batched(inputs: tuple[Any, ...], target: Tensor, batch_size: int) -> Iterable[Any]:
    lengths = {len(value) for value in (*inputs, target)}
    if len(lengths) != 1 or target.ndim != 1:
        shapes = ", ".join(str(tuple(value.shape)) for value in (*inputs, target))
        raise ValueError(f"`--data` must hold as many inputs as labels, got shapes {shapes}.")
    single = len(inputs) == 1
    collate = None if single else _nested
    return DataLoader(TensorDataset(*inputs, target), batch_size, collate_fn=collate)


def _nested(samples: list[tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Several inputs as one tuple, as ``forward`` takes them."""
    *inputs, target = (torch.stack(column) for column in zip(*samples, strict=True))
    return tuple(inputs), target
