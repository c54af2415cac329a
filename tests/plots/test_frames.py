"""Strips, rows and strokes: every frame in the colour of its radius, the least one marked."""

import numpy as np
import pytest
import torch

from popqorn_train.plots import draw_frame_strips, draw_image_rows, draw_strokes
from popqorn_train.plots.colors import RadiusScale, hexadecimal

NAN = float("nan")


def bar_label(figure):
    [label] = [ax.get_ylabel() for ax in figure.axes if "dark: fragile" in ax.get_ylabel()]
    return label


def test_strips_hold_the_radii_and_frame_the_least_of_each_sample():
    radii = torch.tensor([[0.5, 0.2, 0.9], [0.0, 0.3, NAN], [0.0, 0.0, 0.0]])
    figure, ax = draw_frame_strips(radii, names=["one", "two", "wrong"], unit="radius (l_2)")
    drawn = ax.collections[0].get_array()
    assert drawn[0].tolist() == pytest.approx([0.5, 0.2, 0.9])
    assert drawn.mask.tolist() == [[False] * 3, [False, False, True], [False] * 3]
    assert (drawn[2] < 0.2).all()  # below the scale: grey
    assert [patch.get_xy() for patch in ax.patches] == [(1.5, -0.5), (1.5, 0.5)]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["one", "two", "wrong"]
    assert {text.get_text() for text in ax.texts} >= {".5", ".2", ".9", "0"}
    assert "radius (l_2)" in bar_label(figure)


def test_long_strips_have_no_numbers():
    _, ax = draw_frame_strips(torch.rand(2, 30) + 0.1)
    assert not ax.texts


def test_rows_of_an_image_have_the_colours_of_their_radii():
    images = torch.zeros(2, 3, 4)
    images[:, :, 1] = 1  # full ink
    radii = torch.tensor([[0.1, 0.3, 0.2], [0.3, 0.2, 0.1]])
    figure, axes = draw_image_rows(images, radii, names=["a", "b"])
    scale = RadiusScale.of(radii.flatten().tolist())
    for ax, row in zip(axes, radii.tolist(), strict=True):
        image, strip = (np.asarray(shown.get_array()) for shown in ax.images)
        for at, radius in enumerate(row):
            assert (255 * image[at, 1]).round().astype(int).tolist() == list(scale.color(radius))
            assert (255 * strip[at, 0]).round().astype(int).tolist() == list(scale.color(radius))
            assert image[at, 0] == pytest.approx([0.95] * 3)
    assert [ax.lines[0].get_ydata()[0] for ax in axes] == [0.5, 2.5]
    assert [ax.get_title() for ax in axes] == ["a", "b"]
    assert "fragile" in bar_label(figure)


def test_strokes_follow_the_pen_and_skip_where_it_is_lifted():
    steps = [[5, 8, 0, 0], [1, -1, 0, 0], [2, 0, 1, 0], [0, 3, 0, 0], [1, 1, 1, 1]]
    radii = [0.5, 0.4, 0.1, 0.2, 0.3]
    _, [ax] = draw_strokes([steps], [radii], names=["4"])
    scale = RadiusScale.of(radii)
    lines = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_zorder() == 2]
    assert [line.get_xydata().tolist() for line in lines] == [
        [[5, 8], [6, 7]],
        [[6, 7], [8, 7]],
        [[8, 10], [9, 11]],
    ]
    assert [line.get_color() for line in lines] == [
        hexadecimal(scale.color(radius)) for radius in (0.4, 0.1, 0.3)
    ]
    [cross] = [line for line in ax.lines if line.get_marker() == "X"]
    assert cross.get_xydata().tolist() == [[8, 7]]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # y grows downwards, as in the files


@pytest.mark.parametrize(
    ("draw", "arguments", "options", "message"),
    [
        (draw_frame_strips, [torch.ones(2, 3)], {"names": ["one"]}, "`names` must be one per"),
        (draw_frame_strips, [torch.ones(3)], {}, "2 axes"),
        (draw_image_rows, [torch.ones(2, 3, 4), torch.ones(2, 4)], {}, "`images` must be"),
        (draw_strokes, [[torch.ones(3, 2)], [torch.ones(3)]], {}, r"`steps` must be \(T, 4\)"),
        (draw_strokes, [[], []], {}, "at least one sample"),
    ],
)
def test_what_does_not_fit_is_refused(draw, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments, **options)
