"""Affine forms as loops take them: arrays, and where they lie.

B: batch, n: symbols of a block.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from popqorn_train.kernels.library import loop_for

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


def loop_of_forms(name: str, tensors: Sequence[Tensor], *forms: Operand) -> Any:
    """A loop for these forms, if there is one, and if their parts are all of one shape."""
    shape = forms[0].center.shape
    for center, own, *blocks in forms:
        if center.shape != shape or (own is not None and own.shape != shape):
            return None
        for block in blocks:
            if block is not None and block[1].shape[1:] != shape:
                return None
    return loop_for(name, tensors) if shape.numel() else None
