"""Quadratics below what linear functions miss of nonlinearities."""

import pytest
import torch

from popqorn_train.bounds.activation import _CURVES as SMOOTH
from popqorn_train.relaxations import curves
from popqorn_train.relaxations.domain import Bands, Octagon, Rectangle
from popqorn_train.relaxations.gap_search import least_gap
from popqorn_train.relaxations.paraboloids import below_curve, below_product
from popqorn_train.relaxations.products import MEMORY, SIGMOID_TANH
from popqorn_train.relaxations.strips import LineStrip, PlaneStrip, tanh_strip

F64 = torch.float64
dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64])
CURVES = {
    **SMOOTH,
    "elu": curves.elu(2.0),
    "leaky": curves.leaky_relu(0.1),
    "clamp": curves.clamp(-0.3, 0.7),
}


def random(shape, *, seed, low=-3.0, high=3.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=F64)


def octagon_of(seed, dtype, units=64, far=2.0):
    """Boxes of all widths, cut by bands."""
    middle, half = (
        random((2, 1, units), seed=seed, low=-far, high=far),
        random((2, 1, units), seed=seed + 1, low=-4, high=0.5),
    )
    half = 10**half
    ends = [middle[0] - half[0], middle[0] + half[0], middle[1] - half[1], middle[1] + half[1]]
    wide = random((4, 1, units), seed=seed + 2, low=0.1, high=2.0)
    bands = Bands(-wide[0], wide[1], -wide[2], wide[3])
    box = Rectangle(*[end.to(dtype) for end in ends])
    return Octagon(box, Bands(*[band.to(dtype) for band in bands]))


def points_in(octagon, count=2000):
    """Points ``(P, B, U)`` of a box, and which of them the bands leave."""
    p, q = random((2, count, *octagon.box.lx.shape), seed=5, low=-1.0, high=1.0)
    p[:4, :], q[:4, :] = (
        torch.tensor(signs, dtype=F64).view(4, 1, 1) for signs in ((1, 1, -1, -1), (1, -1, 1, -1))
    )
    x, half_x, y, half_y = (part.to(F64) for part in octagon.scale())
    low, high, down, up = (band.to(F64) for band in octagon.bands)
    inside = (p + q >= low) & (p + q <= high) & (p - q >= down) & (p - q <= up)
    return x + half_x * p, y + half_y * q, inside


def value(quadratic, p, q):
    one, on_p, on_q, pp, pq, qq = quadratic
    return one + on_p * p + on_q * q + pp * p * p + pq * p * q + qq * q * q


@dtypes
@pytest.mark.parametrize("product", [SIGMOID_TANH, MEMORY], ids=["sigmoid_tanh", "memory"])
@pytest.mark.parametrize("far", [2.0, 50.0])
def test_quadratics_lie_below_what_a_plane_misses(product, far, dtype):
    shares = []
    for seed in range(6):
        octagon = octagon_of(3 * seed, dtype, far=far)
        strip = PlaneStrip(*[part.to(F64) for part in least_gap(product, octagon)])
        sign = torch.where(random((1, 64), seed=seed) < 0, -1.0, 1.0).to(F64)
        quadratic, axes = below_product(product, octagon, strip, sign)
        x, y, inside = points_in(octagon)
        missed = sign * (product.value(x, y) - strip.x * x - strip.y * y - strip.middle)
        p, q = ((z - axis.middle) / axis.half for z, axis in zip((x, y), axes, strict=True))
        over = (value(quadratic, p, q) - missed)[inside]
        assert over.max() <= 0
        wide = (octagon.box.ux - octagon.box.lx > 0.1) & (octagon.box.uy - octagon.box.ly > 0.1)
        above = ((missed - value(quadratic, p, q)) * inside).sum(0) / inside.sum(0).clamp(min=1)
        shares.append((above / strip.half)[wide & inside.any(0)])
    assert far > 2 or torch.cat(shares).median() < 0.25  # a plane loses the whole half


@pytest.mark.parametrize("name", CURVES)
def test_quadratics_lie_below_what_a_line_misses(name):
    curve = CURVES[name]
    for seed in range(4):
        middle, half = random((1, 64), seed=seed), 10 ** random((1, 64), seed=9, low=-5, high=0.7)
        lower, upper = middle - half, middle + half
        slope = random((1, 64), seed=seed + 1, low=-0.2, high=1.0)
        strip = LineStrip(slope, random((1, 64), seed=3), torch.ones_like(slope))
        sign = torch.where(random((1, 64), seed=seed + 2) < 0, -1.0, 1.0).to(F64)
        quadratic, axis = below_curve(curve, lower, upper, strip, sign)
        share = torch.linspace(0, 1, 4001, dtype=F64).view(-1, 1, 1)
        x = torch.lerp(lower, upper, share).clamp(lower, upper)
        missed = sign * (curve.value(x) - slope * x - strip.middle)
        found = value(quadratic, (x - axis.middle) / axis.half, torch.zeros_like(x))
        assert (found - missed).max() <= 0


def test_a_parabola_takes_most_of_what_a_line_misses_of_tanh():
    lower, upper = torch.tensor([[0.2]], dtype=F64), torch.tensor([[1.2]], dtype=F64)
    strip, sign = tanh_strip(lower, upper), torch.ones(1, 1, dtype=F64)
    quadratic, axis = below_curve(SMOOTH["tanh"], lower, upper, strip, sign)
    x = torch.linspace(0.2, 1.2, 101, dtype=F64).view(-1, 1, 1)
    missed = x.tanh() - strip.slope * x - strip.middle
    p = (x - axis.middle) / axis.half
    assert (missed - value(quadratic, p, 0 * p)).mean() < 0.25 * (missed + strip.half).mean()
    assert quadratic.pp.item() < 0  # tanh is concave there


@dtypes
def test_what_has_no_width_has_next_to_no_gap(dtype):
    point = torch.tensor([[0.5, -30.0, 200.0]], dtype=dtype)
    box = Rectangle(point, point, point, point)
    two = torch.full_like(point, 2.0)
    octagon = Octagon(box, Bands(-two, two, -two, two))
    strip = PlaneStrip(*[part.to(F64) for part in least_gap(SIGMOID_TANH, octagon)])
    quadratic, axes = below_product(SIGMOID_TANH, octagon, strip, torch.ones(1, 3, dtype=F64))
    p, q = ((point.to(F64) - axis.middle) / axis.half for axis in axes)
    found = value(quadratic, p, q)
    missed = SIGMOID_TANH.value(point.to(F64), point.to(F64)) - strip.x * point - strip.y * point
    assert (found <= missed - strip.middle).all()
    assert (found >= -1e3 * torch.finfo(dtype).eps * (1 + point.abs())).all()
