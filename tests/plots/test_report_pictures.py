"""The pictures of a report: which are drawn, and what when they cannot be."""

import builtins

import pytest
import torch

from popqorn_train import SampleRow, Status
from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.fragile import FragileSample
from popqorn_train.plots.report_pictures import check_image, report_figures

SVG = b"<?xml"
SETTINGS = {"p": "2.0", "scope": "frame", "low": None, "high": None, "frames": None}
ROWS = tuple(
    SampleRow(at, at % 2, Status.CERTIFIED, at % 2, 0.1 * (at + 1), empirical=1.0)
    for at in range(4)
)
CERTIFICATION = Certification(0, 0, ROWS, settings=SETTINGS)


def fragile(frames=4, features=6, words=()):
    values = torch.rand(frames, features)
    return [FragileSample(row, tuple([0.1, 0.2, 0.3, 0.4][:frames]), values, words) for row in ROWS]


def drawn(samples=(), image=None, certification=CERTIFICATION):
    return report_figures(certification, samples, classes=["$a$", "b"], image=image)


def test_curves_radii_and_classes_are_drawn_and_rows_where_frames_are_rows():
    assert set(drawn()) == {"curves", "radii", "classes"}
    found = drawn(fragile())
    assert set(found) == {"curves", "radii", "classes", "rows"}
    assert all(svg.startswith(SVG) and len(svg) > 5000 for svg in found.values())
    assert set(drawn(fragile(words=("a",) * 4))) == set(drawn())  # words are text
    assert set(drawn(fragile(features=1))) == set(drawn())


def test_one_class_needs_no_chart_by_class():
    rows = tuple(row for row in ROWS if row.label == 0)
    assert set(drawn(certification=Certification(0, 0, rows, settings=SETTINGS))) == {
        "curves",
        "radii",
    }


def test_frames_that_make_up_an_image_are_cut_into_its_rows():
    assert "rows" in drawn(fragile(), image=(8, 3))
    check_image((8, 3), 4, 6)
    for image in ((5, 5), (6, 4)):  # another size; rows that lie across frames
        with pytest.raises(ValueError, match="`--image` must cut 4 frames of 6 features"):
            check_image(image, 4, 6)


def test_without_matplotlib_the_way_out_is_said(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "popqorn-train\[plots\]"'):
        drawn()
