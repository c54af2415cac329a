"""Batches that are dicts: which key holds the labels, and what the others are."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

_LABELS = ("y", "label", "labels", "target", "targets", "class", "classes", "label_ids")


def pair_of(batch: Mapping[Any, Any]) -> tuple[Any, Any]:
    """Inputs and labels of a dict of two entries, of which one has the name of labels.

    Raises:
        TypeError: anything else, with the ``unpack`` that may be meant.
    """
    labels = [key for key in batch if str(key).lower() in _LABELS]
    others = [key for key in batch if key not in labels]
    if len(labels) == 1 and len(others) == 1:
        inputs = batch[others[0]]
        if isinstance(inputs, Tensor | PackedSequence) and isinstance(batch[labels[0]], Tensor):
            return inputs, batch[labels[0]]
    keys = ", ".join(map(repr, batch))
    raise TypeError(
        f"a batch must give (inputs, target), got a {type(batch).__name__} with the keys {keys}; "
        f"say which are which, in the order of forward's arguments: {_suggestion(batch, labels)}."
    )


def _suggestion(batch: Mapping[Any, Any], labels: list[Any]) -> str:
    """An ``unpack`` for these keys, as code."""
    target = labels[0] if labels else _last_labels(batch)
    inputs = [key for key, value in batch.items() if key != target and not isinstance(value, str)]
    read = [f"batch[{key!r}]" for key in inputs] or ["batch['x']"]
    inside = read[0] if len(read) == 1 else f"({', '.join(read)})"
    return f"unpack=lambda batch: ({inside}, batch[{target!r}])"


def _last_labels(batch: Mapping[Any, Any]) -> Any:
    """The last key that may hold labels: whole numbers, one per sample."""
    found = [
        key
        for key, value in batch.items()
        if isinstance(value, Tensor) and value.ndim == 1 and not value.is_floating_point()
    ]
    return found[-1] if found else "y"
