"""The notebooks of examples/ run from top to bottom, and show again what they showed when kept."""

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SECONDS = 120  # of one CPU, as the notebooks promise
LARGEST = 300_000  # bytes
READS = {"a_spoken_digit": "spoken_digits.npz"}  # notebooks on files that are not on PyPI
# What finds the package in a checkout in which it is not installed.
START = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}]
import popqorn_train; popqorn_train.__path__.append({str(ROOT)!r})
"""


def cells(path, kind="code"):
    found = json.loads(path.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def printed(cell):
    """Kinds of what a cell shows."""
    return sorted(
        name for out in cell["outputs"] for name in out.get("data", {out.get("name", "?"): ""})
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_from_top_to_bottom_before_it_was_kept(path):
    assert [cell["execution_count"] for cell in cells(path)] == [*range(1, len(cells(path)) + 1)]
    assert not [out for cell in cells(path) for out in cell["outputs"] if "ename" in out]
    assert path.stat().st_size < LARGEST


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_no_folder_of_a_machine(path):
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text())
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_explained_and_linked(path):
    assert cells(path, "markdown")[0]["source"][0].startswith("# ")
    assert f"examples/{path.name}" in (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sockets of Jupyter
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    import nbclient
    import nbformat
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    folder = ROOT / os.environ.get("POPQORN_DATA", "../shared/data")
    if path.stem in READS and not (folder / READS[path.stem]).is_file():
        pytest.skip(f"no {READS[path.stem]} in {folder}; set POPQORN_DATA to its folder")
    monkeypatch.setenv("POPQORN_DATA", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    book = nbformat.read(path, 4)
    book.cells.insert(0, nbformat.v4.new_code_cell(START))
    manager = AsyncKernelManager()
    manager._kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    )
    used, began = os.times(), time.monotonic()
    client = nbclient.NotebookClient(
        book, km=manager, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    spent = os.times().children_user - used.children_user
    assert spent < SECONDS, f"{time.monotonic() - began:.0f} s, {spent:.0f} s of a CPU"
    ran = [cell for cell in book.cells if cell.cell_type == "code"][1:]
    for kept, now in zip(cells(path), ran, strict=True):
        assert printed(kept) == printed(now)
