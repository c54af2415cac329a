"""Masks of frames and of features, as tensors or as configurations hold them."""

from collections.abc import Sequence

import torch
from torch import Tensor

Mask = Tensor | Sequence[bool]


def as_mask(name: str, mask: Mask | None) -> Tensor | None:
    """A mask as a tensor; a list of booleans is one for all samples.

    Raises:
        TypeError: neither a tensor nor a list of booleans.
    """
    if mask is None or isinstance(mask, Tensor):
        return mask
    listed = isinstance(mask, Sequence) and not isinstance(mask, str)
    if not listed or not all(isinstance(value, bool) for value in mask):
        raise TypeError(
            f"`{name}` must be a boolean tensor or a list of booleans, got {mask!r}; write for "
            "example [true, true, false]."
        )
    return torch.tensor(list(mask), dtype=torch.bool)
