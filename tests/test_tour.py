"""The tour works as it stands: its files are written, its commands are run, with less training."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from popqorn_train.recipes.cli import main

ROOT = Path(__file__).resolve().parents[1]
TOUR = (ROOT / "docs" / "tour.md").read_text()
SMALLER = {  # what the page says, and what is enough for a test
    "max_epochs=15": "max_epochs=2",
    "samples=32": "samples=4",
    "--samples 50": "--samples 3 --fragile 1",
    "trainer = pl.Trainer(": "trainer = pl.Trainer(enable_progress_bar=False, accelerator='cpu', ",
}
# What finds the package in a checkout in which it is not installed.
START = (
    "import sys; sys.path[:0] = [{root!r}]; import popqorn_train\n"
    "popqorn_train.__path__.append({root!r})\n"
)


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", TOUR, re.DOTALL)


def commands():
    return [line for block in blocks("sh") for line in block.strip().splitlines()]


def smaller(text):
    for full, quick in SMALLER.items():
        text = text.replace(full, quick)
    return text


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A folder in which all files were written and all commands were run, and what they said."""
    folder = tmp_path_factory.mktemp("tour")
    for block in blocks("python"):
        name = re.match(r"# (\w+\.py)\n", block)[1]
        (folder / name).write_text(START.format(root=str(ROOT)) + smaller(block))
    said = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        for command in commands():
            if not command.startswith("pip "):
                program, *arguments = shlex.split(smaller(command))
                said[command] = (script if program == "python" else installed)(arguments)
    return folder, said


def script(arguments):
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def installed(arguments):
    """The command ``popqorn-train``, in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(arguments) == 0, arguments
    return said.getvalue()


def test_every_command_of_the_page_runs(walked):
    _, said = walked
    assert len(said) == 7
    [doctor] = [text for command, text in said.items() if " doctor " in command]
    assert "8 frames of 8 features" in doctor
    certified = [text for command, text in said.items() if " certify " in command]
    assert all("3 samples of" in text for text in certified)
    [compared] = [text for command, text in said.items() if " compare " in command]
    assert "standard" in compared
    assert "certified" in compared


def test_every_file_that_the_page_names_is_there(walked):
    folder, _ = walked
    for name in ("standard", "certified"):
        for file in ("report.html", "samples.csv", "samples.jsonl", "certification.json"):
            assert (folder / "runs" / name / "report" / file).stat().st_size > 100
        assert (folder / "runs" / name / "certification.jsonl").is_file()
    for picture in ("comparison.png", "epochs.png"):
        assert (folder / "runs" / picture).stat().st_size > 10_000


def test_what_a_test_shortens_is_still_on_the_page():
    assert all(full in TOUR for full in SMALLER)


def test_what_is_installed_exists_and_links_lead_somewhere():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [named] = re.findall(r'pip install "popqorn-train\[(\w+)\]"', TOUR)
    assert named in extras["optional-dependencies"]
    for link in re.findall(r"\]\(([^)#:]+)\)", TOUR):
        assert (ROOT / "docs" / link).exists(), link
