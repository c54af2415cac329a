"""Confidence intervals of shares."""

import math

import pytest

from popqorn_train.evaluation.confidence import confidence_interval, widest

# share, samples, and the interval as published (Newcombe, Statistics in Medicine 1998, table I)
PUBLISHED = [
    (81 / 263, 263, (0.2553, 0.3662)),
    (15 / 148, 148, (0.0624, 0.1605)),
    (0 / 20, 20, (0.0, 0.1611)),
    (1 / 29, 29, (0.0061, 0.1718)),
]


@pytest.mark.parametrize(("share", "samples", "ends"), PUBLISHED)
def test_intervals_are_those_published(share, samples, ends):
    assert confidence_interval(share, samples) == pytest.approx(ends, abs=6e-5)


@pytest.mark.parametrize("samples", [1, 7, 10_000])
def test_intervals_hold_the_share_and_are_mirrored(samples):
    for count in {0, 1, samples // 2, samples}:
        low, high = confidence_interval(count / samples, samples)
        assert 0 <= low <= count / samples <= high <= 1
        mirrored = confidence_interval(1 - count / samples, samples)
        assert mirrored == pytest.approx((1 - high, 1 - low))


def test_four_times_as_many_samples_halve_the_interval():
    few, many = confidence_interval(0.5, 1000), confidence_interval(0.5, 4000)
    assert math.isclose((few[1] - few[0]) / (many[1] - many[0]), 2, rel_tol=1e-2)


def test_the_line_below_a_table_speaks_of_the_least_certain_share():
    assert widest([0.0, 0.5], 100).endswith("(Wilson, 100 samples): at most +-9.6 points")
