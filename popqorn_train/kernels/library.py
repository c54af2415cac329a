"""The compiled library, or why there is none."""

import ctypes
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from popqorn_train.kernels.check import POINTER, is_right
from popqorn_train.kernels.check_forms import forms_are_right
from popqorn_train.kernels.compiler import NotCompiledError, built, folder_for_library

SWITCH = "POPQORN_KERNELS"
_NAMES = {torch.float32: "float", torch.float64: "double"}
_WHOLE, _REAL = ctypes.c_int64, ctypes.c_double
_ARGUMENTS = {
    "planes": 5 * [_WHOLE] + 3 * [_REAL] + 2 * [POINTER],
    "strips": 2 * [_WHOLE] + 2 * [POINTER],
    "gradient": 2 * [_WHOLE] + [_REAL] + 3 * [POINTER],
    "chords": 2 * [_WHOLE] + 2 * [POINTER],
    "chords_gradient": 2 * [_WHOLE] + 3 * [POINTER],
    "function": 2 * [_WHOLE] + 2 * [POINTER],
    "absolute": 3 * [_WHOLE] + [POINTER, _WHOLE, _WHOLE, POINTER],
    "pairs": 3 * [_WHOLE] + 2 * [POINTER, _WHOLE, _WHOLE] + 4 * [POINTER],
    "substitute": 4 * [_WHOLE]
    + [POINTER, _WHOLE, POINTER, POINTER, _WHOLE, _WHOLE, POINTER, POINTER],
    "rows_gradient": 4 * [_WHOLE]
    + [POINTER, _WHOLE, POINTER, POINTER, _WHOLE, _WHOLE]
    + 4 * [POINTER],
    "range": [POINTER, _REAL, POINTER, POINTER],
    "range_gradient": 4 * [POINTER],
    "bands": 4 * [POINTER],
    "bands_gradient": 7 * [POINTER],
    "terms": 2 * [_WHOLE] + [_REAL] + 2 * [POINTER],
    "blocks": 3 * [POINTER],
    "scaled_gradient": 6 * [POINTER],
    "minimum": 3 * [_WHOLE] + [POINTER, _WHOLE, POINTER, POINTER, _WHOLE, POINTER],
}


class Kernels(NamedTuple):
    """What is known of the library.

    Attributes:
        library: None where there is none.
        file: where it was loaded from; the folder may be gone if it was for this process alone.
        reason: why there is none.
    """

    library: ctypes.CDLL | None
    file: Path | None
    reason: str


_lock = threading.Lock()
_known: Kernels | None = None


def kernels() -> Kernels:
    """The library, compiled and loaded at first use; a failure is remembered too."""
    global _known
    if os.environ.get(SWITCH) == "0":
        return Kernels(None, None, f"{SWITCH}=0 is set")
    if _known is None:
        with _lock:
            _known = _known or _load()
    return _known


def forget() -> None:
    """Look for a library anew at the next use."""
    global _known
    _known = None


def _load() -> Kernels:
    try:
        with folder_for_library() as folder:
            file = built(folder)
            library = _declared(ctypes.CDLL(str(file)))
        right = (
            check(library, suffix, dtype)
            for check in (is_right, forms_are_right)
            for dtype, suffix in _NAMES.items()
        )
        if not all(right):
            return Kernels(None, None, f"{file} gives wrong results here")
        return Kernels(library, file, "")
    except (NotCompiledError, OSError) as error:
        return Kernels(None, None, str(error))


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, arguments in _ARGUMENTS.items():
        for suffix in _NAMES.values():
            function = getattr(library, f"{name}_{suffix}")
            function.argtypes, function.restype = arguments, None
    return library


def function(name: str, *tensors: Tensor) -> Any:
    """A loop for these tensors, or None.

    Args:
        name: of the loop.
        tensors: what goes in: one dtype, on the CPU, of no subclass, and without gradient.
    """
    dtype, live = tensors[0].dtype, torch.is_grad_enabled()
    if dtype not in _NAMES:
        return None
    for x in tensors:
        plain = type(x) in (Tensor, Parameter) and x.is_cpu and x.layout is torch.strided
        if not plain or x.dtype is not dtype or (live and x.requires_grad):
            return None
    return getattr(kernels().library, f"{name}_{_NAMES[dtype]}", None)


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether a gradient through any of these will be asked for."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
