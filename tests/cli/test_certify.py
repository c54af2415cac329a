"""``popqorn-train certify``: rows, report, resuming, and errors in one sentence."""

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from popqorn_train import Box, certified_radius
from popqorn_train.cli import main
from popqorn_train.cli.files import read_certification
from popqorn_train.cli.notes import note
from popqorn_train.evaluation.folder import FolderLock
from popqorn_train.evaluation.fragile import examined_frames
from popqorn_train.evaluation.provenance import fingerprint
from tests import subjects
from tests.problems import predicted

ROOT = Path(__file__).resolve().parents[2]


def certify(folder, *options, model="net", data="pair", p="2"):
    chosen = ["certify", f"tests.subjects:{model}", "--data", f"tests.subjects:{data}"]
    return main([*chosen, "--p", p, "--folder", str(folder), *options])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "certify"
    assert certify(folder, "--attack", "--fragile", "2", "--classes", "cat,<b>dog</b>,c") == 0
    return folder


def test_rows_are_those_of_certified_radius(done):
    x, y = subjects.pair()
    expected = certified_radius(subjects.net(), x, y, p=2)
    rows = read_certification(done).rows
    radii = torch.tensor([row.radius for row in rows], dtype=torch.float64)
    torch.testing.assert_close(radii, expected, rtol=2e-2, atol=0)
    with (done / "samples.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["radius"]) for row in table] == radii.tolist()
    lines = [json.loads(line) for line in (done / "samples.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(12))
    assert all(row.empirical >= row.radius for row in rows)


def test_files_and_settings_say_what_was_certified(done):
    names = {path.name for path in done.iterdir()}
    assert {"report.html", "curves.svg", "radii.svg", "classes.svg", "rows.svg"} <= names
    assert not [name for name in names if name.endswith(".new")]
    found = read_certification(done)
    assert found.weights == fingerprint(subjects.net())
    assert found.settings["versions"]["torch"] == torch.__version__
    assert (found.settings["p"], found.settings["method"]) == ("2.0", "popqorn")
    frames = [json.loads(line) for line in (done / "frames.jsonl").read_text().splitlines()]
    assert [len(line["radii"]) for line in frames] == [4, 4]
    assert "&lt;b&gt;dog&lt;/b&gt;" in (done / "report.html").read_text()


def test_the_terminal_shows_summary_promise_and_files(tmp_path, capsys):
    assert certify(tmp_path / "a", "--samples", "6", "--fragile", "0", "--epsilons", "0.01") == 0
    out = capsys.readouterr().out
    for part in ("6 samples of", "clean accuracy", "0.01", "not proved for", "report.html"):
        assert part in out


def test_what_it_costs_to_certify_the_model_as_it_computes_is_told(tmp_path, capsys):
    asked = {"model": "shipped", "data": "shipped_pair"}
    options = ["--samples", "4", "--fragile", "0", "--deployed"]
    assert certify(tmp_path, *options, **asked) == 0
    pattern = (
        r"That costs about ([\d.e-]+) % of a radius, the largest share among the smallest radii"
    )
    [said] = re.findall(pattern, " ".join(capsys.readouterr().out.split()))
    assert 0 < float(said) < 0.1
    assert f"That costs about {said} % of a radius" in (tmp_path / "report.html").read_text()
    assert certify(tmp_path / "real", *options[:-1], **asked) == 0
    assert "That costs" not in capsys.readouterr().out


@pytest.mark.parametrize(("options", "looked_at"), [((), 1), (("--fragile", "3"), 3)])
def test_frames_take_a_share_of_the_time_unless_asked_for(
    tmp_path, capsys, monkeypatch, options, looked_at
):
    monkeypatch.setattr("popqorn_train.cli.fragile_samples._SHARE", 0.0)
    monkeypatch.setattr("popqorn_train.cli.fragile_samples._LEAST", 0.0)
    assert certify(tmp_path, "--method", "ibp", *options) == 0
    assert len((tmp_path / "frames.jsonl").read_text().splitlines()) == looked_at
    said = capsys.readouterr().err
    assert "most fragile samples frame by frame" in said
    assert "--fragile 0 skips it" in said
    left_out = "examined 1 of them in that time; --resume --fragile 8 examines all"
    assert (left_out in said) == (looked_at == 1)


def test_words_are_coloured_in_the_report(tmp_path):
    options = ["--words", "tests.subjects:spelled", "--method", "crown-ibp", "--fragile", "3"]
    assert certify(tmp_path, *options, model="Tokens", data="questions") == 0
    page = (tmp_path / "report.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert page.count('class="word least"') >= 1


def test_arrays_masks_domains_and_checkpoints_are_taken(tmp_path):
    net, x = subjects.other_net(), subjects.pair()[0]
    bytes_ = (255 * x.sigmoid()).round()
    x = bytes_ / 255
    np.savez(tmp_path / "d.npz", frames=bytes_.byte().numpy(), labels=predicted(net, x).numpy())
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    command = ["certify", "tests.subjects:net", "--data", str(tmp_path / "d.npz")]
    command += ["--inputs", "frames", "--target", "labels", "--divide", "255"]
    command += ["--checkpoint", str(tmp_path / "w.ckpt"), "--prefix", "net.", "--fragile", "0"]
    command += ["--low", "0", "--high", "1", "--frames", "0,2-3", "--scope", "sequence"]
    command += ["--features", "1-2"]
    command += ["--method", "crown-ibp", "--max-radius", "0.5", "--folder", str(tmp_path / "a")]
    assert main(command) == 0
    found = read_certification(tmp_path / "a")
    expected = certified_radius(
        net,
        x,
        predicted(net, x),
        low=0.0,
        high=1.0,
        frames=torch.tensor([True, False, True, True]),
        features=torch.tensor([False, True, True]),
        scope="sequence",
        method="crown-ibp",
        max_radius=0.5,
    )
    torch.testing.assert_close(found.radii, expected, rtol=2e-2, atol=0)
    assert found.settings["frames"] == [True, False, True, True]
    assert found.settings["features"] == [False, True, True]
    assert found.weights == fingerprint(net)


def test_shares_of_a_box_are_searched_and_called_so(tmp_path, capsys):
    x, y = subjects.pair()
    folder = tmp_path / "box"
    np.save(tmp_path / "lower.npy", np.array([-5, -6, -5]))
    box = ["--box", str(tmp_path / "lower.npy"), "5", "--method", "crown-ibp", "--attack"]
    box += ["--features", "0,2"]
    assert certify(folder, *box, "--fragile", "2", "--epsilons", "0.01,1", p="inf") == 0
    options = {
        "box": Box([-5.0, -6.0, -5.0], 5.0, features=[True, False, True]),
        "method": "crown-ibp",
    }
    expected = certified_radius(subjects.net(), x, y, **options)
    found = read_certification(folder)
    torch.testing.assert_close(found.radii, expected, rtol=2e-2, atol=0)
    out, report = capsys.readouterr().out, (folder / "report.html").read_text()
    for text in (out, report):
        assert "shares of the way from each input of" in text
        assert "median share" in text
        assert "no input within that share of the box" in " ".join(text.split())
    assert "Accuracy against share of the box" in report
    said = re.sub("<svg.*?</svg>|largest radius|max radius", "", report, flags=re.DOTALL)
    assert "radius" not in said.split('id="settings"')[0].split("</style>")[1]
    picture = ["--names", "a,b", "--picture", str(tmp_path / "picture.png")]
    assert main(["compare", str(folder), str(folder), *picture]) == 0
    assert "median share" in capsys.readouterr().out
    ball = certify(tmp_path / "ball", "--fragile", "0", "--method", "ibp")
    assert ball == 0
    assert main(["compare", str(folder), str(tmp_path / "ball")]) == 1
    assert "box is" in capsys.readouterr().err


def test_levels_are_searched_by_the_peak_of_every_sample_and_printed_in_decibels(tmp_path, capsys):
    x, y = subjects.pair()
    folder = tmp_path / "levels"
    options = ["--db", "-20", "-70", "--method", "crown-ibp", "--attack", "--fragile", "2"]
    assert certify(folder, *options, p="inf") == 0
    found = read_certification(folder)
    radius = certified_radius(subjects.net(), x, y, method="crown-ibp")
    share = (radius / x.abs().amax((1, 2))).clamp(max=1)
    torch.testing.assert_close(found.radii, share, rtol=2e-2, atol=0)
    assert (found.settings["box"], found.measure.name) == ("peak", "level")
    out, report = capsys.readouterr().out, (folder / "report.html").read_text()
    for text in (out, report):
        assert "shares of the peak of each input of" in text
        assert "0.1 (-20.0 dB)" in text
        assert "0.000316228 (-70.0 dB)" in text
        assert re.search(r"median level\D*[\d.]+ \(-\d+\.\d dB\)|dB\)</b><span>median level", text)
    assert re.search(r"level [\d.]+ \(-\d+\.\d dB\)", report.split('id="fragile"')[1])
    assert "no input within that share of its peak" in " ".join(out.split())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--box", "0", "1"], "box"),
        (["--low", "0"], "low"),
        (["--epsilons", "0.1"], "epsilons"),
        (["--scope", "sequence"], "scope"),
    ],
)
def test_levels_say_everything_about_what_moves(tmp_path, capsys, options, named):
    assert certify(tmp_path / "a", "--db", "-20", *options, p="inf") == 1
    assert f"leave out `--{named}`" in capsys.readouterr().err


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    command = [sys.executable, "-m", "popqorn_train.cli", "certify", "tests.subjects:net"]
    command += ["--data", "tests.cli.test_certify:slow", "--batch-size", "1", "--fragile", "0"]
    command += ["--folder", str(tmp_path / "run")]
    rows = tmp_path / "run" / "samples.jsonl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as run:
        for _ in range(1200):
            if rows.exists() and len(rows.read_text().splitlines()) >= 2:
                break
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    kept = rows.read_text().splitlines()
    assert 2 <= len(kept) < 12
    options = ["--batch-size", "1", "--fragile", "0", "--resume"]
    assert certify(tmp_path / "run", *options, data="pair", p="inf") == 1  # other data
    slow.pause = 0.0
    done = ["certify", "tests.subjects:net", "--data", "tests.cli.test_certify:slow"]
    assert main([*done, "--folder", str(tmp_path / "run"), *options]) == 0
    again = rows.read_text().splitlines()
    assert len(again) == 12
    whole = [line for line in kept if line.endswith("}")]
    assert again[: len(whole)] == whole  # not certified anew


def slow():
    """One sample a batch, slowly enough to be killed in between."""
    x, y = subjects.pair()

    class Slow:
        def __iter__(self):
            for one, two in zip(x.split(1), y.split(1), strict=True):
                time.sleep(slow.pause)
                yield one, two

    return Slow()


slow.pause = 0.1


def test_time_that_runs_out_leaves_samples_not_attempted(tmp_path, capsys):
    assert certify(tmp_path / "a", "--seconds", "1e-9", "--fragile", "0") == 0
    assert "12 not attempted" in capsys.readouterr().out
    assert certify(tmp_path / "a", "--resume", "--fragile", "0") == 0
    assert "0 not attempted" in capsys.readouterr().out


def test_without_matplotlib_everything_but_the_pictures_is_there(tmp_path, capsys, monkeypatch):
    def missing(*_, **__):
        raise ImportError("Figures need matplotlib")

    monkeypatch.setattr("popqorn_train.cli.run.report_figures", missing)
    assert certify(tmp_path, "--samples", "4", "--fragile", "1") == 0
    assert "no pictures. Figures need matplotlib" in capsys.readouterr().err
    assert "Pictures need matplotlib" in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob("*.svg"))


def test_a_full_disk_names_the_folder_and_leaves_no_half_written_report(
    tmp_path, capsys, monkeypatch
):
    def full(file):
        if file.name.endswith("report.html.new"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("popqorn_train.evaluation.folder.flushed", full)
    assert certify(tmp_path / "a", "--samples", "4", "--fragile", "0") == 1
    said = capsys.readouterr().err
    assert f"no space is left on the disk of {tmp_path / 'a'}" in said
    assert "--resume" in said
    assert not list((tmp_path / "a").glob("report*"))
    monkeypatch.undo()
    assert certify(tmp_path / "a", "--samples", "4", "--fragile", "0", "--resume") == 0
    assert (tmp_path / "a" / "report.html").is_file()


def test_two_runs_do_not_write_into_one_folder(tmp_path, capsys):
    lock = FolderLock(tmp_path / "a")
    assert certify(tmp_path / "a", "--samples", "4") == 1
    assert "is in use by another run" in capsys.readouterr().err
    lock.release()
    assert certify(tmp_path / "a", "--samples", "4", "--fragile", "0") == 0


def test_random_weights_are_said_to_be_those_of_the_class(tmp_path, capsys):
    assert certify(tmp_path / "a", "--samples", "2", "--fragile", "0", "--method", "ibp") == 0
    assert "no --checkpoint: certifying the weights that" in capsys.readouterr().err


def test_a_summary_fits_80_columns(tmp_path, capsys):
    options = ["--samples", "4", "--attack", "--fragile", "0", "--method", "ibp"]
    assert certify(Path(os.path.relpath(tmp_path)), *options) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


REFUSED = {
    "too few classes": (["--classes", "a,b"], {}, "must name the 3 classes of the model, got 2"),
    "no model": (["--samples", "2"], {"model": "none"}, "`model` must be module:Name"),
    "no data": ([], {"data": "none"}, "`--data` must be module:Name"),
    "data fails": ([], {"data": "broken"}, "KeyError: 'no such file'"),
    "no batch": ([], {"data": "empty"}, "at least one batch, got none: its data set is empty"),
    "shuffled": ([], {"data": "shuffled"}, "got one that shuffles"),
    "no checkpoint": (["--checkpoint", "none.pt"], {}, "`--checkpoint` must be a file"),
    "prefix alone": (["--prefix", "net."], {}, "`--prefix` needs --checkpoint"),
    "frames": (["--frames", "2-9"], {}, "`--frames` must be frames from 0 to 3"),
    "box": (["--box", "0", "1"], {"p": "2"}, "`box` describes the perturbation: leave out p"),
    "ends of a box": (["--box", "1", "0"], {"p": "inf"}, "`lower` must not exceed `upper`"),
    "features": (["--features", "3"], {}, "`--features` must be features from 0 to 2"),
    "method": (["--method", "guess"], {}, "`method` must be one of"),
    "rtol": (["--rtol", "2"], {}, "`rtol` must be"),
    "words": (["--words", "none.txt"], {}, "`--words` must be a file"),
    "outside": (["--low", "5"], {}, "`low`"),
    "image": (["--image", "5,5", "--samples", "3"], {}, "`--image` must cut"),
}


@pytest.mark.parametrize(("options", "named", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_certified_is_refused_in_one_sentence(
    tmp_path, capsys, options, named, message
):
    assert certify(tmp_path / "a", *options, **named) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("a/samples.jsonl")) or "shuffles" in message


@pytest.mark.parametrize(
    "options",
    [
        *(["--p", "0.5"], ["--samples", "0"], ["--epsilons", "2,1"], ["--image", "3"]),
        *(["--scope", "x"], ["--db", "6"], ["--db"]),
    ],
)
def test_a_command_that_cannot_be_read_has_status_2(tmp_path, capsys, options):
    with pytest.raises(SystemExit) as caught:
        certify(tmp_path, *options)
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_an_interrupt_ends_the_look_at_frames_and_the_report_is_still_written(
    tmp_path, capsys, monkeypatch
):
    real, calls = examined_frames, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr("popqorn_train.cli.fragile_samples.examined_frames", stopped)
    assert certify(tmp_path / "a", "--fragile", "3", "--method", "ibp") == 0
    said = capsys.readouterr().err
    assert "Ctrl-C stops this" in said
    assert "examined 1 of them before it was stopped; --resume --fragile 3 examines all" in said
    assert (tmp_path / "a" / "report.html").read_text().count("<h3>Sample") == 1
    assert certify(tmp_path / "a", "--fragile", "3", "--method", "ibp", "--resume") == 0
    assert (tmp_path / "a" / "report.html").read_text().count("<h3>Sample") == 3
    assert len(calls) == 4  # the first one was kept


def test_what_is_said_on_a_terminal_is_folded_between_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    note("one word after another that do not fit on a line of a terminal\n- and a list")
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) < 40
    assert lines[-1] == "- and a list"
    assert " ".join(lines).startswith("note: one word after another that do not fit on a line")


def test_a_run_that_is_stopped_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("popqorn_train.cli.run.certify_loader", stopped)
    assert certify(tmp_path) == 130
    assert "continue with --resume" in capsys.readouterr().err
