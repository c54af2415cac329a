import json

import pytest
import torch

from popqorn_train import SampleRow, Status
from popqorn_train.evaluation.certification import (
    Certification,
    append_certification,
    read_certifications,
)
from popqorn_train.evaluation.stored import mend_end

ROWS = (
    SampleRow(3, 0, Status.CERTIFIED, 0, 0.5, False, 0.75, 4),
    SampleRow(5, 1, Status.NOT_CERTIFIED, 0, 0.0, False, 0.0, 0),
    SampleRow(8, 1, Status.CERTIFIED, 1, 0.125, True, float("inf"), 3),
    SampleRow(9, 2, Status.ERROR, error="ValueError: no"),
    SampleRow(11, None, Status.NOT_ATTEMPTED),
)


def entry(step=0, rows=ROWS, run="a", **fields):
    return Certification(step // 10, step, rows, run=run, **fields)


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "certification.jsonl"
    written = [entry(0, seconds=1.5, weights="ab"), entry(10, settings={"p": "inf", "low": 0.0})]
    for certification in written:
        append_certification(path, certification)
    assert read_certifications(path) == written


def test_every_line_is_strict_json(tmp_path):
    append_certification(tmp_path / "a", entry())

    def refuse(constant):
        raise ValueError(constant)

    json.loads((tmp_path / "a").read_text(), parse_constant=refuse)


def test_the_plain_form_survives_a_checkpoint(tmp_path):
    torch.save(entry().plain(), tmp_path / "a.ckpt")
    assert Certification.of(torch.load(tmp_path / "a.ckpt", weights_only=True)) == entry()


def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path):
    path = tmp_path / "a"
    append_certification(path, entry(0))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:70])
    assert read_certifications(path) == [entry(0)]
    append_certification(path, entry(10))
    assert read_certifications(path) == [entry(0), entry(10)]
    path.write_bytes(path.read_bytes()[:-1])  # nothing but the line break is missing
    append_certification(path, entry(20))
    assert read_certifications(path) == [entry(0), entry(10), entry(20)]


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 20_000, 100_000])
def test_a_line_of_any_length_is_mended(tmp_path, length):
    path = tmp_path / "a"
    append_certification(path, entry(0))
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * length)
    mend_end(path)
    assert path.read_bytes() == whole
    path.write_bytes(b"x" * length)
    mend_end(path)
    assert not path.read_bytes()


def test_a_full_disk_is_said_at_once(tmp_path):
    (tmp_path / "a").symlink_to("/dev/full")  # gives zeros without end to who reads it
    with pytest.raises(OSError, match="No space left"):
        append_certification(tmp_path / "a", entry(0))


@pytest.mark.parametrize("damage", ['": 0.5', '": [0.5', '"step": 10', '"crc32"', "{"])
def test_a_line_that_is_not_as_it_was_written_is_left_out_with_a_warning(tmp_path, damage):
    path = tmp_path / "a"
    for step in (0, 10, 20):
        append_certification(path, entry(step, seconds=0.5))
    first, second, third = path.read_text().splitlines(keepends=True)
    assert damage in second
    path.write_text(first + second.replace(damage, damage[:-1] + "8") + third)
    with pytest.warns(UserWarning, match=r"a is damaged in line 2: what was certified there is"):
        assert read_certifications(path) == [entry(0, seconds=0.5), entry(20, seconds=0.5)]


def test_lines_of_earlier_versions_have_no_checksum(tmp_path):
    path = tmp_path / "a"
    old = "".join(json.dumps(entry(step).plain()) + "\n" for step in (0, 10))
    path.write_text(old)
    assert read_certifications(path) == [entry(0), entry(10)]
    append_certification(path, entry(20))
    assert read_certifications(path) == [entry(0), entry(10), entry(20)]
    path.write_text(path.read_text() + json.dumps(entry(30).plain()) + "\n")
    with pytest.warns(UserWarning, match="damaged in line 4"):
        assert read_certifications(path) == [entry(0), entry(10), entry(20)]


def test_a_resumed_run_takes_the_place_of_the_old_end_and_runs_are_told_apart(tmp_path):
    path = tmp_path / "a"
    for certification in (
        entry(10, run="b"),
        entry(0),
        entry(10),
        entry(20),
        entry(30),
        entry(11, seconds=9.0),  # resumed from step 10
        entry(20, seconds=9.0),
    ):
        append_certification(path, certification)
    assert [(found.step, found.seconds) for found in read_certifications(path)] == [
        (0, 0.0),
        (10, 0.0),
        (11, 9.0),
        (20, 9.0),
    ]
    assert [found.step for found in read_certifications(path, run="b")] == [10]


def test_every_validation_outside_of_fit_is_kept(tmp_path):
    for weights in ("a", "b", "a"):
        append_certification(tmp_path / "a", entry(5, stage="validate", weights=weights))
    assert [found.weights for found in read_certifications(tmp_path / "a")] == ["a", "b", "a"]


def test_a_file_without_certifications_is_refused(tmp_path):
    (tmp_path / "a").write_text("nothing")
    with pytest.raises(ValueError, match="`path` must hold certifications, got none"):
        read_certifications(tmp_path / "a")


def test_samples_without_an_answer_are_left_out_of_every_share():
    found = entry()
    assert found.radii.tolist() == [0.5, 0.0, 0.125]
    assert found.clean_accuracy == 2 / 3
    assert found.certified_accuracy([0.0, 0.1, 0.125, 0.2, 0.6]) == [2 / 3, 2 / 3, 2 / 3, 1 / 3, 0]
    assert found.attacked_accuracy([0.0, 0.74, 0.75, 9.0]) == [2 / 3, 2 / 3, 1 / 3, 1 / 3]
    assert found.by_class() == {0: 0.5, 1: 0.0625}
    assert not found.complete
    assert entry(rows=ROWS[:3]).complete
    assert not entry(rows=()).complete


def test_attacked_accuracy_needs_an_attack():
    rows = tuple(SampleRow(at, 0, Status.CERTIFIED, 0, 0.5) for at in range(3))
    assert entry(rows=rows).empirical is None
    with pytest.raises(ValueError, match="`attack` was off"):
        entry(rows=rows).attacked_accuracy([0.1])
