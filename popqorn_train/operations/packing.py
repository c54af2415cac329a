"""How packing and unpacking act on nodes; the layers between carry the state (recurrent.py)."""

from typing import Any

import torch
from torch import Tensor

from popqorn_train.bounds.concatenation import Select, Stack, frames
from popqorn_train.bounds.constant import Constant
from popqorn_train.bounds.node import Node
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.registry import operation, unsupported
from popqorn_train.operations.shapes import affine_of, without_infinity
from popqorn_train.tracing.packed import Packed, Padded, frames_left
from popqorn_train.tracing.steps import Step


def extent(lifter: Lifter, step: Step, lengths: Tensor) -> tuple[int, int]:
    """How many frames every sample has, and how many none exceeds."""
    return lifter.choose(step, "extent", lambda: (int(lengths.min()), int(lengths.max())))


@operation("pack_lengths")
def _pack(
    lifter: Lifter,
    step: Step,
    input: Node,
    lengths: Any,
    batch_first: bool = False,
    enforce_sorted: bool = True,
) -> Packed:
    if len(input.shape) != 2 or input.batch_axis != (0 if batch_first else 1):
        raise unsupported(
            step,
            f"a packing with batch_first={batch_first} of a sequence whose batch is axis "
            f"{input.batch_axis}",
            "Pack (B, T, N) with batch_first=True, or (T, B, N) without it.",
        )
    return Packed(input, torch.as_tensor(lengths), input.batch_axis, enforce_sorted)


@operation("repack")
def _repack(
    lifter: Lifter,
    step: Step,
    data: Any,
    batch_sizes: Any,
    sorted_indices: Any = None,
    unsorted_indices: Any = None,
) -> Packed:
    return Packed(data, batch_sizes, 0, sorted_indices is None)


@operation("_replace")
def _replaced(lifter: Lifter, step: Step, x: Any, **fields: Any) -> Packed:
    if not isinstance(x, Packed) or "data" not in fields:
        raise unsupported(step, "a change of fields", "Replace the data of a packed sequence.")
    return Packed(fields["data"], x.lengths, 0, x.ordered)


def data_of(x: Packed) -> Node:
    """The rows of a packed sequence, as ``(B, T, F)``."""
    node: Node = x.padded
    if x.batch_axis == 0:
        return node
    return affine_of(lambda x: x.transpose(0, 1), (node,), {}, shape=node.shape, axis=0)


@operation("pad_lengths")
def _pad(
    lifter: Lifter,
    step: Step,
    sequence: Packed,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> Padded:
    """Frames that a sample does not have hold the padding, and do not move."""
    padded, lengths = sequence.padded, sequence.lengths.to(lifter.device)
    blank = Constant(
        torch.full(
            (lifter.batch, *padded.shape[1:]),
            without_infinity(padding_value, lifter),
            dtype=lifter.dtype,
            device=lifter.device,
        )
    )
    shortest, longest = extent(lifter, step, lengths)
    total = frames_left(sequence, padded.shape[0], total_length)
    shown: list[Node] = [
        node if t < shortest else Select(lengths > t, node, blank) if t < longest else blank
        for t, node in enumerate(frames(padded)[:total])
    ]
    return Padded(Stack(shown, 0 if batch_first else 1), sequence.lengths)
