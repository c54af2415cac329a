"""Arguments of perturbations: checked, cut to some samples, and put around an input.

B: batch, T: frames, N: features of a frame.
"""

from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_INFINITE = ("inf", "+inf", "-inf", "infinity", "-infinity")


def check_mask(name: str, mask: Any, axis: str) -> None:
    """Refuse what is no mask ``(axis,)`` or ``(B, axis)`` that moves something in every sample.

    Raises:
        TypeError: no tensor.
        ValueError: of another kind or shape, or one that moves nothing.
    """
    if mask is None:
        return
    shapes = f"({axis},) or (B, {axis})"
    if not isinstance(mask, Tensor):
        kind = type(mask).__name__
        raise TypeError(f"`{name}` must be a boolean tensor, {shapes}, got {kind}.")
    if mask.dtype != torch.bool or mask.ndim not in (1, 2):
        found = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise ValueError(f"`{name}` must be a boolean {shapes} mask, got {found}.")
    if not mask.any(-1).all():
        one = name.removesuffix("s")
        raise ValueError(
            f"`{name}` marks nothing in at least one sample; mark a {one}, "
            "or leave that sample out."
        )


def placed_mask(name: str, mask: Tensor, batch: int, size: int, device: torch.device) -> Tensor:
    """A mask ``(size,)`` or ``(B, size)`` for every sample, ``(B, size)``.

    Raises:
        ValueError: of another shape.
    """
    if mask.shape not in ((size,), (batch, size)):
        shape = tuple(mask.shape)
        raise ValueError(f"`{name}` must be ({size},) or ({batch}, {size}), got {shape}.")
    return mask.to(device).expand(batch, size)


def placed_masks(
    frames: Tensor | None, features: Tensor | None, center: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The frames that move, ``(B, T)``, and the features that do, ``(B, 1, N)`` if not all.

    Raises:
        ValueError: masks of other shapes.
    """
    batch, time, width = center.shape
    moved = torch.ones(batch, time, dtype=torch.bool, device=center.device)
    if frames is not None:
        moved = placed_mask("frames", frames, batch, time, center.device)
    if features is None:
        return moved, None
    return moved, placed_mask("features", features, batch, width, center.device)[:, None]


def cut(value: Any, chosen: Tensor, batch: int, samples_at: int) -> Any:
    """The part of some samples; ``samples_at`` axes mean that the first one is the batch."""
    whole = isinstance(value, Tensor) and value.ndim >= samples_at and len(value) == batch
    return value[chosen.to(value.device)] if whole else value


def edge_of_frames(edge: float | Tensor | None) -> bool:
    """Whether an end of the domain differs from frame to frame, or between features."""
    return isinstance(edge, Tensor) and any(size > 1 for size in edge.shape[-2:])


def check_order(edges: dict[str, Tensor]) -> None:
    """Refuse a lower end above the upper one."""
    (low, lower), (high, upper) = edges.items()
    try:
        ordered = bool((lower <= upper).all())
    except RuntimeError as error:
        shapes = [tuple(edge.shape) for edge in edges.values()]
        raise ValueError(f"`{low}` and `{high}` must fit together, got {shapes}.") from error
    if not ordered:
        raise ValueError(
            f"`{low}` must not exceed `{high}`, got {low}={shown(lower)} and {high}={shown(upper)}."
        )


def as_numbers(name: str, value: Any) -> float | Tensor:
    """An argument as a float or a tensor: arrays and lists become float64, "inf" a number.

    Raises:
        TypeError: not real numbers.
    """
    if type(value) in (int, float):
        return value
    if isinstance(value, Tensor):
        kind: Any = value.dtype
        if not value.is_complex() and value.dtype != torch.bool:
            return value
    else:
        kind = type(value).__name__
        if isinstance(value, str) and value.strip().lower() in _INFINITE:
            return float(value)
        array = _array_of(value)
        if array is not None and array.dtype.kind in "iuf":
            found = array.astype(np.float64)  # a copy: what the caller writes later is not seen
            return float(found) if found.ndim == 0 else torch.from_numpy(found)
    raise TypeError(
        f"`{name}` must be a float, or a tensor, array or list of real numbers, got {kind}."
    )


def _array_of(value: Any) -> NDArray[Any] | None:
    """A number, an array or a list, also of tensors, as an array; None for anything else."""
    if isinstance(value, list | tuple):
        value = [part.tolist() if isinstance(part, Tensor) else part for part in value]
    elif not isinstance(value, Real) and not hasattr(value, "__array__"):
        return None
    try:
        return np.asarray(value)
    except ValueError:  # rows of different lengths
        return None


def numbers(name: str, value: Any) -> Tensor:
    """An argument as a float64 tensor.

    Raises:
        TypeError: not real numbers.
    """
    return torch.as_tensor(as_numbers(name, value), dtype=torch.float64)


def as_norm(p: Any) -> float:
    """The p of a norm, also as ``"inf"`` and as a number of numpy or torch.

    Raises:
        ValueError: not a number from 1 on.
    """
    try:
        found = as_numbers("p", p)
    except TypeError:
        found = torch.empty(0)
    if isinstance(found, Tensor):
        found = found.item() if found.ndim == 0 else -1.0
    if not found >= 1:
        raise ValueError(f"`p` must be a number from 1 to math.inf, got {p!r}.")
    return found


def room(name: str, center: Tensor, edge: float | Tensor, bounded: Tensor | None = None) -> Tensor:
    """How far every input can move towards an edge of the domain.

    An input on its edge may lie beyond it by the rounding of its own precision.

    Args:
        name: of the edge.
        center: ``(B, T, N)`` inputs.
        edge: of the domain.
        bounded: inputs that the edge bounds, broadcastable to ``(B, T, N)``; the others may lie
            anywhere and have no end of room. None means all.

    Raises:
        ValueError: an edge that does not fit, or an input beyond it that it bounds.
    """
    bound = torch.as_tensor(edge, dtype=center.dtype, device=center.device)
    try:
        bound.expand_as(center)
    except RuntimeError as error:
        raise ValueError(
            f"`{name}` must be a float or fit {tuple(center.shape)}, got {tuple(bound.shape)}."
        ) from error
    room = center - bound if name.startswith("low") else bound - center
    room = room if bounded is None else torch.where(bounded, room, torch.inf)
    if room.amin() >= 0:
        return room
    if (room + 1e-6 * (1 + bound.abs()) < 0).any():
        ends = "[low, high]" if name in ("low", "high") else "[lower, upper]"
        raise ValueError(
            f"`inputs` must lie inside {ends}; with {name}={shown(bound)} the input "
            f"is outside by up to {-room.min().item():.3g}. Scale the inputs, or widen "
            f"`{name}`."
        )
    return room.clamp(min=0)


def shown(edge: Tensor) -> str:
    """An end of the domain, for a message."""
    alike = bool((edge == edge.flatten()[0]).all())
    return f"{edge.flatten()[0].item():g}" if alike else f"a tensor of shape {tuple(edge.shape)}"
