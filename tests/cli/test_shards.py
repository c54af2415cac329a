"""``certify --shard`` and ``merge``: the parts of a data set, joined, are one run."""

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

from popqorn_train.cli import main
from popqorn_train.evaluation.folder import FolderLock
from popqorn_train.evaluation.stored import with_checksum
from tests import subjects

ROOT = Path(__file__).resolve().parents[2]
FAST = ("--method", "ibp", "--batch-size", "2")


def certify(folder, *options, model="net", data="pair"):
    chosen = ["certify", f"tests.subjects:{model}", "--data", f"tests.subjects:{data}"]
    return main([*chosen, *FAST, "--folder", str(folder), *options])


def certify_all(folder, *options, count=3, **named):
    for number in range(1, count + 1):
        assert certify(folder, "--shard", f"{number}/{count}", *options, **named) == 0


def results(folder):
    """What one run and joined parts must agree in; seconds and commands differ."""
    plain = json.loads((folder / "certification.json").read_text())
    del plain["seconds"], plain["crc32"], plain["settings"]["command"]
    names = ("samples.csv", "samples.jsonl", "settings.json", "frames.jsonl", "radii.svg")
    return plain, [(folder / name).read_text() for name in names]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("data", ["pair", "loader", "generator"])
@pytest.mark.parametrize("count", [2, 4, 9])
def test_joined_parts_are_one_run(tmp_path, capsys, data, count):
    """More parts than batches too: some are empty."""
    report = ("--fragile", "2", "--classes", "a,b,c", "--samples", "11")
    assert certify(tmp_path / "one", *report, data=data) == 0
    certify_all(tmp_path / "parts", *report, count=count, data=data)
    assert "popqorn-train merge" in capsys.readouterr().out
    assert main(["merge", str(tmp_path / "parts")]) == 0
    assert results(tmp_path / "parts") == results(tmp_path / "one")
    assert "11 samples of" in capsys.readouterr().out
    pages = [(tmp_path / name / "report.html").read_text() for name in ("one", "parts")]
    assert len({len(re.findall("<figure", page)) for page in pages}) == 1
    assert main(["merge", str(tmp_path / "parts"), "--fragile", "0"]) == 0  # and again


def test_parts_of_a_box_are_one_run_and_of_that_box(tmp_path, capsys):
    ends = tmp_path / "lower.npy"
    np.save(ends, np.array([-5, -6, -5]))
    box = ("--box", str(ends), "5", "--features", "0,2", "--fragile", "2")
    assert certify(tmp_path / "one", *box) == 0
    certify_all(tmp_path / "parts", *box, count=2)
    np.save(ends, np.array([-5, -7, -5]))
    assert main(["merge", str(tmp_path / "parts")]) == 1
    assert "something else than their command names now: box was" in capsys.readouterr().err
    assert certify(tmp_path / "parts", "--shard", "2/2", "--resume", *box) == 1
    assert "box" in capsys.readouterr().err
    np.save(ends, np.array([-5, -6, -5]))
    assert main(["merge", str(tmp_path / "parts")]) == 0
    assert "median share" in capsys.readouterr().out
    assert results(tmp_path / "parts") == results(tmp_path / "one")


def test_what_is_looked_at_in_joined_parts_can_be_made_up_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("popqorn_train.cli.fragile_samples._SHARE", 0.0)
    monkeypatch.setattr("popqorn_train.cli.fragile_samples._LEAST", 0.0)
    certify_all(tmp_path)
    assert main(["merge", str(tmp_path)]) == 0
    assert "of them in that time; --fragile 8 examines all" in capsys.readouterr().err
    assert main(["merge", str(tmp_path), "--fragile", "8"]) == 0
    assert (tmp_path / "report.html").read_text().count("<h3>Sample") == 8


def test_what_was_not_attempted_is_a_row_and_can_be_made_up_for(tmp_path, capsys):
    certify_all(tmp_path, "--fragile", "0", "--seconds", "1e-9")
    assert main(["merge", str(tmp_path)]) == 0
    assert "12 not attempted" in capsys.readouterr().out
    certify_all(tmp_path, "--fragile", "0", "--resume")
    assert main(["merge", str(tmp_path)]) == 0
    assert "0 not attempted" in capsys.readouterr().out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "whole"
    certify_all(folder, "--fragile", "0")
    return folder


def changed(path, **values):
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | values))


def lacks_one(folder):
    (folder / "shard-2-of-3").rename(folder.parent / f"{folder.name}-2")


def lacks_all(folder):
    for path in folder.iterdir():
        path.rename(folder.parent / f"{folder.name}-{path.name}")


def is_unfinished(folder):
    (folder / "shard-3-of-3" / "part.json").unlink()


def has_two_counts(folder):
    assert certify(folder, "--shard", "1/2") == 0


def is_doubled(folder):
    copy = folder / "shard-4-of-3"
    copy.mkdir()
    for path in (folder / "shard-1-of-3").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())


def overlaps(folder):
    rows = (folder / "shard-1-of-3" / "samples.jsonl").read_text()
    with (folder / "shard-2-of-3" / "samples.jsonl").open("a") as file:
        file.write(rows)


