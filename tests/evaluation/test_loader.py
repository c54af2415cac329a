"""Certification of a whole loader, without Lightning."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from popqorn_train import Box, LpBall, Status, certified_radius, certify, certify_loader
from popqorn_train.errors import BadSamplesError, BrokenWeightsError
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.sample_rows import count_statuses
from tests.problems import build, predicted, sequences

MODEL = build("tanh")
X = sequences(90, 4)
Y = predicted(MODEL, X)
Y[::7] = (Y[::7] + 1) % 3  # wrong


def loader(size=40, **options):
    return DataLoader(TensorDataset(X, Y), size, **options)


def run(**options):
    options = {"method": "crown-ibp", **options}
    return certify_loader(MODEL, options.pop("loader", loader()), progress=False, **options)


def test_radii_are_those_of_certified_radius_whatever_the_batches():
    expected = certified_radius(MODEL, X, Y, p=2, rtol=1e-3, method="crown-ibp")
    for size in (7, 40, 90):
        rows = run(loader=loader(size), p=2, rtol=1e-3)
        assert [row.index for row in rows] == list(range(90))
        radii = torch.tensor([row.radius for row in rows], dtype=torch.float64)
        torch.testing.assert_close(radii, expected, rtol=2e-3, atol=0)


def test_a_row_says_what_is_known_of_a_sample():
    rows = run(attack=True, samples=20)
    assert len(rows) == 20
    for row in rows:
        assert row.label == Y[row.index]
        assert row.status == (Status.CERTIFIED if row.index % 7 else Status.NOT_CERTIFIED)
        assert (row.prediction == row.label) == bool(row.index % 7)
        assert row.empirical >= row.radius
        assert (row.radius > 0) == bool(row.index % 7)


def test_a_ball_is_certified_at_its_own_size():
    ball = LpBall(0.15, 2)
    rows = certify_loader(MODEL, loader(), ball, progress=False)
    expected = certify(MODEL, X, Y, ball)
    assert [row.status == Status.CERTIFIED for row in rows] == expected.certified.tolist()
    assert 0 < expected.certified.sum() < 70
    margins = torch.tensor([row.margin for row in rows], dtype=torch.float64)
    torch.testing.assert_close(margins, expected.margin)
    assert all(row.radius is None for row in rows)


def test_time_that_is_over_leaves_samples_not_attempted(monkeypatch):
    now = iter([0.0, *[0.5] * 2, *[2.0] * 99])
    monkeypatch.setattr("popqorn_train.evaluation.loader.time.monotonic", lambda: next(now))
    rows = run(loader=loader(30), seconds=1.0)
    counts = count_statuses(rows)
    assert counts[Status.NOT_ATTEMPTED] == 30
    assert {row.index for row in rows if row.status == Status.NOT_ATTEMPTED} == set(range(60, 90))


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X[:4], Y[:4], strict=True)


def test_streams_and_loaders_without_samples_are_named():
    with pytest.raises(TypeError, match="`loader` must give batches, got an IterableDataset"):
        run(loader=Stream())
    with pytest.raises(TypeError, match="`loader` must give batches, got a data set"):
        run(loader=TensorDataset(X, Y))
    with pytest.raises(ValueError, match="`loader` reads an IterableDataset with several workers"):
        run(loader=DataLoader(Stream(), 2, num_workers=2))
    assert len(run(loader=DataLoader(Stream(), 3))) == 4
    for nothing in ([], DataLoader(TensorDataset(X[:0], Y[:0]), 2), iter([])):
        with pytest.raises(ValueError, match="`loader` must give at least one batch, got none"):
            run(loader=nothing)


def failing(monkeypatch, when):
    rows_of = Examination.rows

    def rows(self, model, picked, start, decided):
        if when(picked):
            raise FloatingPointError("the bounds fell over")
        return rows_of(self, model, picked, start, decided)

    monkeypatch.setattr(Examination, "rows", rows)


def test_a_sample_that_fails_costs_itself_alone(monkeypatch):
    failing(monkeypatch, lambda picked: 45 in picked.positions)
    with pytest.warns(UserWarning, match="1 of 90 samples ended in an error, first FloatingPoint"):
        rows = run()
    assert [row.index for row in rows if row.status == Status.ERROR] == [45]
    with pytest.raises(FloatingPointError):
        run(on_error="raise")


def test_a_loader_that_fails_costs_what_was_not_read():
    def batches():
        yield X[:10], Y[:10]
        raise OSError("disk gone")

    with pytest.warns(UserWarning, match="could not be read after 10 samples.*disk gone"):
        rows = run(loader=batches())
    assert len(rows) == 10
    with pytest.raises(OSError, match="disk gone"):
        run(loader=batches(), on_error="raise")


def test_what_fails_at_once_is_raised(monkeypatch):
    failing(monkeypatch, lambda picked: True)
    with pytest.raises(FloatingPointError):
        run()


def test_progress_is_written_off_a_terminal_when_it_takes_long(monkeypatch, capsys):
    monkeypatch.setattr("popqorn_train.evaluation.progress._QUIET", 0.0)
    certify_loader(MODEL, loader(30))
    lines = capsys.readouterr().err.splitlines()
    assert 3 < len(lines) <= 10  # samples of a batch, one by one
    assert lines[-1] == "certifying: 90 of 90 samples (100 %)"
    assert all(" of 90 samples (" in line and line.endswith(" left") for line in lines[:-1])
    assert lines[0].endswith(" left")


def test_a_bar_is_shown_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    certify_loader(MODEL, loader(30))
    assert "certifying: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loader": loader(shuffle=True)}, "`loader` must give samples in the same order"),
        (
            {"loader": loader(sampler=SubsetRandomSampler(range(9)))},
            "`loader` must give samples in the same order",
        ),
        ({"samples": 0}, "`samples` must be at least 1, got 0"),
        ({"seconds": 0}, "`seconds` must be positive, got 0"),
        ({"on_error": "no"}, "`on_error` must be 'warn' or 'raise'"),
        ({"rtol": 2}, "`rtol` must be a number strictly"),
        ({"ball": LpBall(0.1), "p": 2}, "`ball` describes the perturbation"),
        ({"ball": LpBall(0.1), "low": -9.0}, "`ball` describes the perturbation"),
        ({"ball": LpBall(0.1), "attack": True}, "`ball` describes the perturbation"),
        ({"ball": LpBall(torch.full((90,), 0.1))}, "`ball` must have one size"),
        ({"ball": Box(torch.full((90, 1, 1), -9.0), 9.0)}, "`ball` must have one size"),
        ({"low": 0.0}, r"`inputs` must lie inside \[low, high\]"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_a_ball_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="`ball` must be an LpBall or a Box, got float"):
        certify_loader(MODEL, loader(), 0.1)


def test_a_box_is_certified_as_batch_by_batch():
    box = Box(-9.0, torch.full((3,), 9.0), share=0.001)
    rows = run(ball=box)
    found = torch.tensor([row.margin for row in rows])
    whole = certify(MODEL, X, Y, box, method="crown-ibp")
    torch.testing.assert_close(found.double(), whole.margin.double(), rtol=1e-6, atol=1e-9)
    assert [row.status == "certified" for row in rows] == whole.certified.tolist()
    assert whole.certified.any()


def test_batches_in_another_form_go_through_unpack():
    batches = [{"x": X[:10], "y": Y[:10]}, {"x": X[10:15], "y": Y[10:15]}]
    rows = run(loader=batches, unpack=lambda batch: (batch["x"], batch["y"]))
    assert [row.index for row in rows] == list(range(15))
    assert all(row.radius < math.inf for row in rows)
    with pytest.raises(TypeError, match=r"a batch must give \(inputs, target\), got a dict"):
        run(loader=[{"x": X}])
    with pytest.raises(TypeError, match="must be a tensor of 2 labels, got list"):
        run(loader=[(X[:2], [0, 1])])


def test_what_is_known_is_not_certified_again_and_rows_are_told_as_they_come():
    told = []
    first = run(samples=30, tell=told.extend)
    assert sorted(told, key=lambda row: row.index) == first
    told.clear()
    known = {row.index: replace(row, evaluations=99) for row in first if row.index % 3}
    again = run(samples=30, known=known, tell=told.extend)
    assert [row.index for row in again] == [row.index for row in first]
    assert {row.index for row in again if row.evaluations == 99} == set(known)
    assert {row.index for row in told} == {row.index for row in first} - set(known)
    for one, two in zip(first, again, strict=True):
        assert two.radius == pytest.approx(one.radius, rel=1e-2)


def test_rows_of_another_data_set_are_refused():
    first = run(samples=30)
    known = {first[0].index: replace(first[0], label=first[0].label + 1)}
    with pytest.raises(ValueError, match="`known` has label"):
        run(samples=30, known=known)


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("ball", [None, LpBall(0.05)])
def test_a_bad_sample_is_one_row_that_names_it(size, ball):
    x = X[:10].clone()
    x[0, 2, 1], x[7, 1, 0] = math.inf, math.nan
    batches = DataLoader(TensorDataset(x, Y[:10]), size)
    with pytest.warns(UserWarning, match="2 of 10 samples ended in an error, first sample 0: `x`"):
        rows = certify_loader(MODEL, batches, ball, method="ibp", progress=False)
    wrong = [row for row in rows if row.status == Status.ERROR]
    assert [row.index for row in wrong] == [0, 7]
    assert wrong[0].error == "sample 0: `x` holds inf at [2, 1], which the model reads"
    assert wrong[0].radius is None
    fine = certify_loader(MODEL, loader(), ball, method="ibp", progress=False, samples=10)
    for row, other in zip(rows, fine, strict=True):
        if row not in wrong:
            assert (row.index, row.status) == (other.index, other.status)
            assert row.radius == pytest.approx(other.radius)
            assert row.margin == pytest.approx(other.margin)
    with pytest.raises(BadSamplesError, match="sample 0"):
        certify_loader(MODEL, batches, ball, method="ibp", progress=False, on_error="raise")


def test_weights_that_are_nan_are_an_error():
    model = build("tanh")
    with torch.no_grad():
        model.head.bias[0] = math.nan
    with pytest.raises(BrokenWeightsError, match=r"head\.bias"):
        certify_loader(model, loader(), progress=False)
