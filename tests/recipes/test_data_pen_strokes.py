"""Digits as a pen writes them."""

import pytest
import torch

from popqorn_train.recipes.data.pen_strokes import PenStrokes, read_strokes
from popqorn_train.recipes.data.sequences import DataNotFoundError
from tests.small_data import write_strokes


def test_every_line_is_a_step_up_to_the_end_of_the_digit(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("5 8 0 0\n 1 -1 0 0 \n\n0 2 1 1\n9 9 0 0\n")
    assert read_strokes(file).tolist() == [[5, 8, 0, 0], [1, -1, 0, 0], [0, 2, 1, 1]]


def test_digits_are_split_without_overlap_and_keep_their_labels(tmp_path):
    write_strokes(tmp_path, digits=12)
    data = PenStrokes(tmp_path, tmp_path / "labels.txt", test=0.25)
    assert (len(data.train), len(data.test)) == (9, 3)
    assert (data.features, data.classes) == (4, 2)
    for part in (data.train, data.test):
        for steps, label in (part[at] for at in range(len(part))):
            assert steps[:, 2].sum() == 1 + label  # a seven has two strokes
    (x, lengths), labels = next(iter(data.test_dataloader()))
    assert x.shape == (3, int(lengths.max()), 4)
    assert len(labels) == 3


def test_files_are_read_in_the_order_of_their_numbers(tmp_path):
    write_strokes(tmp_path, digits=12)
    data = PenStrokes(tmp_path, tmp_path / "labels.txt", test=0.0)
    lengths = sorted(len(data.train[at][0]) for at in range(12))
    assert lengths == sorted(1 + 4 * (at % 2) + 4 + at % 3 for at in range(12))


@pytest.mark.parametrize("text", ["5 8 0\n", "5 8 0 x\n", "1.5 0 0 0\n"])
def test_another_format_is_refused(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match="line 1: a step must be dx dy eos eod"):
        read_strokes(tmp_path / "a.txt")


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="at least one step"):
        read_strokes(tmp_path / "empty.txt")
    with pytest.raises(DataNotFoundError, match="Pen strokes was not found"):
        PenStrokes(tmp_path, tmp_path / "labels.txt")
    write_strokes(tmp_path, digits=3)
    (tmp_path / "labels.txt").write_text("1\n")
    with pytest.raises(ValueError, match="`labels` must be one per file, got 1 for 3"):
        PenStrokes(tmp_path, tmp_path / "labels.txt")
    assert torch.equal(
        read_strokes(tmp_path / "trainimg-0-inputdata.txt")[0, :2], torch.tensor([5.0, 8.0])
    )