def has_a_hole(folder):
    path = folder / "shard-2-of-3" / "samples.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def has_a_changed_row(folder):
    path = folder / "shard-2-of-3" / "samples.jsonl"
    path.write_text(path.read_text().replace('"label": ', '"label": 1', 1))


def has_a_changed_end(folder):
    changed(folder / "shard-2-of-3" / "part.json", seconds=-1)


def has_another_end(folder):
    end = json.dumps(with_checksum({"shard": 2}))
    (folder / "shard-2-of-3" / "part.json").write_text(end)


def has_an_unchecked_end(folder):
    path = folder / "shard-2-of-3" / "part.json"
    path.write_text(path.read_text().replace("crc32", "crc33"))


def has_other_weights(folder):
    changed(folder / "shard-2-of-3" / "settings.json", weights="abc")


def has_other_weights_now(folder):
    for number in (1, 2, 3):
        changed(folder / f"shard-{number}-of-3" / "settings.json", weights="abc")


def has_other_data(folder):
    changed(folder / "shard-2-of-3" / "settings.json", own_samples="abc")


REFUSED = {
    lacks_one: "lacks shard 2 of 3: certify with --shard 2/3",
    lacks_all: "holds no shards",
    is_unfinished: "holds shard 3 of 3 unfinished: continue with --shard 3/3 --resume",
    has_two_counts: "holds shards of 2 and of 3",
    is_doubled: "holds shard 1/3 twice",
    overlaps: "shards 1/3 and 2/3 both hold sample 0",
    has_a_hole: "shard 2/3 holds 3 samples, not the 4",
    has_a_changed_row: "is damaged in line 1: continue with --shard 2/3 --resume",
    has_a_changed_end: "part.json is damaged",
    has_an_unchecked_end: "part.json is damaged",
    has_another_end: "was not written by certify --shard",
    has_other_weights: "shards 1/3 and 2/3 were not certified alike: weights was",
    has_other_weights_now: "something else than their command names now: weights was 'abc'",
    has_other_data: "shard 2/3 read other samples than tests.subjects:pair gives now",
}


@pytest.mark.parametrize(
    ("spoil", "message"), REFUSED.items(), ids=lambda v: getattr(v, "__name__", "")
)
def test_parts_that_do_not_fit_are_refused_in_one_sentence(whole, tmp_path, capsys, spoil, message):
    folder = tmp_path / "copy"
    for path in whole.rglob("*.json*"):
        copy = folder / path.relative_to(whole)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    spoil(folder)
    assert main(["merge", str(folder)]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.strip().splitlines()[-1].startswith("popqorn-train merge: ")
    assert not (folder / "samples.jsonl").exists()


@pytest.mark.parametrize("shard", ["0/3", "4/3", "2", "a/b", "1/0", "-1/3"])
def test_a_shard_that_is_none_is_refused(tmp_path, capsys, shard):
    assert certify(tmp_path, f"--shard={shard}") == 1
    assert "from 1/8 to 8/8" in capsys.readouterr().err


def test_a_part_is_made_once_at_a_time_and_resumed_with_the_same_data(tmp_path, capsys):
    lock = FolderLock(tmp_path / "shard-1-of-3")
    assert certify(tmp_path, "--shard", "1/3") == 1
    assert "in use by another run" in capsys.readouterr().err
    lock.release()
    assert certify(tmp_path, "--shard", "1/3") == 0
    assert certify(tmp_path, "--shard", "1/3") == 1
    assert "Continue with --resume" in capsys.readouterr().err
    assert certify(tmp_path, "--shard", "1/3", "--resume", "--batch-size", "3") == 1
    assert "needs the settings of the run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_part_is_not_whole_and_goes_on(tmp_path, capsys):
    command = [sys.executable, "-m", "popqorn_train.cli", "certify", "tests.subjects:net", *FAST]
    command += ["--data", "tests.cli.test_shards:slow", "--folder", str(tmp_path), "--shard", "1/2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    rows = tmp_path / "shard-1-of-2" / "samples.jsonl"
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as run:
        for _ in range(1200):
            if rows.exists() and rows.read_text():
                break
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    assert 0 < len(rows.read_text().splitlines()) < 6
    assert main(["merge", str(tmp_path)]) == 1
    assert "lacks shard 2 of 2" in capsys.readouterr().err
    slow.pause = 0.0
    for number in (1, 2):
        given = ["certify", "tests.subjects:net", "--data", "tests.cli.test_shards:slow", *FAST]
        given += ["--folder", str(tmp_path), "--shard", f"{number}/2", "--resume"]
        assert main(given) == 0
    assert main(["merge", str(tmp_path)]) == 0
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 12


def slow():
    """A batch of two at a time, slowly enough to be killed in between."""
    x, y = subjects.pair()

    class Slow:
        def __iter__(self):
            for one, two in zip(x.split(2), y.split(2), strict=True):
                time.sleep(slow.pause)
                yield one, two

    return Slow()


slow.pause = 0.5
