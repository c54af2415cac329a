"""Where a search for radii begins changes how many margins it takes, and not what it finds."""

import math

import pytest
import torch

from popqorn_train import LpBall, Start, certified_radius
from popqorn_train.bounds.methods import Popqorn
from popqorn_train.certificates.radius import search_radius
from tests.certificates.test_radius import RTOL, problem, some_cells
from tests.problems import F64


@pytest.mark.one_in(3)
@pytest.mark.parametrize("start", [0.0, 1e-9, 1e9, math.nan, math.inf, -1.0])
def test_any_start_leads_to_the_same_radius(start):
    model, x, y = problem("tanh")
    method = Popqorn("lambda", ())  # a smooth margin crosses 0 once
    start = torch.full((24,), start, dtype=F64)
    expected = certified_radius(model, x, y, p=2, method=method)
    found = certified_radius(model, x, y, p=2, method=method, start=start)
    torch.testing.assert_close(found, expected, rtol=2 * RTOL, atol=0)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("rate", [0.0, 1e-9, 1e9, math.nan, math.inf, -1.0, -1e9])
def test_any_rate_leads_to_the_same_radius(rate):
    model, x, y = problem("tanh")
    method = Popqorn("lambda", ())
    found = search_radius(model, x, y, LpBall(0.0, 2), method=method)
    start = Start(found.radius, torch.full((24,), rate, dtype=F64))
    again = certified_radius(model, x, y, p=2, method=method, start=start)
    torch.testing.assert_close(again, found.radius, rtol=2 * RTOL, atol=0)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("bend", [0.0, 1e-9, 1e9, math.inf, -1.0, -1e9])
def test_any_bend_leads_to_the_same_radius(bend):
    model, x, y = problem("tanh")
    method = Popqorn("lambda", ())
    found = search_radius(model, x, y, LpBall(0.0, 2), method=method)
    start = found.start._replace(bend=torch.full((24,), bend, dtype=F64))
    again = certified_radius(model, x, y, p=2, method=method, start=start)
    torch.testing.assert_close(again, found.radius, rtol=2 * RTOL, atol=0)


def test_the_start_of_some_samples_is_a_part_of_that_of_all():
    model, x, y = problem("tanh")
    found = search_radius(model, x, y, LpBall(0.0, 2))
    some = torch.tensor([5, 1])
    for part, whole in zip(found.start.of(some), found.start, strict=True):
        torch.testing.assert_close(part, whole[some], equal_nan=True)
    assert found.bend[found.radius > 0].isfinite().any()
    assert Start(found.radius, found.rate).of(some).bend is None


@pytest.mark.one_in(2)
@some_cells
def test_other_weights_take_fewer_evaluations_from_the_rates_of_the_last_ones(cell):
    model, x, y = problem(cell, batch=64, time=6)
    ball, smooth = LpBall(0.0, 2), Popqorn("lambda", ())
    last = search_radius(model, x, y, ball, method=smooth)
    with torch.no_grad():
        model.head.weight.mul_(1.5)  # radii stay
        model.head.bias.mul_(1.5)
        model.rnn.weight_ih_l0.mul_(1.1)  # radii shrink
    counts = [
        search_radius(model, x, y, ball, rtol=1e-2, method=smooth, start=start).evaluations
        for start in (None, last.radius, last.start)
    ]
    cold, radii, rates = (count.double().mean() for count in counts)
    assert rates <= min(cold, radii) + 0.1
    assert rates <= (7.5 if cell == "relu" else 7)


def test_a_start_of_another_batch_is_refused():
    model, x, y = problem("gru", batch=4)
    found = search_radius(model, x, y, LpBall(0.0))
    known = Start(found.radius[:3], found.rate[:3], found.bend)
    for start in (found.start, found.radius, known):
        with pytest.raises(
            ValueError, match=r"`start` must hold radii of shape \(3,\), got \(4,\)"
        ):
            certified_radius(model, x[:3], y[:3], start=start)
