"""What docs/scale.md starts runs: each of its blocks, by processes of this machine."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from popqorn_train.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "scale.md").read_text()
MODEL = """
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.problems import build, sequences


def Net():
    return build("tanh", seed=1)


def data():
    x = sequences(12, 4)
    return DataLoader(TensorDataset(x, Net()(x).argmax(1)), 2)
"""
SMALLER = {
    "--low 0 --high 1": "--method ibp --fragile 0",
    "seq 8 ": "seq 3 ",
    "{}/8": "{}/3",
    "-P 4": "-P 2",
    "--nproc-per-node 4": "--nproc-per-node 2",
    " 2/8": " 1/1",
    "submit(100)": "submit(2, cluster='local')",
    "timeout_min=120": "timeout_min=5",
}


def block(containing, kind="sh"):
    [found] = [
        text for text in re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) if containing in text
    ]
    for full, quick in SMALLER.items():
        found = found.replace(full, quick)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model, a checkpoint and its data, and commands that find the package."""
    (tmp_path / "my_model.py").write_text(MODEL)
    from tests.problems import build

    torch.save(build("tanh", seed=1).state_dict(), tmp_path / "last.ckpt")
    tools = tmp_path / "bin"
    tools.mkdir()
    command = tools / "popqorn-train"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m popqorn_train.cli "$@"\n')
    command.chmod(0o755)
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{tools}:{scripts}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_model", None)


def run(text):
    subprocess.run(["sh", "-ec", text], check=True, timeout=600)


def check(name):
    plain = json.loads(Path("runs", name, "certification.json").read_text())
    assert plain["samples"]["index"] == list(range(12))
    assert {*plain["samples"]["status"]} == {"certified"}


def test_one_shard_and_merge(folder, monkeypatch):
    """In this process."""
    monkeypatch.syspath_prepend(folder)
    for line in block("--shard 2/8\n").splitlines():
        program, *arguments = shlex.split(line)
        assert program == "popqorn-train"
        assert main(arguments) == 0
    check("big")


@pytest.mark.slow
def test_xargs(folder):
    run(block("xargs"))
    check("xargs")


@pytest.mark.slow
def test_torchrun(folder):
    run(block("torchrun"))
    check("torchrun")


@pytest.mark.slow
def test_ray(folder):
    pytest.importorskip("ray")
    first, _ = block("--engine ray").splitlines()
    run(first.replace("--workers 4", "--workers 2"))
    check("ray")
    text = block("rows_on_ray", "python").replace("workers=4", "workers=2")
    (folder / "rows.py").write_text(text)
    run(f"{shlex.quote(sys.executable)} rows.py")


@pytest.mark.slow
def test_a_slurm_array(folder):
    """Each task of the array is started as SLURM starts it, with the variables that it sets."""
    script = block("#SBATCH --array")
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)", script).groups())
    assert (first, last) == (1, 100)
    count = 3
    for task in range(1, count + 1):
        run(f"export SLURM_ARRAY_TASK_ID={task} SLURM_ARRAY_TASK_COUNT={count}\n{script}")
    run(re.search(r'--wrap "(.*)"', block("sbatch"))[1])
    check("slurm")


@pytest.mark.slow
def test_submitit(folder):
    pytest.importorskip("submitit")
    (folder / "submit.py").write_text(block("import submitit", "python"))
    run(f"{shlex.quote(sys.executable)} submit.py")
    run("popqorn-train merge runs/submitit")
    check("submitit")
