"""Bands of octagons hold every point that their rows were bounded on."""

import pytest
import torch

from popqorn_train.bounds.node import Node
from popqorn_train.bounds.relaxer import Argument, band_rows, bands_from
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.domain import Rectangle
from tests.problems import F64

UNITS = 40


def arguments(points):
    """Two arguments with the ranges of their points, one of them read with a minus."""
    ranges = [Bounds(p.amin(0).float(), p.amax(0).float()) for p in points]
    x, y = (Argument(Node([], (UNITS,)), bounds) for bounds in ranges)
    return x, y.mirrored()


def bounded_on(points, terms):
    """Least value over points ``(P, B, H)`` of each node, in float32."""
    values = [
        torch.einsum("bkh,pbh->pbk", rows.double(), p)
        for (_, rows), p in zip(terms, points, strict=True)
    ]
    return sum(values).amin(0).float()


@pytest.mark.parametrize("far", [0.0, 10.0, 1e4])
def test_every_point_lies_in_the_bands_that_come_from_its_rows(far):
    center = far * torch.randn(2, 1, 3, UNITS, dtype=F64)
    along, across = 2 * torch.rand(2, 50, 3, UNITS, dtype=F64) - 1
    points = (center + torch.stack([along + across / 5, along - across / 5])).float().double()
    x, y = arguments(points)
    box = Rectangle(*x.bounds, *y.bounds)
    scale = box.scale()
    unit = torch.eye(UNITS)
    bands = bands_from(bounded_on(points, band_rows(scale, x, y, unit)), box)
    p = (points[0] - scale.x.double()) / scale.half_x.double()
    q = (-points[1] - scale.y.double()) / scale.half_y.double()
    inside = (p.abs() <= 1) & (q.abs() <= 1)  # the box itself is rounded
    low, high, diff_low, diff_high = (band.double() for band in bands)
    assert ((low <= p + q) & (p + q <= high))[inside].all()
    assert ((diff_low <= p - q) & (p - q <= diff_high))[inside].all()
    assert (high - low).mean() < 1.5  # the sum is cut, which the box alone lets reach 4
