"""What a bad region holds, beside the boxes and planes of test_rebound.py."""

import math

import pytest
import torch

from popqorn_train import LpBall
from popqorn_train.bounds import rebound
from popqorn_train.bounds.contradiction import refute
from popqorn_train.bounds.rebound import BadRegion
from popqorn_train.perturbations.region import Bounds
from tests.bounds.test_rebound import EVERYTHING, RELAXATION, region_of, values_at
from tests.problems import F64, build, points_inside, predicted, sequences


def problem(cell, batch=1, **options):
    model, x = build(cell, seed=1, **options), sequences(batch, 3, seed=1)
    return model, x, predicted(model, x)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("cell", ["tanh", "lstm"])
def test_every_input_up_to_the_threshold_stays_in_the_boxes(cell):
    model, x, y = problem(cell)
    points = points_inside(model, x, 0.15, math.inf, count=300)[:, 0]
    with torch.no_grad():
        region, *_, rows = region_of(model, x, y, LpBall(0.15), (y + 1) % 3)
        margins = model(points) @ rows[0]
        region.threshold = margins.sort().values[20:21]
        for _ in range(4):
            region.tighten(RELAXATION, EVERYTHING, 2.0)
        assert not region.empty.any()
        assert region.least_margin() <= margins.amin() + 1e-12
        for point in points[margins <= region.threshold]:
            truth = values_at(model, point[None], region._output)
            for node, box in region._found.ranges.items():
                if node in truth:
                    assert (truth[node].lower >= box.lower - 1e-9).all()
                    assert (truth[node].upper <= box.upper + 1e-9).all()


@torch.no_grad()
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bounds_that_are_no_numbers_cut_nothing(value):
    model, x, y = problem("lstm")
    _, output, found, rows = region_of(model, x, y, LpBall(0.1), (y + 1) % 3)
    one = torch.ones(1, dtype=F64)
    region = BadRegion.of(output, found, torch.tensor([0]), rows * value, Bounds(-one, one))
    before = dict(region._found.ranges)
    region.tighten(RELAXATION, EVERYTHING, 2.0)
    assert not region.empty.any()
    for node, bounds in before.items():
        for old, new in zip(bounds, region._found.ranges[node], strict=True):
            torch.testing.assert_close(new, old.expand_as(new), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_part_of_a_region_knows_what_is_empty():
    model, x, y = problem("tanh", batch=3)
    region, *_ = region_of(model, x, y, LpBall(0.1), (y + 1) % 3)
    region.empty = torch.tensor([True, False, False])
    assert region.pick(torch.tensor([2, 0])).empty.tolist() == [False, True]


@torch.no_grad()
def test_multipliers_on_bands_raise_the_least_margin(monkeypatch):
    model, x, y = problem("lstm", gain=2.0)
    least = []
    for band in (rebound._BAND, 0.0):
        monkeypatch.setattr(rebound, "_BAND", band)
        region, *_ = region_of(model, x, y, LpBall(0.3), (y + 1) % 3)
        for index in range(4):
            region.tighten(RELAXATION, EVERYTHING, 1 + 2 * 0.75**index)
        least.append(region.least_margin().item())
    assert least[0] > least[1] + 1e-3


class Bounded:
    """A region of pairs of which nothing is known but how small the margin may be."""

    def __init__(self, least, threshold):
        self.least, self.threshold = least, torch.full_like(least, threshold)
        self.empty = torch.zeros_like(least, dtype=torch.bool)
        self.spread = torch.ones_like(least)

    def tighten(self, *_):
        """Nothing is gained."""

    def least_margin(self):
        return self.least

    def pick(self, chosen):
        return Bounded(self.least[chosen], self.threshold[0].item())


def test_only_a_margin_beyond_the_threshold_refutes():
    threshold, one = 1e-9, torch.ones(6, dtype=F64)
    least = torch.tensor([-5e-8, 0.0, 1e-9, 1.1e-9, math.nan, math.inf], dtype=F64)
    best = refute(Bounded(least, threshold), -one, relaxation=RELAXATION, budget=EVERYTHING)
    assert (best > 0).tolist() == [False, False, True, True, False, False]
