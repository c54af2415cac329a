"""The loops are compiled once, and whatever goes wrong leaves torch, with a reason."""

import mmap
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from popqorn_train import LpBall, certify
from popqorn_train.kernels import compiler, signatures
from popqorn_train.kernels.compiler import NotCompiledError, folder_for_library
from popqorn_train.kernels.library import SWITCH, forget, kernels

ROOT = Path(__file__).resolve().parents[2]
COMPILED = kernels().file
needs_compiler = pytest.mark.skipif(kernels().library is None, reason="no compiled loops")


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """An empty cache folder, and nothing loaded before or after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(SWITCH, raising=False)
    forget()
    yield tmp_path / "cache" / "popqorn-train"
    forget()


def use_compiler(folder, script, monkeypatch):
    """A shell script is the only compiler; each call leaves a line in ``calls``."""
    file = folder / "c++"
    file.write_text(f"#!/bin/sh\necho \"$@\" >> '{folder}/calls'\nfor last; do :; done\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("CXX", str(file))
    monkeypatch.setattr(compiler, "_COMPILERS", ())
    monkeypatch.delenv("CC", raising=False)


@pytest.fixture
def copied(anew, monkeypatch, tmp_path):
    """A compiler that takes no time: it hands out the library of this machine."""
    use_compiler(tmp_path, f"sleep 0.3; cp '{COMPILED}' \"$last\"", monkeypatch)
    return anew


def test_the_switch_is_heard_at_once(monkeypatch):
    monkeypatch.setenv(SWITCH, "0")
    assert kernels().library is None
    assert SWITCH in kernels().reason


@pytest.mark.slow
@needs_compiler
def test_a_library_is_compiled_once_for_processes_that_start_together(copied):
    code = (
        "from popqorn_train.kernels.library import kernels; k = kernels(); "
        "assert k.library is not None, k.reason; print(k.file)"
    )
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    found = {run.communicate()[0].strip() for run in runs}
    assert len(found) == 1
    assert [str(file) for file in copied.iterdir()] == [*found]
    assert stat.S_IMODE(copied.stat().st_mode) == 0o700
    before = (file := Path(*found)).stat().st_mtime_ns
    assert kernels().file == file
    assert file.stat().st_mtime_ns == before


@needs_compiler
def test_a_folder_that_others_may_write_to_is_not_trusted(copied):
    copied.mkdir(parents=True)
    copied.chmod(0o777)
    assert kernels().library is not None
    assert not [*copied.iterdir()]
    assert not kernels().file.exists()


@needs_compiler
def test_without_a_folder_the_library_lives_in_a_temporary_one(copied):
    copied.parent.write_text("a file, not a folder")
    assert kernels().library is not None
    assert not kernels().file.parent.exists()


def test_without_a_compiler_torch_goes_on(anew, monkeypatch):
    monkeypatch.setenv("PATH", str(anew))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    assert kernels().library is None
    assert "no C++ compiler" in kernels().reason


def test_a_compiler_that_fails_is_asked_once_and_quoted(anew, monkeypatch, tmp_path):
    script = "echo 'kernels.cpp:3: error: what is this' >&2; exit 1"
    use_compiler(tmp_path, script, monkeypatch)
    assert kernels().library is None
    assert "error: what is this" in kernels().reason
    asked = (tmp_path / "calls").read_text()
    net = torch.nn.Sequential(torch.nn.Linear(3, 2)).double()
    certify(net, torch.rand(2, 3, dtype=torch.float64), torch.tensor([0, 1]), LpBall(0.01))
    assert kernels().library is None
    assert (tmp_path / "calls").read_text() == asked
    assert not [*anew.iterdir()]


def test_a_file_that_is_no_library_is_named(anew, monkeypatch, tmp_path):
    use_compiler(tmp_path, 'echo nonsense > "$last"', monkeypatch)
    assert kernels().library is None
    assert "kernels-" in kernels().reason


@needs_compiler
@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("box.h", "(8 * Of<V>::eps)", "(-8 * Of<V>::eps)"),
        pytest.param("rows.h", "middle - fall", "middle + fall", marks=pytest.mark.slow),
        pytest.param("rows.h", "positive * low", "positive * high", marks=pytest.mark.slow),
        pytest.param("functions.h", "1 / factorial", "1.01 / factorial", marks=pytest.mark.slow),
        pytest.param("lines.h", "low) + room", "low) - room", marks=pytest.mark.slow),
        pytest.param("lines.h", "beyond = x > right", "beyond = x > -2", marks=pytest.mark.slow),
        pytest.param("octagon_gradients.h", "top * spot.x", "top", marks=pytest.mark.slow),
        pytest.param("octagon_gradients.h", "* half * at", "* at", marks=pytest.mark.slow),
        pytest.param("polygon.h", "here > last[side]", "here < last[side]", marks=pytest.mark.slow),
        pytest.param("inputs.h", "abs(slope[r]) * h", "slope[r] * h", marks=pytest.mark.slow),
        pytest.param("forms.h", "+= errors[b", "+= 0 * errors[b", marks=pytest.mark.slow),
    ],
)
def test_a_library_that_reckons_wrong_is_not_used(anew, monkeypatch, tmp_path, file, right, wrong):
    source = tmp_path / "source"
    source.mkdir()
    for known in compiler.SOURCE.iterdir():
        text = known.read_text()
        assert known.name != file or right in text
        (source / known.name).write_text(text.replace(right, wrong) if known.name == file else text)
    monkeypatch.setattr(compiler, "SOURCE", source)
    quick = [flag.replace("-O3", "-O0") for flag in compiler._FLAGS]
    monkeypatch.setattr(compiler, "_FLAGS", quick)
    assert kernels().library is None
    assert "wrong results" in kernels().reason


@needs_compiler
def test_another_source_or_flag_or_processor_is_another_library(monkeypatch, tmp_path):
    def key():
        return compiler._key(compiler.compilers()[0])

    known = key()
    assert key() == known
    monkeypatch.setattr(compiler, "_FLAGS", (*compiler._FLAGS, "-g"))
    assert key() != known
    monkeypatch.undo()
    monkeypatch.setattr(compiler, "_processor", lambda: ["another"])
    assert key() != known
    monkeypatch.undo()
    monkeypatch.setattr(compiler, "SOURCE", tmp_path)
    assert key() != known


def test_the_named_compiler_comes_first(monkeypatch, tmp_path):
    use_compiler(tmp_path, "exit 1", monkeypatch)
    named = str(tmp_path / "c++")
    monkeypatch.setenv("CXX", f"{named} -m64")
    monkeypatch.setenv("CC", "not-there")
    assert compiler.compilers() == [[named, "-m64"]]


def test_a_command_with_an_open_quote_names_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "c++ '-O2")
    monkeypatch.setenv("CC", "")
    monkeypatch.setattr(compiler, "_COMPILERS", ())
    assert compiler.compilers() == []


def test_elsewhere_nothing_is_compiled(monkeypatch):
    """Before owners of folders are asked for, which not every system knows."""
    monkeypatch.setattr(compiler.os, "name", "nt")
    monkeypatch.delattr(compiler.os, "getuid")
    with pytest.raises(NotCompiledError, match="Linux and macOS"), folder_for_library():
        pass


_FAULTS = """
import resource, torch
from popqorn_train.kernels.library import kernels
kernels()
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**21) for _ in range(4)]
    del blocks
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_memory_is_kept_between_passes():
    pages = 4 * 2**23 // mmap.PAGESIZE
    told = {name: text for name, text in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", _FAULTS]
    out = subprocess.run(command, env=told, check=True, capture_output=True, text=True).stdout
    first, _, *later = (int(line) for line in out.split())
    assert first > pages / 2
    assert max(later) < pages / 10


def test_every_loop_is_declared():
    text = "".join(file.read_text() for file in compiler.SOURCE.iterdir())
    assert all(f"EXPORT void {name}_##suffix" in text for name in signatures.ARGUMENTS)
    assert text.count("EXPORT void") == len(signatures.ARGUMENTS)


@pytest.mark.skipif(not compiler.compilers(), reason="no compiler")
def test_where_a_compiler_is_the_loops_run(monkeypatch):
    """Else the other tests of this folder would be skipped, whatever is wrong."""
    monkeypatch.delenv(SWITCH, raising=False)
    assert kernels().library is not None, kernels().reason
