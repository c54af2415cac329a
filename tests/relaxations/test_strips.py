"""One linear function through a nonlinearity misses it by no more than it says, and by little."""

import pytest
import torch
from torch.autograd import gradcheck

from popqorn_train.relaxations.curves import CURVES
from popqorn_train.relaxations.domain import Octagon, Rectangle
from popqorn_train.relaxations.gap_search import least_gap
from popqorn_train.relaxations.lines import tanh_lines
from popqorn_train.relaxations.products import MEMORY, SIGMOID_TANH
from popqorn_train.relaxations.strips import (
    chords,
    relu_strip,
    sigmoid_strip,
    strip_of_lines,
    tanh_strip,
)
from tests.problems import F64
from tests.relaxations.test_octagon import (
    beside,
    mixtures,
    octagons,
    points_of,
    rectangles,
    whole,
)

pytestmark = pytest.mark.usefixtures("loops")

PRODUCTS = (SIGMOID_TANH, MEMORY)
products = pytest.mark.parametrize("product", PRODUCTS, ids=[p.name for p in PRODUCTS])
strips = pytest.mark.parametrize("strip", [least_gap, chords], ids=["least_gap", "chords"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64])
LINES = {
    "tanh": (torch.tanh, tanh_strip),
    "sigmoid": (torch.sigmoid, sigmoid_strip),
    "relu": (torch.relu, relu_strip),
}


def missed(product, domain, found, points=points_of, **options):
    """By how much f is off the plane at points, and what the plane allows, in float64."""
    x, y = points(domain, **options)
    a, b, middle, half = (part.double() for part in found)
    return (product.value(x, y) - a * x - b * y - middle).abs(), half


@pytest.mark.parametrize("width", [0.0, 1e-7, 1e-3, 0.3, 2.0, 8.0, 60.0, 400.0])
@dtypes
@strips
@products
def test_no_point_of_the_domain_is_farther_from_the_plane_than_it_says(
    product, strip, dtype, width
):
    for spread in (1.0, 30.0):
        for domain in (
            rectangles(width, spread=spread, dtype=dtype),
            octagons(width, spread=spread, dtype=dtype),
        ):
            found = strip(product, domain)
            assert all(part.isfinite().all() for part in found)
            off, half = missed(product, domain, found)
            assert (off <= half * (1 + 1e-12) + 1e-15).all()


@dtypes
@strips
@products
def test_the_same_where_the_octagon_lies_beside_the_middle(product, strip, dtype):
    for width in (0.3, 4.0, 20.0):
        domain = beside(width, 1000, spread=2.0, dtype=dtype)
        off, half = missed(product, domain, strip(product, domain), points=mixtures)
        assert (off <= half + (1e-13 if dtype == F64 else 1e-5)).all()


@strips
@products
def test_the_same_where_the_square_is_wider_than_the_box(product, strip):
    """A side of next to no width counts as a little one: what is on its border is no longer f."""
    generator = torch.Generator().manual_seed(0)
    y = torch.empty(1, 4000).uniform_(-14, -13.4, generator=generator).exp()
    x = torch.empty(1, 4000).uniform_(1, 12, generator=generator)
    zero = torch.zeros_like(x)
    for box in (Rectangle(zero, x, -y, zero), Rectangle(zero, x, zero, y)):
        off, half = missed(product, box, strip(product, box))
        assert (off <= half).all()


@pytest.mark.slow
@dtypes
@strips
@products
def test_a_hundred_million_points(product, strip, dtype):
    for seed in range(40):
        for width in (0.01, 0.1, 0.5, 1.0, 3.0, 10.0, 30.0):
            for make in (rectangles, octagons):
                domain = make(width, 150, seed=seed, spread=2.0, dtype=dtype)
                off, half = missed(product, domain, strip(product, domain), count=600, seed=seed)
                assert (off <= half * (1 + 1e-12) + 1e-15).all()


@pytest.mark.one_in(4)
@products
def test_least_gap_is_nearly_attained_and_smaller_than_that_of_chords(product):
    for width, share in ((0.3, 0.98), (2.0, 0.95), (6.0, 0.9)):
        domain = octagons(width, spread=1.5)
        off, half = missed(product, domain, least_gap(product, domain), count=6000)
        assert (off.amax(0) / half).mean() > share
        assert (half.mean() / chords(product, domain).half.mean()) < 0.97


@products
def test_what_lies_between_points_far_apart_is_bounded_by_the_range(product):
    box = rectangles(60.0, spread=1.0)
    height = torch.maximum(product.g(box.ly).abs(), product.g(box.uy).abs())
    assert (least_gap(product, box).half < 1.01 * height).all()


@products
@strips
def test_a_box_is_an_octagon_that_cuts_nothing(product, strip):
    box = rectangles(1.0)
    for one, other in zip(strip(product, box), strip(product, whole(box)), strict=True):
        torch.testing.assert_close(one, other)


@products
@strips
def test_bands_that_cut_make_less_of_a_gap(product, strip):
    cut = octagons(1.0)
    free = strip(product, cut.box).half
    assert (strip(product, cut).half / free).mean() < 0.9


@strips
def test_a_product_with_a_constant_is_a_line(strip):
    x = torch.linspace(-2, 2, 9, dtype=F64)[None]
    still = torch.full_like(x, 0.7)
    found = strip(MEMORY, Rectangle(x, x + 0.5, still, still))
    line = sigmoid_strip(x, x + 0.5)
    torch.testing.assert_close(found.half, 0.7 * line.half, rtol=0.05, atol=1e-12)


@pytest.mark.parametrize("scale", [0.2, 2.0])
@products
def test_gradients_of_chords_are_exact(product, scale):
    box = [end.requires_grad_() for end in rectangles(scale, 5, spread=1.0)]
    bands = [band.requires_grad_() for band in octagons(scale, 5).bands]

    def run(lx, ux, ly, uy, *bands):
        box = Rectangle(lx, ux, ly, uy)
        return chords(product, Octagon(box, type(octagons(1.0, 1).bands)(*bands)))

    assert gradcheck(run, (*box, *bands))


@pytest.mark.parametrize("name", LINES)
@dtypes
def test_a_line_misses_an_activation_by_exactly_what_it_says(name, dtype):
    f, strip = LINES[name]
    for width in (0.0, 1e-6, 0.1, 2.0, 30.0):
        box = rectangles(width, dtype=dtype)
        slope, middle, half = (part.double() for part in strip(box.lx, box.ux))
        share = torch.linspace(0, 1, 2001, dtype=F64).view(-1, 1, 1)
        x = torch.lerp(box.lx.double(), box.ux.double(), share)
        off = (f(x) - slope * x - middle).abs()
        assert (off <= half + 1e-15).all()
        if width >= 0.1 and dtype is F64:
            assert (off.amax(0) >= 0.99 * half - 1e-7 * (1 + width)).all()


def test_lines_of_any_function_make_a_strip():
    box = rectangles(3.0)
    share = torch.linspace(0, 1, 501, dtype=F64).view(-1, 1, 1)
    x = torch.lerp(box.lx, box.ux, share)
    for curve in (CURVES["gelu"](), CURVES["softplus"](), CURVES["abs"]()):
        slope, middle, half = strip_of_lines(curve.lines(box.lx, box.ux), box.lx, box.ux)
        assert ((curve.value(x) - slope * x - middle).abs() <= half + 1e-15).all()
    ours, own = strip_of_lines(tanh_lines(box.lx, box.ux), box.lx, box.ux), tanh_strip(*box[:2])
    assert (own.half <= ours.half + 1e-12).all()
