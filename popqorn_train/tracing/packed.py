"""Sequences of different lengths in one batch.

While a model is recorded and bounded, a packed sequence is the padded one with its lengths. A
recurrent layer carries its state unchanged over the frames that a sample does not have:

    h[t] = step(x[t], h[t-1])  if t < length, else h[t-1]

so those frames are never read, and h[T-1] is the last valid state. Torch's own functions do the
same without ever building the padding. What forward does to packed data row by row is done to the
padded frames; what it does across rows gives other logits than the model, and is refused.

B: batch, T: frames, F: features.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence as torch_pack
from torch.nn.utils.rnn import pad_packed_sequence as torch_pad

from popqorn_train.tracing.steps import pick_samples


class _Packed(NamedTuple):
    """What ``pack_padded_sequence`` gives while a model is recorded.

    Attributes:
        padded: ``(B, T, F)`` or ``(T, B, F)``; a node where it moves.
        lengths: ``(B,)`` valid frames of each sample.
        batch_axis: 0 or 1.
        ordered: whether the samples are sorted already, which torch does not look into then.
    """

    padded: Any
    lengths: Tensor
    batch_axis: int
    ordered: bool = False


class Packed(_Packed):
    """The same, with the fields that user's code reads of a ``PackedSequence``."""

    __slots__ = ()

    @property
    def data(self) -> Tensor:
        """The rows, as ``(B, T, F)``."""
        padded: Tensor = self.padded
        return padded.transpose(0, self.batch_axis)

    @property
    def batch_sizes(self) -> Tensor:
        """The lengths stand for them: both say which rows there are."""
        return self.lengths

    @property
    def sorted_indices(self) -> Tensor | None:
        """Nothing is sorted here; alike for all samples."""
        return None if self.ordered else torch.zeros_like(self.lengths)

    unsorted_indices = sorted_indices

    def _replace(self, **fields: Any) -> "Packed":
        if "data" in fields:
            names = ("batch_sizes", "sorted_indices", "unsorted_indices")
            return repack(**{name: getattr(self, name) for name in names} | fields)
        return super()._replace(**fields)


class Padded(NamedTuple):
    """What ``pad_packed_sequence`` gives."""

    padded: Any
    lengths: Tensor


def pack_lengths(
    input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> Packed:
    """Stands for ``pack_padded_sequence``; the order of samples does not matter here."""
    packed = Packed(input, torch.as_tensor(lengths), 0 if batch_first else 1, enforce_sorted)
    batch = input.shape[packed.batch_axis]
    if packed.lengths.shape != (batch,):
        raise ValueError(f"lengths must be ({batch},), got {tuple(packed.lengths.shape)}")
    return packed


def pad_lengths(
    sequence: Packed,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> Padded:
    """Stands for ``pad_packed_sequence``; as long as the sequence was before it was packed."""
    padded, lengths, axis = sequence.padded, sequence.lengths, sequence.batch_axis
    time = frames_left(sequence, padded.shape[1 - axis], total_length)
    padded = padded.narrow(1 - axis, 0, time)
    mask = torch.arange(time, device=padded.device)[None] < lengths.to(padded.device)[:, None]
    mask = mask.view(*mask.shape, *[1] * (padded.ndim - 2)).transpose(0, axis)
    padded = torch.where(mask, padded, torch.full_like(padded, padding_value))
    return Padded(padded.transpose(0, axis).transpose(0, 0 if batch_first else 1), lengths)


def repack(
    data: Any,
    batch_sizes: Any = None,
    sorted_indices: Any = None,
    unsorted_indices: Any = None,
) -> Packed:
    """Stands for ``PackedSequence``, of rows that were made of those of another one."""
    if not isinstance(batch_sizes, Tensor) or batch_sizes.shape != data.shape[:1]:
        raise ValueError("PackedSequence must be made with the batch_sizes of another one")
    return Packed(data, batch_sizes, 0, sorted_indices is None)


def frames_left(sequence: Packed, time: int, total_length: Any) -> int:
    """How many of its frames an unpacked sequence has.

    Raises:
        ValueError: more than there were, or fewer than a sample has.
    """
    total, longest = (
        time if total_length is None else int(total_length),
        int(sequence.lengths.max()),
    )
    if not longest <= total <= time:
        raise ValueError(
            f"total_length must lie between the {longest} frames of the longest sample and the "
            f"{time} frames there were, got {total}"
        )
    return total


REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    torch_pack: pack_lengths,
    torch_pad: pad_lengths,
}


def call(layer: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Call a layer, a recurrent one also on a packed sequence that does not move."""
    if not (args and isinstance(args[0], Packed)):
        return layer(*args, **kwargs)
    sequence, *rest = args
    first, time = sequence.batch_axis == 0, sequence.padded.shape[1 - sequence.batch_axis]
    lengths = sequence.lengths.cpu()
    packed = torch_pack(sequence.padded, lengths, first, enforce_sorted=False)
    out, state = layer(packed, *rest, **kwargs)
    padded, _ = torch_pad(out, first, total_length=time)
    return sequence._replace(padded=padded), state


def longest_first(lengths: Tensor) -> Tensor:
    """The order in which samples are packed by a model that insists on one."""
    return lengths.argsort(descending=True, stable=True)


def call_sorted(model: Callable[..., Any], values: Sequence[Any]) -> Any:
    """Call a model, the longest sample first if it insists on that (``enforce_sorted``)."""
    try:
        return model(*values)
    except RuntimeError as error:
        lengths = next((v for v in values if isinstance(v, Tensor) and v.ndim == 1), None)
        if lengths is None or "enforce_sorted" not in str(error):
            raise
    order = longest_first(lengths)
    tensors = [value for value in values if isinstance(value, Tensor)]
    axis = 0 if all(len(value) == len(order) for value in tensors) else 1
    output = model(*[pick_samples(value, order, axis) for value in values])
    return output[order.argsort()]
