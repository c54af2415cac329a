"""Rows on the disk: nothing that was reported is lost, nothing else is resumed."""

import csv
import json

import pytest

from popqorn_train import SampleRow, Status
from popqorn_train.evaluation.ledger import COLUMNS, Ledger, read_rows, read_settings

ROWS = [
    SampleRow(0, 1, Status.CERTIFIED, 1, 0.25, False, float("inf"), 4),
    SampleRow(1, 0, Status.NOT_CERTIFIED, 1, 0.0, False, 0.0),
    SampleRow(2, 0, Status.ERROR, error='ValueError: "no",\nnot at all'),
    SampleRow(3, 2, Status.NOT_ATTEMPTED),
]
SETTINGS = {"p": "2", "low": None, "frames": [True, False]}


def test_answered_rows_are_read_back_and_the_others_are_asked_again(tmp_path):
    Ledger(tmp_path / "run", SETTINGS).add(ROWS)
    again = Ledger(tmp_path / "run", SETTINGS, resume=True)
    assert again.known == {0: ROWS[0], 1: ROWS[1]}


def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path):
    ledger = Ledger(tmp_path, SETTINGS)
    ledger.add(ROWS[:2])
    ledger.add_frames(0, [0.5, 0.25])
    for name in ("samples.jsonl", "frames.jsonl"):
        path = tmp_path / name
        path.write_text(path.read_text() + '{"index": 9, "la')
    again = Ledger(tmp_path, SETTINGS, resume=True)
    assert set(again.known) == {0, 1}
    assert again.frames == {0: [0.5, 0.25]}
    again.add([SampleRow(2, 0, Status.CERTIFIED, 0, 0.5)])
    again.add_frames(2, [1.0])
    third = Ledger(tmp_path, SETTINGS, resume=True)
    assert set(third.known) == {0, 1, 2}
    assert third.frames == {0: [0.5, 0.25], 2: [1.0]}


def test_the_spreadsheet_has_the_same_rows_in_order(tmp_path):
    ledger = Ledger(tmp_path, SETTINGS)
    ledger.add(ROWS[2:])
    ledger.add(ROWS[:2])
    ledger.rewrite([*ROWS[2:], *ROWS[:2]])
    with (tmp_path / "samples.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == COLUMNS
    assert [int(row["index"]) for row in found] == [0, 1, 2, 3]
    assert found[0]["empirical"] == "inf"
    assert found[2]["error"] == ROWS[2].error
    assert [row["status"] for row in found] == [str(row.status) for row in ROWS]


def test_every_line_is_strict_json(tmp_path):
    Ledger(tmp_path, SETTINGS).add(ROWS)

    def refuse(constant):
        raise ValueError(constant)

    for line in (tmp_path / "samples.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_folder_in_use_needs_resume_and_resume_needs_the_same_settings(tmp_path):
    Ledger(tmp_path, SETTINGS)
    Ledger(tmp_path, SETTINGS).add(ROWS[:1])  # nothing was certified in it yet
    with pytest.raises(ValueError, match=r"of an earlier run\. Continue with --resume"):
        Ledger(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=r"low was None, is 0\.5"):
        Ledger(tmp_path, {**SETTINGS, "low": 0.5}, resume=True)
    assert Ledger(tmp_path / "new", SETTINGS, resume=True).known == {}


def test_rows_that_a_later_run_does_not_ask_for_are_kept(tmp_path):
    Ledger(tmp_path, SETTINGS).add(ROWS[:2])
    Ledger(tmp_path, SETTINGS, resume=True).rewrite(ROWS[:1])
    assert set(Ledger(tmp_path, SETTINGS, resume=True).known) == {0, 1}


@pytest.mark.parametrize("damage", ["0.25", '"index": 0', '"label": 1', '"crc32"', "certified"])
def test_a_row_that_is_not_as_it_was_written_is_certified_again(tmp_path, damage):
    ledger = Ledger(tmp_path, SETTINGS)
    ledger.add(ROWS[:2])
    ledger.add_frames(0, [0.25, 0.5])
    ledger.add_frames(1, [0.5])
    for name in ("samples.jsonl", "frames.jsonl"):
        path = tmp_path / name
        first, second = path.read_text().splitlines(keepends=True)
        path.write_text(first.replace(damage, damage[:-1] + "7") + second)
    with pytest.warns(UserWarning, match=r"jsonl is damaged in line 1: .* worked out again"):
        again = Ledger(tmp_path, SETTINGS, resume=True)
    assert again.known == {1: ROWS[1]}
    assert again.frames in ({1: [0.5]}, {0: [0.25, 0.5], 1: [0.5]})
    assert Ledger(tmp_path, SETTINGS, resume=True).known == {1: ROWS[1]}


def test_a_ledger_of_an_earlier_version_is_read_and_gets_checksums(tmp_path):
    ledger = Ledger(tmp_path, SETTINGS)
    ledger.add(ROWS[:2])
    ledger.add_frames(0, [0.5])
    for name in ("samples.jsonl", "frames.jsonl"):
        path = tmp_path / name
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert all(line.pop("crc32") for line in lines)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows, damage = read_rows(tmp_path, checked=read_settings(tmp_path)[1])
    assert not rows
    assert "damaged in lines 1, 2" in damage  # of this version, by its settings
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    again = Ledger(tmp_path, SETTINGS, resume=True)
    assert again.known == {0: ROWS[0], 1: ROWS[1]}
    assert again.frames == {0: [0.5]}
    assert (tmp_path / "samples.jsonl").read_text().count("crc32") == 2


def test_rows_without_settings_are_not_overwritten(tmp_path):
    Ledger(tmp_path, SETTINGS).add(ROWS[:2])
    (tmp_path / "settings.json").unlink()
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"samples\.jsonl"):
            Ledger(tmp_path, SETTINGS, resume=resume)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 2
