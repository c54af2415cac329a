"""Waves: every part in the colour of its radius, the least one shaded."""

import pytest
import torch

from popqorn_train.plots import draw_waves
from popqorn_train.plots.colors import RadiusScale, hexadecimal


def test_parts_have_the_colours_of_their_radii_and_the_last_one_has_the_rest():
    waves = [torch.arange(25.0), torch.arange(12.0)]
    radii = [[0.3, 0.1], [0.2, 0.4]]
    figure, axes = draw_waves(waves, radii, step=10, rate=10, names=["seven", "two"], unit="dB")
    scale = RadiusScale.of([0.3, 0.1, 0.2, 0.4])
    for ax, row, length in zip(axes, radii, (25, 12), strict=True):
        whole, *parts = ax.lines
        assert len(whole.get_xdata()) == length
        assert [part.get_color() for part in parts] == [hexadecimal(scale.color(r)) for r in row]
        assert [part.get_xdata()[0] for part in parts] == [0.0, 1.0]
        assert parts[-1].get_xdata()[-1] == pytest.approx((length - 1) / 10)
    shaded = [ax.patches[0].get_x() for ax in axes]
    assert shaded == [1.0, 0.0]  # of the second part, and of the first
    assert [ax.get_ylabel() for ax in axes] == ["seven", "two"]
    assert any("dB" in ax.get_ylabel() for ax in figure.axes)


def test_a_wave_of_which_nothing_is_proved_has_no_mark():
    _, [ax] = draw_waves([torch.ones(8)], [[0.0, 0.0]], step=4)
    assert not ax.patches


@pytest.mark.parametrize(
    ("waves", "radii", "message"),
    [
        ([], [], "`radii` must be one row per wave, got 0 for 0"),
        ([torch.ones(9)], [[0.1], [0.2]], "got 2 for 1"),
        ([torch.ones(8)], [[0.1, 0.2, 0.3]], "more than 8 samples for 3 radii"),
        ([torch.ones(8, 1)], [[0.1]], r"must be \(L,\)"),
    ],
)
def test_what_does_not_fit_is_refused(waves, radii, message):
    with pytest.raises(ValueError, match=message):
        draw_waves(waves, radii, step=4)
