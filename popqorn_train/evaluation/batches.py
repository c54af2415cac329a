"""Samples taken out of the batches of a loader, to be certified together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from popqorn_train.certificates.inputs import Inputs, as_tuple
from popqorn_train.evaluation.dict_batches import pair_of
from popqorn_train.tracing.packed_inputs import join_packed
from popqorn_train.tracing.steps import pick_samples

Unpack = Callable[[Any], tuple[Inputs, Tensor]]
CHUNK = 64  # samples certified at once


class Picked(NamedTuple):
    """Samples set aside until all have come.

    Attributes:
        positions: ``(S,)`` in the data set.
        inputs: what the model's forward takes.
        labels: ``(S,)``.
    """

    positions: Tensor
    inputs: tuple[Any, ...]
    labels: Tensor

    @classmethod
    def of(
        cls, positions: Tensor, inputs: Inputs, target: Tensor, chosen: Tensor, axis: int
    ) -> "Picked":
        """Copy the chosen samples of a batch whose batch axis is ``axis``."""
        chosen = chosen.to(target.device)
        values = tuple(pick_samples(value, chosen, axis) for value in as_tuple(inputs))
        return cls(positions, values, target[chosen])

    def some(self, chosen: Tensor, axis: int) -> "Picked":
        """Some of the samples, whose batch axis is ``axis``."""
        there = chosen.to(self.labels.device)
        values = tuple(pick_samples(value, there, axis) for value in self.inputs)
        return Picked(self.positions[chosen], values, self.labels[there])


def unpack_pair(batch: Any) -> tuple[Inputs, Tensor]:
    """Read a batch ``(inputs, target)``; ``unpacked`` makes pairs of dicts."""
    inputs, target = batch
    return inputs, target


def unpacked(unpack: Unpack, batch: Any) -> tuple[Inputs, Tensor]:
    """Apply ``unpack`` to a batch.

    Raises:
        TypeError: it does not give ``(inputs, target)``.
    """
    if unpack is unpack_pair and isinstance(batch, Mapping):
        batch = pair_of(batch)
    try:
        inputs, target = unpack(batch)
        labels = len(target)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        size, line = "", "(batch['x'], batch['y'])"
        if isinstance(batch, tuple | list):
            size = f" of {len(batch)}"
            read = ", ".join(f"batch[{at}]" for at in range(len(batch) - 1))
            line = f"(({read}), batch[{len(batch) - 1}])" if len(batch) > 2 else line
        raise TypeError(
            f"a batch must give (inputs, target), got a {type(batch).__name__}{size}; "
            f"say where they are, for example unpack=lambda batch: {line}."
        ) from error
    if not isinstance(target, Tensor):
        raise TypeError(
            f"the target of a batch must be a tensor of {labels} labels, got "
            f"{type(target).__name__}; make it one in `unpack`."
        )
    return tuple(inputs) if isinstance(inputs, list) else inputs, target


def on_device(inputs: Any, device: torch.device) -> Any:
    """Inputs with their tensors on a device."""
    if isinstance(inputs, tuple) and not isinstance(inputs, PackedSequence):
        return tuple(on_device(value, device) for value in inputs)
    moves: Any = inputs
    return moves.to(device) if isinstance(inputs, Tensor | PackedSequence) else inputs


def grouped(picked: list[Picked], axis: int) -> Iterator[Picked]:
    """Join samples whose inputs have one shape, in chunks that are certified at once."""
    groups: dict[Any, list[Picked]] = {}
    for item in picked:
        shape = [_shape(value, axis) for value in item.inputs]
        groups.setdefault(str(shape), []).append(item)
    for items in groups.values():
        columns = zip(*[item.inputs for item in items], strict=True)
        inputs = tuple(_joined(column, axis) for column in columns)
        positions = torch.cat([item.positions for item in items])
        whole = Picked(positions, inputs, torch.cat([item.labels for item in items]))
        for chosen in torch.split(torch.arange(len(positions)), CHUNK):
            yield whole.some(chosen, axis)


def _shape(value: Any, axis: int) -> Any:
    if isinstance(value, PackedSequence):
        return "packed", value.data.shape[1:], value.data.dtype
    if not isinstance(value, Tensor):
        return value
    at = min(axis, value.ndim - 1)
    return (*value.shape[:at], *value.shape[at + 1 :])


def _joined(column: Sequence[Any], axis: int) -> Any:
    first = column[0]
    if isinstance(first, PackedSequence):
        return join_packed(column)
    if not isinstance(first, Tensor):
        return first
    return torch.cat(list(column), min(axis, first.ndim - 1))
