"""Masks of frames and of features, as tensors or as configurations hold them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Mask = Tensor | Sequence[bool] | NDArray[np.bool_]


def as_mask(name: str, mask: Any) -> Tensor | None:
    """A mask as a tensor, from a tensor, an array, or a list: one for all samples, or one each.

    Raises:
        TypeError: none of them, or not of booleans.
    """
    if mask is None or isinstance(mask, Tensor):
        return mask
    if isinstance(mask, np.ndarray) or (isinstance(mask, Sequence) and not isinstance(mask, str)):
        try:
            array = np.array(mask)
        except ValueError:  # rows of different lengths
            array = np.empty(0)
        if array.dtype == np.bool_:
            return torch.from_numpy(array)
    raise TypeError(
        f"`{name}` must be a boolean tensor or array, or a list of booleans, got {mask!r}; write "
        "for example [true, true, false]."
    )
