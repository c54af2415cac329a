"""``popqorn-train compare``: only what answers the same question is compared."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from popqorn_train import SampleRow, Status
from popqorn_train.cli import main
from popqorn_train.cli.compare import comparison, differences
from popqorn_train.cli.files import read_certification
from popqorn_train.evaluation.certification import Certification, append_certification
from popqorn_train.evaluation.stored import with_checksum

SETTINGS = {
    "p": "inf",
    "scope": "frame",
    "low": 0.0,
    "high": 1.0,
    "method": "popqorn",
    "data_fingerprint": "ab",
}


def run(radii=(0.1, 0.0, 0.3), **settings):
    rows = [
        SampleRow(at, 1, Status.CERTIFIED if r else Status.NOT_CERTIFIED, int(r > 0), r)
        for at, r in enumerate(radii)
    ]
    return Certification(0, 0, tuple(rows), settings={**SETTINGS, **settings}, stage="certify")


def write(folder, entry):
    folder.mkdir(parents=True)
    (folder / "certification.json").write_text(json.dumps(entry.plain()))
    return str(folder / "certification.json")


def test_curves_and_table_show_every_run(tmp_path, capsys, monkeypatch):
    files = [write(tmp_path / "one", run()), write(tmp_path / "two", run((0.2, 0.2, 0.4)))]
    drawn = []
    monkeypatch.setattr(
        "popqorn_train.cli.compare.draw_accuracy_curves", lambda c, **o: drawn.extend(c) or Fake()
    )
    assert main(["compare", *files, "--picture", str(tmp_path / "c.png")]) == 0
    assert [curve.name for curve in drawn] == ["one", "two"]
    assert drawn[0].certified[0] == pytest.approx(2 / 3)
    assert drawn[0].epsilons == drawn[1].epsilons
    out = capsys.readouterr().out
    assert "66.7 %" in out
    assert "l_inf, a ball for every frame, inputs in [0, 1]" in out


class Fake(tuple):
    def __new__(cls):
        return super().__new__(cls, (cls, None))

    @staticmethod
    def savefig(path, dpi):
        Path(path).write_bytes(b"png")


def test_the_picture_is_written_with_the_names_given(tmp_path):
    files = [write(tmp_path / name, run()) for name in ("a", "b")]
    picture = tmp_path / "new" / "c.png"
    assert main(["compare", *files, "--names", "$x$,<b>", "--picture", str(picture)]) == 0
    assert picture.stat().st_size > 10_000


OTHERS = {
    "norm": (run(p="2.0"), "p is inf in a, 2.0 in b"),
    "domain": (run(low=None), "low is 0.0 in a, None in b"),
    "samples": (run((0.1, 0.0)), "the samples are not the same"),
    "inputs": (run(data_fingerprint="cd"), "the samples are not the same"),
    "unanswered": (
        replace(run(), rows=(*run().rows[:2], SampleRow(2, 1, Status.ERROR))),
        "not every sample is answered in b",
    ),
}


@pytest.mark.parametrize(("other", "message"), OTHERS.values(), ids=OTHERS)
def test_other_questions_are_refused_or_marked(tmp_path, capsys, other, message):
    files = [write(tmp_path / "a", run()), write(tmp_path / "b", other)]
    picture = tmp_path / "c.png"
    assert main(["compare", *files, "--picture", str(picture)]) == 1
    assert message in capsys.readouterr().err
    assert not picture.exists()
    assert main(["compare", *files, "--anyway", "--picture", str(picture)]) == 0
    assert f"NOT COMPARABLE: {message}" in capsys.readouterr().out
    assert picture.exists()


def test_methods_may_differ_and_are_named():
    runs = {"a": run(), "b": run(method="ibp")}
    assert differences(runs) == []
    table = comparison(runs)
    assert "method" in table
    assert "ibp" in table
    assert "method" not in comparison({"a": run(), "b": run()})


def test_the_newest_complete_entry_of_a_monitor_is_read(tmp_path):
    path = tmp_path / "certification.jsonl"
    append_certification(path, replace(run(), stage="fit"))
    append_certification(path, replace(run((0.5, 0.5, 0.5)), stage="fit", step=7, epoch=1))
    incomplete = (*run().rows[:2], SampleRow(2, 1, Status.ERROR))
    append_certification(path, replace(run(), rows=incomplete, stage="fit", step=9, epoch=2))
    assert read_certification(path).step == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be a certification.json"),
        ("{}", "must be a certification.json"),
        (None, "must be a certification.json"),
    ],
)
def test_what_is_no_certification_is_refused(tmp_path, capsys, text, message):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    assert main(["compare", str(path)]) == 1
    assert message in capsys.readouterr().err


def test_a_certification_with_another_digit_is_refused(tmp_path, capsys):
    text = json.dumps(with_checksum(run((0.25, 0.5)).plain()))
    (tmp_path / "a.json").write_text(text)
    assert read_certification(tmp_path / "a.json") == run((0.25, 0.5))
    (tmp_path / "a.json").write_text(text.replace("0.25", "0.35"))
    assert main(["compare", str(tmp_path / "a.json")]) == 1
    assert "its values are not those that were written" in capsys.readouterr().err


def test_names_must_be_as_many_as_runs(tmp_path, capsys):
    files = [write(tmp_path / name, run()) for name in ("a", "b")]
    assert main(["compare", *files, "--names", "same,same"]) == 1
    assert "`--names` must be 2 different names" in capsys.readouterr().err
