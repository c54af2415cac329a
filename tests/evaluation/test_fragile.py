"""The most fragile samples, frame by frame."""

import math

import pytest
import torch

from popqorn_train import LpBall, SampleRow, Status, bound, certify_loader, frame_radii
from popqorn_train.bounds.methods import method_named
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.fragile import (
    chosen_samples,
    described,
    examined_frames,
    most_fragile,
    vocabulary,
)
from tests import subjects

QUESTION = Examination(LpBall(0.0, 2), method_named("popqorn"), None, 1e-2, "float64", False)


def test_the_least_positive_radii_come_first():
    radii = [0.3, 0.0, 0.1, 0.2, None]
    rows = [
        SampleRow(at, 0, Status.ERROR if radius is None else Status.CERTIFIED, radius=radius)
        for at, radius in enumerate(radii)
    ]
    assert [row.index for row in most_fragile(rows, 2)] == [2, 3]
    assert [row.index for row in most_fragile(rows, 9)] == [2, 3, 0]


def test_frames_of_chosen_samples_are_those_of_frame_radii():
    model, (x, y) = bound(subjects.net()), subjects.pair()
    rows = certify_loader(model, subjects.loader(), p=2, progress=False)
    wanted = most_fragile(rows, 3)
    expected = frame_radii(model, x, y, p=2, rtol=1e-2)
    found = list(chosen_samples(model, subjects.loader(), wanted))
    assert {row.index for row, _ in found} == {row.index for row in wanted}
    for row, picked in found:
        radii, error = examined_frames(model, picked, QUESTION)
        assert error == ""
        assert radii == pytest.approx(expected[row.index].tolist(), rel=2e-2)
        shown = described(model, row, picked, (radii, error), None)
        assert shown.values.equal(x[row.index])
        assert min(shown.radii) >= row.radius * 0.98  # one frame alone can move at least as far


def test_words_name_the_tokens_and_padding_behind_them_is_left_out():
    model = bound(subjects.Tokens())
    rows = certify_loader(model, [subjects.questions()], p=2, progress=False)
    shown = {}
    for row, picked in chosen_samples(model, [subjects.questions()], rows):
        answer = examined_frames(model, picked, QUESTION)
        shown[row.index] = described(model, row, picked, answer, subjects.spelled)
    assert shown[0].words == ("what", "is", subjects.NASTY, "dog", "?")
    assert len(shown[0].radii) == len(shown[0].values) == 5
    assert len(shown[2].words) == 6


def test_a_sample_that_fails_says_why_and_costs_itself_alone():
    model, row = bound(subjects.net()), SampleRow(1, 9, Status.CERTIFIED, radius=0.1)
    [(_, picked)] = chosen_samples(model, [subjects.pair()], [row])
    radii, error = examined_frames(model, picked._replace(labels=torch.tensor([9])), QUESTION)
    assert radii == []
    assert "`target` must lie in 0..2" in error
    assert described(model, row, picked, (radii, error), None).error == error


def test_a_vocabulary_is_a_file_a_function_or_a_list(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n".join(subjects.WORDS))
    for name in (str(path), "tests.subjects:spelled", "tests.subjects:WORDS"):
        assert list(vocabulary(name)([1, 6])) == ["what", "dog"], name
    assert vocabulary(str(path))([99]) == ["#99"]


def test_a_vocabulary_that_does_not_fit_is_refused():
    with pytest.raises(FileNotFoundError, match="`--words` must be a file or module:name"):
        vocabulary("nowhere.txt")
    with pytest.raises(ValueError, match="must name words or a function, got float"):
        vocabulary("math:pi")
    model = bound(subjects.Tokens())
    row = SampleRow(0, 0, Status.CERTIFIED, radius=0.1)
    [(_, picked)] = chosen_samples(model, [subjects.questions()], [row])
    with pytest.raises(ValueError, match="must name each token, got 1 words for 5"):
        described(model, row, picked, ([math.nan] * 6, ""), subjects.too_few)
