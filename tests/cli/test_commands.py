"""The command line: what the doctor prints, and the table of what can be bounded."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import popqorn_train
from popqorn_train.cli import main
from popqorn_train.kernels.library import kernels
from popqorn_train.operations.registry import MODULES, OPERATIONS, SPECTRA
from popqorn_train.operations.tables import supported, supported_table
from tests.zoo import BinarySigmoid

ROOT = Path(__file__).resolve().parents[2]


def test_the_doctor_shows_the_graph_what_moves_and_the_cost(capsys):
    assert main(["doctor", "tests.zoo:SpeechGRU", "--input", "2,5,3"]) == 0
    out = capsys.readouterr().out
    assert "Conv1d" in out
    assert "zoo.py, line" in out
    assert "'x', 5 frames of 3 features" in out
    assert "frames: axis 1 as passed" in out
    assert "3 classes" in out
    assert "by popqorn" in out


def test_the_doctor_describes_the_machine_without_a_model(capsys, monkeypatch):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    assert "cpu (" in out
    known = kernels()
    assert (str(known.file) if known.library is not None else known.reason) in out
    monkeypatch.setenv("POPQORN_KERNELS", "0")
    assert main(["doctor"]) == 0
    assert "torch does their work: POPQORN_KERNELS=0 is set" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["tests.zoo:SpeechGRU"], ["--input", "2,5,3"]])
def test_the_doctor_needs_a_model_and_its_input(given, capsys):
    assert main(["doctor", *given]) == 2
    assert "--input 1,7,112" in capsys.readouterr().err


def test_the_doctor_takes_tokens_and_lengths_and_knows_a_single_logit(capsys):
    inputs = ["--input", "2,6:long:20", "--input", "2:long:6"]
    assert main(["doctor", "tests.zoo:SentimentPacked", *inputs, "--method", "ibp"]) == 0
    out = capsys.readouterr().out
    assert "one logit" in out
    assert "'embedding', 6 frames of 6 features" in out
    assert "by ibp" in out


def test_the_doctor_says_where_frames_are_not_known_and_takes_their_axis(capsys):
    asked = ["doctor", "tests.certificates.test_frame_axis:normed_image", "--input", "2,1,4,3"]
    asked += ["--method", "ibp"]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert "'x', 12 numbers" in out
    assert "4 axes" in out
    assert main([*asked, "--frame-axis", "2"]) == 0
    out = capsys.readouterr().out
    assert "'x', 4 frames of 3 features" in out
    assert "frames: axis 2 as passed" in out
    assert main([*asked, "--frame-axis", "0"]) == 1
    assert "`frame_axis`" in capsys.readouterr().err


def test_a_slip_in_a_command_is_answered_with_what_was_meant(capsys):
    assert main(["certfy", "m:Net"], {"fit": "train"}) == 2
    said = capsys.readouterr().err
    assert "Did you mean certify? Commands: fit, certify" in said


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith(f"popqorn-train {popqorn_train.__version__}, torch ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_sentence(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["certify", "tests.subjects:net", "--data", "a", "--device", "cuda"])
    said = capsys.readouterr().err
    assert "argument --device: cuda is not available here" in said
    assert len(said.splitlines()) == 1


BLOCKED = {
    "control flow": (
        "tests.tracing.test_trace:Branches",
        "2,4,3",
        r"return self.last(x if x.sum() > 0",
    ),
    "no bound": ("tests.tracing.test_trace:Multiplied", "2,4,3", "'cumprod'"),
    "wrong sizes": ("tests.zoo:GRUCellLoop", "2,4,7", "`inputs`"),
    "no sizes": ("tests.zoo:GRUCellLoop", "two", "`--input`"),
    "no kind": ("tests.zoo:GRUCellLoop", "2,4,3:words", "`--input`"),
    "no module": ("tests.nowhere:Net", "2,4,3", "`model`"),
    "no name": ("tests.zoo", "2,4,3", "`model`"),
    "no model": ("tests.zoo:lengths", "2,4,3", "`model` must be an nn.Module, got Tensor"),
    "arguments": ("tests.zoo:FrontEnd", "2,4,3", "needs arguments"),
}


@pytest.mark.parametrize(("name", "sizes", "message"), BLOCKED.values(), ids=BLOCKED)
def test_the_doctor_says_what_blocks(capsys, name, sizes, message):
    assert main(["doctor", name, "--input", sizes]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow  # test_layout.py imports all modules without it, tests/recipes all commands
def test_the_command_starts_without_lightning():
    code = (
        "import sys; from popqorn_train.cli import main; main(['supported']);"
        "assert not {'pytorch_lightning', 'lightning', 'wandb'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == supported_table()


def test_the_page_of_what_is_supported_is_the_table_of_the_code():
    page = (ROOT / "docs" / "supported.md").read_text()
    assert supported_table() in page


def test_the_table_holds_all_that_is_registered_and_nothing_else():
    modules = [name for one, _ in supported().values() for name in one]
    operations = [name for _, two in supported().values() for name in two]
    assert sorted(modules) == sorted(f"nn.{kind.__name__}" for kind in MODULES)
    assert len(operations) == len(set(operations)) == len(OPERATIONS | SPECTRA)
    assert all(hasattr(nn, name.removeprefix("nn.")) for name in modules)
    places = torch, torch.Tensor, nn.functional, nn.utils.rnn, import_module("operator")
    places += (nn.utils.rnn.PackedSequence,)
    known = {"getattr", "truediv", "linalg.norm", "linalg.vector_norm"}
    for name in operations:
        spelled = {name, f"__{name}__"}
        assert any(hasattr(at, word) for at in places for word in spelled) or name in known, name


class Squared(BinarySigmoid):
    """A number that need not be a probability."""

    def forward(self, x):
        return super().forward(x) ** 2


def test_the_doctor_is_told_what_one_number_is(capsys):
    asked = ["doctor", "tests.cli.test_commands:Squared", "--input", "2,3,3", "--method", "ibp"]
    assert main(asked) == 1
    assert "output_is" in capsys.readouterr().err
    assert main([*asked, "--output-is", "probability"]) == 0
    assert "one probability, class 1 above 0.5" in capsys.readouterr().out
