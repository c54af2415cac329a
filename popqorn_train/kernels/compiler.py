"""Compile the loops once a machine, into the cache folder of the user.

A library is named by a hash of the sources, the flags, the compiler and the processor, since it
holds instructions of the one that compiles. It is written beside its place and renamed, so that
processes that start together all find a whole file.

No flag changes what NaN and infinity mean: ``-ffast-math`` is out of the question. The vectorised
functions of a C library would need it; sigmoid, tanh and the logarithm are our own (functions.h).
"""

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent / "source"
_FLAGS = (
    "-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd",
    "-fno-exceptions", "-fno-rtti", "-shared", "-fPIC", "-fvisibility=hidden", "-w", "-Wno-psabi",
)  # fmt: skip
_COMPILERS = ("c++", "g++", "clang++", "cc", "gcc", "clang")
_SECONDS = 300


class NotCompiledError(Exception):
    """Why there is no library."""


def compilers() -> list[list[str]]:
    """Commands of the compilers here: those of ``$CXX`` and ``$CC`` first."""
    named = [_words(os.environ.get(name, "")) for name in ("CXX", "CC")]
    known = [command for command in (*named, *([name] for name in _COMPILERS)) if command]
    return [[path, *rest] for first, *rest in known if (path := shutil.which(first))]


def _words(command: str) -> list[str]:
    """A command as a shell reads it; none where a quote is not closed."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def cache_folder() -> Path:
    """Where libraries are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "popqorn-train"


@contextlib.contextmanager
def folder_for_library() -> Iterator[Path]:
    """The cache folder; one for this process alone where nobody else's must be trusted.

    Raises:
        NotCompiledError: a system without owners and modes of files.
    """
    if os.name != "posix":
        raise NotCompiledError("they are compiled on Linux and macOS only")
    with contextlib.ExitStack() as stack:
        try:
            folder = cache_folder()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.stat()
            others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            usable = found.st_uid == os.getuid() and not others and os.access(folder, os.W_OK)
        except (OSError, RuntimeError):  # no home
            usable = False
        if not usable:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="popqorn-train-")))
        yield folder


def built(folder: Path) -> Path:
    """The library in a folder, compiled if it is not there.

    Raises:
        NotCompiledError: no compiler, or none that can.
    """
    reason = "there is no C++ compiler ($CXX, $CC, " + ", ".join(_COMPILERS) + ")"
    for command in compilers():
        library = folder / f"kernels-{_key(command)}.so"
        if library.is_file():
            return library
        for native in ("-march=native", "-mcpu=native"):
            failure = _compile([*command, *_FLAGS, native], library)
            if not failure:
                return library
            reason = f"{command[0]} failed: {failure}"
    raise NotCompiledError(reason)


def _key(command: list[str]) -> str:
    """What a library depends on, in 20 letters."""
    compiler = Path(command[0]).resolve()
    known = [*command, *_FLAGS, str(compiler), str(compiler.stat().st_mtime_ns), *_processor()]
    digest = hashlib.sha256("\0".join(known).encode())
    for file in sorted(SOURCE.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:20]


def _processor() -> list[str]:
    """What tells processors with other instructions apart."""
    known = [platform.system(), platform.machine(), platform.processor()]
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").split("\n") if info.is_file() else []
    wanted = ("model name", "flags", "Features", "CPU part")
    return known + sorted({line for line in lines if line.startswith(wanted)})


def _compile(command: list[str], library: Path) -> str:
    """Compile; what went wrong, or nothing."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        call = [*command, str(SOURCE / "kernels.cpp"), "-o", str(made)]
        try:
            done = subprocess.run(call, capture_output=True, errors="replace", timeout=_SECONDS)
            if done.returncode == 0:
                made.replace(library)
                return ""
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
    lines = [line.strip() for line in done.stderr.splitlines()]
    errors = [line for line in lines if "error" in line] or lines
    return errors[0] if errors else f"exit status {done.returncode}"
