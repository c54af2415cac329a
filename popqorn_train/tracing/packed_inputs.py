"""Arguments of forward that are packed already.

Beside other arguments, a packed sequence is three things of its own names: the padded frames
``(B, T, ...)``, their lengths ``(B,)``, and whether the samples came sorted. It is packed again
wherever forward is called, recorded or not, so a frame is a time step of its sample, and padding is
what no recurrent layer reads.

B: batch, T: frames.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

_LENGTHS, _SORTED = " lengths", " sorted"  # no argument of Python's has a space in its name


def apart(named: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, with packed sequences taken apart."""
    found: dict[str, Any] = {}
    for name, value in named.items():
        if isinstance(value, PackedSequence):
            padded, lengths = pad_packed_sequence(value, batch_first=True)
            ordered = value.sorted_indices is None
            found |= {name: padded, name + _LENGTHS: lengths, name + _SORTED: ordered}
        else:
            found[name] = value
    return found


def together(named: dict[str, Any], pack: Callable[..., Any] = pack_padded_sequence) -> list[Any]:
    """What forward takes, in order, from what ``apart`` gave.

    Args:
        named: arguments by name.
        pack: stands for ``pack_padded_sequence``.
    """
    found = []
    for name, value in named.items():
        lengths = named.get(name + _LENGTHS)
        if lengths is not None:
            value = pack(value, lengths, True, named[name + _SORTED])
        if not name.endswith((_LENGTHS, _SORTED)):
            found.append(value)
    return found


def pick_packed(value: PackedSequence, chosen: Tensor) -> PackedSequence:
    """Some samples of a packed sequence."""
    padded, lengths = pad_packed_sequence(value, batch_first=True)
    some = chosen.to(lengths.device)
    return _packed(padded[chosen.to(padded.device)], lengths[some], value.sorted_indices is None)


def join_packed(values: Sequence[PackedSequence]) -> PackedSequence:
    """The samples of several packed sequences in one."""
    longest = max(len(value.batch_sizes) for value in values)
    parts = [pad_packed_sequence(value, True, total_length=longest) for value in values]
    padded, lengths = (torch.cat(part) for part in zip(*parts, strict=True))
    return _packed(padded, lengths, all(value.sorted_indices is None for value in values))


def _packed(padded: Tensor, lengths: Tensor, ordered: bool) -> PackedSequence:
    """As it came where that is still sorted."""
    still = ordered and bool((lengths[:-1] >= lengths[1:]).all())
    padded = padded[:, : int(lengths.max())]
    return pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=still)
