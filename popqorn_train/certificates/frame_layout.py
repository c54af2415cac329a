"""From the layout of the user's tensor to frames of features, and back.

B: batch, T: frames, N: features of a frame.
"""

from torch import Tensor


def as_frames(x: Tensor, batch_axis: int, order: Tensor | None) -> Tensor:
    """``(B, T, N)`` from the user's layout; numbers are frames of one feature."""
    x = x.movedim(batch_axis, 0)
    if order is not None:
        return x.flatten(1)[:, order]
    return x[..., None] if x.ndim == 2 else x.flatten(2)


def in_users_layout(x: Tensor, place: Tensor | None, shape: tuple[int, ...], axis: int) -> Tensor:
    """``(B, T, N)`` back to the user's layout.

    Args:
        x: frames of features.
        place: ``(T N,)`` of every entry of a sample among all frames; None for the same order.
        shape: of a sample in the user's code.
        axis: of the batch there.
    """
    x = x.flatten(1) if place is None else x.flatten(1)[:, place]
    return x.reshape(len(x), *shape).movedim(0, axis)
