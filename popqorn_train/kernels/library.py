"""The compiled library, or why there is none."""

import ctypes
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import Parameter

from popqorn_train.kernels import cuda
from popqorn_train.kernels.check import is_right
from popqorn_train.kernels.check_forms import forms_are_right
from popqorn_train.kernels.check_lines import inputs_are_right, lines_are_right
from popqorn_train.kernels.check_octagons import octagons_are_right
from popqorn_train.kernels.compiler import NotCompiledError, built, folder_for_library
from popqorn_train.kernels.signatures import ARGUMENTS, NAMES

SWITCH = "POPQORN_KERNELS"
_PLAIN = (Tensor, Parameter)
_LEARNT = 2**25 - 2**16  # bytes; glibc learns from blocks of up to 32 MiB


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
        for dtype, suffix in NAMES.items():
            own = {name: getattr(library, f"{name}_{suffix}") for name in ARGUMENTS}
            right = is_right(own, dtype, torch.device("cpu"))
            right = right and forms_are_right(own, dtype) and lines_are_right(own, dtype)
            right = right and inputs_are_right(own, dtype) and octagons_are_right(own, dtype)
            if not right:
                return Kernels(None, None, f"{file} gives wrong results here")
        _keep_freed_memory()
        return Kernels(library, file, "")
    except (NotCompiledError, OSError) as error:
        return Kernels(None, None, str(error))


def _keep_freed_memory() -> None:
    """Let malloc keep what every pass frees and takes again.

    Once a block with a mapping of its own is freed, glibc keeps others of up to its size
    (mallopt(3), M_MMAP_THRESHOLD). Else the system clears each page anew in every pass, up to a
    quarter of its time.
    """
    torch.empty(_LEARNT, dtype=torch.uint8)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, arguments in ARGUMENTS.items():
        for suffix in NAMES.values():
            function = getattr(library, f"{name}_{suffix}")
            function.argtypes, function.restype = arguments, None
    return library


def function(name: str, *tensors: Tensor) -> Any:
    """A loop for these tensors, or None.

    Args:
        name: of the loop.
        tensors: what goes in: one dtype and device, of no subclass, and without gradient.
    """
    return None if wants_gradient(*tensors) else loop_for(name, tensors)


def loop_for(name: str, tensors: Sequence[Tensor]) -> Any:
    """The same where the caller works out the gradient."""
    first = tensors[0]
    dtype, device = first.dtype, first.device
    if dtype not in NAMES:
        return None
    for x in tensors:
        if type(x) not in _PLAIN or x.dtype is not dtype or x.layout is not torch.strided:
            return None
        if x is not first and x.device != device:
            return None
    return loop(name, first)


def is_recorded(x: Tensor) -> bool:
    """Whether a tensor holds no numbers, as one of operations that are recorded to be compiled."""
    return isinstance(x, FakeTensor)


def loop(name: str, like: Tensor) -> Any:
    """A loop for what ``function`` has a loop for, or None."""
    if like.is_cpu:
        return getattr(kernels().library, f"{name}_{NAMES[like.dtype]}", None)
    found = cuda_loops(like.device).functions if like.is_cuda else None
    return None if found is None else found.get((name, NAMES[like.dtype]))


def cuda_loops(device: torch.device) -> cuda.Loops:
    """The kernels of a CUDA device, compiled and loaded at first use."""
    if os.environ.get(SWITCH) == "0":
        return cuda.Loops(None, f"{SWITCH}=0 is set")
    return cuda.loops(device)


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether a gradient through any of these will be asked for."""
    return torch.is_grad_enabled() and any([x.requires_grad for x in tensors])
