"""The colours of radii: an order that everybody sees, and text that can be read on them."""

import math

import pytest

from popqorn_train.plots.colors import ANCHORS, UNPROVED, RadiusScale, hexadecimal, ink_on


def luminance(color):
    parts = [value / 255 for value in color]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_grow_lighter_with_the_radius():
    scale = RadiusScale.of([0.1, 0.2, 0.3])
    lights = [luminance(scale.color(0.1 + 0.2 * step / 50)) for step in range(51)]
    assert lights == sorted(lights)
    assert lights[-1] - lights[0] > 0.5


def test_text_on_every_colour_has_the_contrast_that_wcag_asks_for():
    for color in (
        *ANCHORS,
        UNPROVED,
        *[RadiusScale(0, 1, False, False).color(s / 40 + 1e-9) for s in range(41)],
    ):
        ink = 0.0 if ink_on(color) == "#000000" else 1.0
        light, dark = max(ink, luminance(color)), min(ink, luminance(color))
        assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("radii", "scale"),
    [
        ([0.2, 0.1, 0.0, math.inf, math.nan], RadiusScale(0.1, 0.2, False, False)),
        ([0.01, 0.5, 1.0], RadiusScale(0.01, 1.0, True, False)),
        ([1.0] * 30 + [100.0], RadiusScale(0.0, 1.0, False, True)),
        ([0.3, 0.3], RadiusScale(0.0, 0.3, False, False)),
        ([0.0], RadiusScale(0.0, 1.0, False, False)),
    ],
    ids=["linear", "logarithmic", "beyond", "equal", "nothing proved"],
)
def test_the_scale_fits_the_radii(radii, scale):
    assert RadiusScale.of(radii) == scale


def test_the_ends_have_the_end_colours_and_zero_has_its_own():
    scale = RadiusScale.of([0.01, 0.1, 1.0])
    assert scale.color(0.01) == ANCHORS[0]
    assert scale.color(1.0) == scale.color(7.0) == ANCHORS[-1]
    assert scale.color(0.1) == ANCHORS[4]  # the middle of two decades
    assert scale.color(0.0) == UNPROVED
    assert hexadecimal(ANCHORS[0]) == "#440154"
    assert "logarithmic" in scale.ends()
    assert "0.01" in scale.ends()
