"""Affine forms as loops take them: arrays, and where they lie.

B: batch, n: symbols of a block.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.kernels.library import function

Coefficients = tuple[int, Tensor] | None  # the first symbol, and ``(n, B, *shape)``


class Operand(NamedTuple):
    """A form as numbers.

    Attributes:
        center: ``(B, *shape)``.
        own: likewise, not negative; None for 0.
        inputs: coefficients on the input.
        noise: coefficients of errors.
    """

    center: Tensor
    own: Tensor | None
    inputs: Coefficients
    noise: Coefficients

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Center, error, and both coefficients."""
        blocks = (self.inputs, self.noise)
        return self.center, self.own, *[block and block[1] for block in blocks]


def rows(data: Tensor) -> Tensor:
    """``(n, B, units)`` with neighbouring units."""
    data = data.flatten(2) if data.ndim > 2 else data.reshape(*data.shape, 1)
    return data if data.stride(2) == 1 else data.contiguous()


def layout(start: int, data: Tensor | None) -> tuple[int, ...]:
    """Where rows of coefficients lie."""
    return (0, 0, 0, 0) if data is None else (start, data.shape[0], *data.stride()[:2])


def contiguous(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """All that are there, without gaps."""
    return [None if x is None else x.contiguous() for x in tensors]


def known(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Those that are there."""
    return [x for x in tensors if x is not None]


def whole_numbers(*numbers: int) -> Any:
    """An array of them."""
    return (ctypes.c_int64 * len(numbers))(*numbers)


def real_numbers(*numbers: float) -> Any:
    """An array of them."""
    return (ctypes.c_double * len(numbers))(*numbers)


def fits(name: str, tensors: Sequence[Tensor], *forms: Operand) -> bool:
    """Whether there is a loop for these forms, whose parts are all of one shape."""
    shape = forms[0].center.shape
    for form in forms:
        center, own, *blocks = form.tensors()
        same = all(x is None or x.shape == shape for x in (center, own))
        if not same or any(x is not None and x.shape[1:] != shape for x in blocks):
            return False
    with torch.no_grad():
        return shape.numel() > 0 and function(name, *tensors) is not None
