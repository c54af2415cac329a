"""Curves of margins: exact at 0, at what was computed, and at roots that are known."""

import math

import pytest
import torch

from popqorn_train.certificates.margin_curve import MarginCurve
from tests.problems import F64

ONE = torch.ones(4, dtype=F64)
CLEAN, FALL = (
    torch.tensor([1.0, 2.0, 0.1, 5.0], dtype=F64),
    torch.tensor([3.0, 0.5, 1.0, 40.0], dtype=F64),
)
NOTHING = ONE, ONE * math.nan


def fallen(r, tilt, bend):
    return CLEAN - FALL * r * (tilt * r + bend * r**2).exp()


@pytest.mark.parametrize("level", [0.0, -0.45, 0.5])
@pytest.mark.parametrize(("tilt", "bend"), [(0.0, 0.0), (2.0, 0.5), (-0.05, 0.01), (3.0, -0.05)])
def test_two_margins_give_the_curve_that_they_lie_on(tilt, bend, level):
    points = [
        (share * CLEAN / FALL, fallen(share * CLEAN / FALL, tilt, bend)) for share in (0.3, 0.6)
    ]
    curve = MarginCurve.through(CLEAN, FALL, *points)
    torch.testing.assert_close(curve.tilt, tilt * ONE, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fallen(curve.reach(level), tilt, bend), level * CLEAN)


@pytest.mark.parametrize("rate", [0.5, 2.0, 4.0])
def test_one_margin_is_continued_as_an_exponential(rate):
    rate = rate * FALL / CLEAN
    root = (1 + rate * CLEAN / FALL).log() / rate
    r = 0.7 * root
    margin = CLEAN - FALL * (rate * r).expm1() / rate
    found = MarginCurve.through(CLEAN, FALL, (r, margin), NOTHING).reach()
    torch.testing.assert_close(found, root, rtol=1e-2, atol=0)


@pytest.mark.parametrize(("tilt", "bend"), [(2.0, 0.5), (-0.05, 0.2), (3.0, -0.5)])
def test_one_margin_and_a_bend_that_is_known_give_the_root(tilt, bend):
    tilt, bend = tilt * FALL / CLEAN, bend * (FALL / CLEAN) ** 2  # whatever the unit of epsilon
    root = MarginCurve(CLEAN, FALL, tilt, bend, 0.5 * CLEAN / FALL).reach()
    point = 1.07 * root, fallen(1.07 * root, tilt, bend)
    curve = MarginCurve.through(CLEAN, FALL, point, NOTHING, bend * root**2)
    torch.testing.assert_close(curve.reach(), root, rtol=1e-2, atol=0)
    torch.testing.assert_close(curve.bend_at(point[0]), bend * root**2)
    unknown = MarginCurve.through(CLEAN, FALL, point, NOTHING, ONE * math.nan)
    natural = MarginCurve.through(CLEAN, FALL, point, NOTHING)
    torch.testing.assert_close(unknown.reach(), natural.reach())
    assert ((curve.reach() - root).abs() < (natural.reach() - root).abs()).all()


def test_a_curve_that_stays_above_a_margin_does_not_reach_it():
    r = 0.5 * CLEAN / FALL
    curve = MarginCurve(CLEAN, FALL, 0 * ONE, -5 * (FALL / CLEAN) ** 2, r)
    assert curve.reach().isnan().all()
    assert MarginCurve.through(CLEAN, FALL, NOTHING, NOTHING).reach().isnan().all()


def test_the_same_epsilon_twice_counts_once():
    r = 0.5 * CLEAN / FALL
    point = r, fallen(r, 1.0, 0.0)
    twice, once = (MarginCurve.through(CLEAN, FALL, point, other) for other in (point, NOTHING))
    torch.testing.assert_close(twice.reach(), once.reach())
