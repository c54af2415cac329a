"""How radii are spread: what the figures draw is what they were given."""

import numpy as np
import pytest
import torch

from popqorn_train.plots import draw_radii_by_class, draw_radius_by_frame, draw_radius_histogram


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_histogram_shows_shares_medians_and_what_is_not_proved():
    radii = {"a": torch.tensor([0.0, 0.0, 0.1, 0.1, 0.4], dtype=torch.float64), "b": [0.2, 0.4]}
    _, ax = draw_radius_histogram(radii, bins=4, xlabel="radius (l_2)", title="t")
    heights = [patch.get_data().values for patch in ax.patches if hasattr(patch, "get_data")]
    assert heights[0].tolist() == [0, 40, 0, 20]  # the bars of a, edges at .1, .2, .3, .4
    assert heights[2].tolist() == [0, 0, 50, 50]
    zeros = [bar.get_height() for container in ax.containers for bar in container]
    assert zeros == [40, 0]
    assert legend(ax) == ["a: median 0.1", "b: median 0.2"]
    assert [line.get_xdata()[0] for line in ax.lines] == [pytest.approx(0.1), 0.2]
    assert ax.get_xlabel() == "radius (l_2)"
    assert ax.get_ylabel() == "samples (%)"
    assert "none" in ax.get_xticklabels()[0].get_text()
    assert all(bar.get_x() + bar.get_width() <= 0 for group in ax.containers for bar in group)


def test_every_radius_lies_in_the_row_of_its_class_and_the_bar_is_the_median():
    radii, labels = [0.1, 0.3, 0.5, 0.0, 0.2], [7, 7, 7, 2, 2]
    _, ax = draw_radii_by_class(radii, labels, names=["", "", "two"])
    points, bars = ax.lines[0::2], ax.lines[1::2]
    assert sorted(points[0].get_xdata()) == [0.0, 0.2]
    assert sorted(points[1].get_xdata()) == [0.1, 0.3, 0.5]
    assert [bar.get_xdata()[0] for bar in bars] == [0.0, 0.3]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["two (2)", "7 (3)"]


def test_the_line_of_frames_is_the_median_of_the_samples_that_are_right():
    radii = torch.tensor([[1.0, 2.0, 9.0], [3.0, 4.0, 9.0], [0.0, 0.0, 0.0], [2.0, 3.0, torch.nan]])
    _, ax = draw_radius_by_frame({"net": radii}, xlabel="row")
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert ax.lines[0].get_ydata().tolist() == [2.0, 3.0, 9.0]
    assert legend(ax) == ["net: median of 3 samples", "largest radius tried: 9"]
    assert ax.get_ylim()[0] == 0


def test_a_model_for_which_nothing_is_proved_is_named_without_a_line():
    _, ax = draw_radius_by_frame({"a": np.ones((2, 3)), "b": np.zeros((2, 3))})
    assert legend(ax)[:2] == ["a: median of 2 samples", "b: nothing proved"]
    assert [len(line.get_xdata()) for line in ax.lines[:2]] == [3, 0]


@pytest.mark.parametrize(
    ("draw", "arguments", "message"),
    [
        (draw_radius_histogram, [{}], "`radii` must hold"),
        (draw_radius_histogram, [{"a": []}], "some radii"),
        (draw_radius_histogram, [{"a": [-1.0]}], "must not be negative"),
        (draw_radius_histogram, [{str(n): [1.0] for n in range(9)}], "at most 7 models"),
        (draw_radii_by_class, [[0.1], [1, 2]], "`labels` must be one per radius"),
        (draw_radius_by_frame, [{"a": [0.1]}], "2 axes"),
    ],
)
def test_bad_radii_are_refused_in_one_sentence(draw, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments)
