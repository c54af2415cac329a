"""The loops as CUDA kernels, compiled by NVRTC, which comes with torch.

The source is that of the processor's: what is proved and measured of one holds for the other. A
kernel is called as the loop of the same name, with addresses on its device, and waits for what its
stream has to do before.
"""

import ctypes
import hashlib
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from popqorn_train.kernels.check import is_right
from popqorn_train.kernels.compiler import SOURCE, NotCompiledError, folder_for_library
from popqorn_train.kernels.signatures import ARGUMENTS, NAMES, POINTER

_THREADS, WARP, MOST = 128, 32, 16  # of a block; of a row; addresses of an array
_TILE = 32  # rows of a warp
_OPTIONS = ("--std=c++17", "--device-as-default-execution-space")
_WHOLE_NUMBERS = b"""typedef signed int int32_t;
typedef signed long long int64_t;
"""
_Work = Callable[[Sequence[Any]], int]


def _units(arguments: Sequence[Any]) -> int:
    """One thread for each of n units."""
    return int(arguments[0])


def _rows(arguments: Sequence[Any]) -> int:
    batch, rows = arguments[:2]
    return WARP * int(batch) * int(rows)


def _tiles(arguments: Sequence[Any]) -> int:
    batch, rows = arguments[:2]
    return WARP * int(batch) * -(-int(rows) // _TILE)


def _slopes(arguments: Sequence[Any]) -> int:
    batch, rows, n = arguments[:3]
    return int(batch) * int(rows) * int(n)


def _sides(arguments: Sequence[Any]) -> int:
    (batch, rows, n), (sample, row) = arguments[:3], arguments[8:10]
    return (int(batch) if sample else 1) * (int(rows) if row else 1) * int(n)


# The kernels of a loop, and how many threads they take.
KERNELS: dict[str, tuple[tuple[str, _Work], ...]] = {
    "planes": (("planes", _units),),
    "strips": (("strips", _units),),
    "gradient": (("gradient", _units),),
    "function": (("function", lambda arguments: int(arguments[1])),),
    "substitute": (("substitute", _tiles),),
    "rows_gradient": (("slopes_gradient", _slopes), ("sides_gradient", _sides)),
    "slopes_gradient": (("slopes_gradient", _slopes),),
    "minimum": (("minimum", _rows),),
}


class Loops(NamedTuple):
    """What is known of the kernels of one device.

    Attributes:
        functions: loop and name of the dtype to what runs it; None where there are none.
        reason: why there are none.
    """

    functions: dict[tuple[str, str], Any] | None
    reason: str


_lock = threading.Lock()
_known: dict[int, Loops] = {}


def loops(device: torch.device) -> Loops:
    """The kernels of a CUDA device, compiled and loaded at first use; a failure is remembered."""
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _known:
        with _lock:
            if index not in _known:
                _known[index] = _load(index)
    return _known[index]


def _load(index: int) -> Loops:
    try:
        with torch.cuda.device(index):
            torch.cuda.current_stream().synchronize()  # makes the context
            driver, module = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
            _checked(driver.cuModuleLoadData(ctypes.byref(module), _binary(index)), "loading")
            found = {
                (name, suffix): _Loop(driver, module, name, suffix, index)
                for name in KERNELS
                for suffix in NAMES.values()
            }
    except (NotCompiledError, OSError, AttributeError) as error:
        return Loops(None, str(error))
    for dtype, suffix in NAMES.items():
        own = {name: found[name, suffix] for name in KERNELS}
        if not is_right(own, dtype, torch.device("cuda", index)):
            return Loops(None, "they give wrong results here")
    return Loops(found, "")


class _Loop:
    """Runs the kernels of one loop on the current stream.

    Arguments have 8 bytes each, or are a list of addresses, and go to a kernel as one string.
    """

    def __init__(self, driver: Any, module: Any, name: str, suffix: str, index: int) -> None:
        self._driver, self._index, self._context = driver, index, ctypes.c_void_p()
        _checked(driver.cuCtxGetCurrent(ctypes.byref(self._context)), name)
        self._kinds: list[Any] = ARGUMENTS[name]
        self._kernels: list[tuple[Any, _Work]] = []
        for kernel, work in KERNELS[name]:
            handle, called = ctypes.c_void_p(), f"{kernel}_{suffix}".encode()
            _checked(driver.cuModuleGetFunction(ctypes.byref(handle), module, called), name)
            self._kernels.append((handle, work))

    def __call__(self, *arguments: Any) -> None:
        text = packed(self._kinds, arguments)
        buffer, size = ctypes.create_string_buffer(text), ctypes.c_size_t(len(text))
        # Marked as in cuda.h: a buffer (1), its size (2), the end (0).
        extra = (POINTER * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(size), 0)
        with torch.cuda.device(self._index):
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            # A thread of autograd has none until torch needs one.
            _checked(self._driver.cuCtxSetCurrent(self._context), "reaching")
            for handle, work in self._kernels:
                blocks = -(-work(arguments) // _THREADS)
                if blocks:
                    sizes = (blocks, 1, 1, _THREADS, 1, 1, 0)
                    done = self._driver.cuLaunchKernel(handle, *sizes, stream, None, extra)
                    _checked(done, "launching")


def packed(kinds: Sequence[Any], arguments: Sequence[Any]) -> bytes:
    """Arguments as a kernel reads them, one after another."""
    letters, numbers = "=", []
    for kind, argument in zip(kinds, arguments, strict=True):
        if isinstance(argument, ctypes.Array):
            letters += f"{MOST}Q"
            numbers += [address or 0 for address in argument] + [0] * (MOST - len(argument))
        else:
            letters += "d" if kind is ctypes.c_double else "q"
            numbers.append(argument)
    return struct.pack(letters, *numbers)


def _checked(status: int, doing: str) -> None:
    if status:
        raise OSError(f"CUDA answered {status} to {doing} the kernels")


def _binary(index: int) -> bytes:
    """Machine code for a device, from the cache if it is there.

    Raises:
        NotCompiledError: there is no NVRTC, or it fails.
    """
    nvrtc, version = _nvrtc(), (ctypes.c_int * 2)()
    nvrtc.nvrtcVersion(ctypes.byref(version, 0), ctypes.byref(version, 4))
    target = "--gpu-architecture=sm_{}{}".format(*torch.cuda.get_device_capability(index))
    sources = {file.name: file.read_bytes() for file in sorted(SOURCE.iterdir())}
    digest = hashlib.sha256("\0".join([target, *_OPTIONS, *map(str, version)]).encode())
    for text in sources.values():
        digest.update(text)
    with folder_for_library() as folder:
        file = folder / f"kernels-{digest.hexdigest()[:20]}.cubin"
        if not file.is_file():
            _kept(_compiled(nvrtc, sources, [target, *_OPTIONS]), file)
        return file.read_bytes()


def _kept(binary: bytes, file: Path) -> None:
    """Written beside and renamed, so that several processes find whole files."""
    made = file.with_suffix(f".{threading.get_native_id()}")
    made.write_bytes(binary)
    made.replace(file)


def _nvrtc() -> Any:
    major = (torch.version.cuda or "").split(".")[0]
    name = f"libnvrtc.so.{major}"
    beside = Path(torch.__file__).parents[1].glob(f"nvidia/*/lib/{name}")
    for path in (name, *map(str, beside)):
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise NotCompiledError(f"{name} is not found")


def _compiled(nvrtc: Any, sources: dict[str, bytes], options: Sequence[str]) -> bytes:
    headers = {name: text for name, text in sources.items() if name.endswith(".h")}
    headers["stdint.h"] = _WHOLE_NUMBERS  # NVRTC knows no folder of headers
    names, texts = _strings(name.encode() for name in headers), _strings(headers.values())
    program, count = ctypes.c_void_p(), len(headers)
    source = sources["kernels.cu"]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", count, texts, names)
    flags = _strings(option.encode() for option in options)
    if nvrtc.nvrtcCompileProgram(program, len(flags), flags):
        raise NotCompiledError(f"NVRTC failed: {_text_of(nvrtc, program, 'ProgramLog')[:500]!r}")
    return _text_of(nvrtc, program, "CUBIN")


def _strings(parts: Any) -> Any:
    every = list(parts)
    return (ctypes.c_char_p * len(every))(*every)


def _text_of(nvrtc: Any, program: Any, kind: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{kind}")(program, text)
    return text.raw
