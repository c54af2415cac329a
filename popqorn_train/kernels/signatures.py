"""What the loops take, by name.

A pointer is an address of numbers, or of a list of such addresses, see ``pointers``.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

POINTER = ctypes.c_void_p
NAMES = {torch.float32: "float", torch.float64: "double"}
WHOLE, REAL = ctypes.c_int64, ctypes.c_double
ARGUMENTS: dict[str, list[Any]] = {
    "planes": 5 * [WHOLE] + 3 * [REAL] + 2 * [POINTER],
    "strips": 2 * [WHOLE] + 2 * [POINTER],
    "gradient": 2 * [WHOLE] + [REAL] + 3 * [POINTER],
    "octagon_gradient": 3 * [WHOLE] + [REAL] + 4 * [POINTER],
    "chords": 2 * [WHOLE] + 2 * [POINTER],
    "chords_gradient": 2 * [WHOLE] + 3 * [POINTER],
    "closest": 4 * [WHOLE] + 3 * [POINTER],
    "closest_gradient": 4 * [WHOLE] + 4 * [POINTER],
    "function": 2 * [WHOLE] + 2 * [POINTER],
    "absolute": 3 * [WHOLE] + [POINTER, WHOLE, WHOLE, POINTER],
    "pairs": 3 * [WHOLE] + 2 * [POINTER, WHOLE, WHOLE] + 4 * [POINTER],
    "substitute": 4 * [WHOLE] + [POINTER, WHOLE, POINTER, POINTER, WHOLE, WHOLE, POINTER, POINTER],
    "rows_gradient": 4 * [WHOLE] + [POINTER, WHOLE, POINTER, POINTER, WHOLE, WHOLE] + 4 * [POINTER],
    "slopes_gradient": 4 * [WHOLE]
    + [POINTER, WHOLE, POINTER, POINTER, WHOLE, WHOLE]
    + 4 * [POINTER],
    "range": [POINTER, REAL, POINTER, POINTER],
    "range_gradient": 5 * [POINTER],
    "bands": 4 * [POINTER],
    "bands_gradient": 7 * [POINTER],
    "terms": 2 * [WHOLE] + [REAL] + 2 * [POINTER],
    "blocks": 3 * [POINTER],
    "scaled_gradient": 6 * [POINTER],
    "minimum": 3 * [WHOLE] + [POINTER, WHOLE, POINTER, POINTER, WHOLE, POINTER],
    "carry": 6 * [WHOLE] + [POINTER, WHOLE] + 4 * [POINTER] + [WHOLE] + 2 * [POINTER],
    "least_gradient": 3 * [WHOLE] + [POINTER, WHOLE, POINTER, POINTER, WHOLE, POINTER, POINTER],
}


def pointers(*tensors: Tensor | None) -> Any:
    """Addresses of the first numbers, null for None; the tensors must outlive the call."""
    return (POINTER * len(tensors))(*[None if x is None else x.data_ptr() for x in tensors])
