"""Planes enclose the products of gated cells, for any slopes, with exact gradients."""

import pytest
import torch
from torch.autograd import gradcheck

from popqorn_train.relaxations.domain import Rectangle
from popqorn_train.relaxations.extremum import product_intercept
from popqorn_train.relaxations.planes import enclosing
from popqorn_train.relaxations.products import MEMORY, SIGMOID_TANH
from popqorn_train.relaxations.tanh_product import _on_border, sigmoid_tanh_intercept
from tests.problems import F64

pytestmark = pytest.mark.usefixtures("loops")


def sigmoid_identity(x, y):
    return x.sigmoid() * y


def sigmoid_tanh(x, y):
    return x.sigmoid() * y.tanh()


def planes_over(product):
    def planes(box, share=product.share):
        return enclosing(product._replace(share=share), box)

    return planes


PRODUCTS = {
    "memory": (sigmoid_identity, planes_over(MEMORY), product_intercept),
    "sigmoid_tanh": (sigmoid_tanh, planes_over(SIGMOID_TANH), sigmoid_tanh_intercept),
}
products = pytest.mark.parametrize(("f", "planes", "intercept"), PRODUCTS.values(), ids=PRODUCTS)
shares = pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 1.0])


def boxes(width, count=300, *, spread=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    center = spread * torch.randn(2, 1, count, generator=generator, dtype=F64)
    half = width * torch.rand(2, 1, count, generator=generator, dtype=F64) / 2
    (lx, ly), (ux, uy) = center - half, center + half
    return Rectangle(lx, ux, ly, uy)


def across(box, count=31):
    """A grid of points of every box, from corner to corner, on a new first axis."""
    share = torch.linspace(0, 1, count, dtype=box.lx.dtype)
    u, v = (part.reshape(-1, 1, 1) for part in torch.meshgrid(share, share, indexing="ij"))
    x, y = torch.lerp(box.lx, box.ux, u), torch.lerp(box.ly, box.uy, v)
    x = torch.minimum(torch.maximum(x, box.lx), box.ux)
    return x, torch.minimum(torch.maximum(y, box.ly), box.uy)


def gaps(f, planes, x, y):
    """How far the lower plane lies below f, and the upper one above."""
    lower, upper = (plane.x * x + plane.y * y + plane.intercept for plane in planes)
    return f(x, y) - lower, upper - f(x, y)


@pytest.mark.parametrize("width", [0.0, 1e-9, 1e-4, 0.1, 2.0, 20.0, 200.0])
@shares
@products
def test_planes_enclose_the_product(f, planes, intercept, share, width):
    box = boxes(width)
    for gap in gaps(f, planes(box, share), *across(box)):
        assert (gap >= -1e-14 * (1 + width)).all()


@pytest.mark.parametrize("gate", [-1e3, -90.0, -30.0, 0.0, 30.0, 90.0, 1e3])
@pytest.mark.parametrize("other", [-100.0, -20.0, 0.0, 20.0, 100.0])
@products
def test_planes_enclose_saturated_products(f, planes, intercept, gate, other):
    for width in (0.0, 1e-3, 3.0, 60.0):
        ends = (gate - width, gate, other, other + width)
        box = Rectangle(*[torch.full((1, 1), end, dtype=F64) for end in ends])
        for gap in gaps(f, planes(box), *across(box)):
            assert (gap >= -1e-11).all()


@pytest.mark.parametrize("width", [0.0, 1e-5, 1e-3, 1.0, 20.0])
@products
def test_float32_planes_enclose_the_real_product(f, planes, intercept, width):
    box = Rectangle(*[end.float() for end in boxes(width, 1000)])
    found = [type(plane)(*[field.double() for field in plane]) for plane in planes(box)]
    for gap in gaps(f, found, *across(Rectangle(*[end.double() for end in box]))):
        assert (gap >= 0).all()


def test_gates_that_are_nearly_shut_count_beside_large_states():
    """A slope below 1e-36 of the state is taken for that: its gate is none of the smallest."""
    ends = [torch.full((1, 8), end) for end in (-99.0, -82.0, -6e7, -5.9e7)]
    found = [
        type(plane)(*[field.double() for field in plane])
        for plane in planes_over(MEMORY)(Rectangle(*ends))
    ]
    for gap in gaps(sigmoid_identity, found, *across(Rectangle(*[end.double() for end in ends]))):
        assert (gap >= 0).all()


def test_edges_end_at_the_end_for_slopes_that_point_there_a_little():
    """A negative ratio of slopes near 0 must not stop on the way to a far end."""
    ends = [torch.full((1, 1), end, dtype=F64) for end in (-3000.0, -60.0, -4.0, 50.0)]
    for slope in (1e-26, 1e-29, 1e-33):
        a = torch.full((1, 1), slope, dtype=F64)
        top = product_intercept(a, torch.zeros_like(a), *ends)
        assert top >= 3000 * slope


@products
def test_planes_of_a_point_are_exact(f, planes, intercept):
    box = boxes(0.0)
    for gap in gaps(f, planes(box), box.lx, box.ly):
        assert gap.abs().max() < 1e-13


@shares
@products
def test_planes_touch_the_product(f, planes, intercept, share):
    box = boxes(2.0)
    for gap in gaps(f, planes(box, share), *across(box, 101)):
        assert (gap.amin(0) < 1e-3).all()


@products
def test_the_lower_plane_mirrors_the_upper_plane(f, planes, intercept):
    box = boxes(2.0)
    lower, _ = planes(box)
    _, upper = planes(Rectangle(box.lx, box.ux, -box.uy, -box.ly))
    for one, two in zip(lower, (-upper.x, upper.y, -upper.intercept), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-14)


@pytest.mark.parametrize("width", [0.5, 4.0])
@products
def test_intercepts_of_any_slopes_are_exact(f, planes, intercept, width):
    generator = torch.Generator().manual_seed(1)
    box = boxes(width)
    x, y = across(box, 101)
    for scale in (0.0, 0.05, 0.3, 1.0):
        a, b = scale * torch.randn(2, *box.lx.shape, generator=generator, dtype=F64)
        gap = intercept(a, b, *box) - (f(x, y) - a * x - b * y).amax(0)
        assert (gap >= 0).all()
        assert (gap < 2e-3 * width).all()


def test_interior_maxima_near_the_double_root_are_enclosed():
    # r(w) = w sqrt((1-w)(beta-w)) has its peak where the interior maximum meets a saddle.
    b = torch.tensor([1e-12, 0.01, 0.3, 0.7, 0.99, 1 - 1e-10], dtype=F64)[None]
    beta, spread = 1 - b, 6 - 3 * b
    w = 4 * beta / (spread + (spread**2 - 32 * beta).sqrt())
    peak = w * ((1 - w) * (beta - w)).sqrt()
    wide = torch.full_like(b, 8)
    box = Rectangle(-wide, wide, -wide, wide)
    x, y = across(box, 201)
    for share in (1 - 1e-14, 1 - 1e-8, 0.999, 0.5, 1 + 1e-10):
        a = share * peak
        gap = sigmoid_tanh_intercept(a, b, *box) - (sigmoid_tanh(x, y) - a * x - b * y).amax(0)
        assert (gap >= 0).all()
        assert (gap < 2e-2).all()


@shares
@products
def test_gradients_of_planes_are_exact(f, planes, intercept, share):
    for width in (0.3, 2.0):
        box = boxes(width, 6, seed=3)
        wide = Rectangle(box.lx - 0.1, box.ux + 0.1, box.ly - 0.1, box.uy + 0.1)
        ends = tuple(end.clone().requires_grad_() for end in wide)
        assert gradcheck(lambda *ends: sum(planes(Rectangle(*ends), share), ()), ends)


@products
def test_gradients_of_intercepts_are_exact_for_free_slopes(f, planes, intercept):
    generator = torch.Generator().manual_seed(2)
    slopes = 0.2 * torch.randn(2, 1, 8, generator=generator, dtype=F64)
    parts = (*slopes, *boxes(2.0, 8))
    assert gradcheck(intercept, tuple(part.clone().requires_grad_() for part in parts))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@products
def test_gradients_are_finite_for_saturated_and_zero_width_boxes(f, planes, intercept, dtype):
    values = torch.tensor([-1e4, -100, -20, -1, 0, 1, 20, 100, 1e4], dtype=dtype)
    x, y = (part.reshape(1, -1) for part in torch.meshgrid(values, values, indexing="ij"))
    for width in (0.0, 1e-6, 1.0, 1e4):
        ends = [end.requires_grad_() for end in (x - width, x + width, y - width, y + width)]
        fields = sum(planes(Rectangle(*ends)), ())
        assert all(field.isfinite().all() for field in fields)
        for gradient in torch.autograd.grad(sum(field.sum() for field in fields), ends):
            assert gradient.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@shares
@products
def test_planes_enclose_a_million_points(f, planes, intercept, share, dtype):
    for seed, width in enumerate((0.01, 0.3, 3.0, 30.0)):
        box = Rectangle(*[end.to(dtype) for end in boxes(width, 10_000, spread=10.0, seed=seed)])
        found = [type(plane)(*[field.double() for field in plane]) for plane in planes(box, share)]
        for gap in gaps(f, found, *across(Rectangle(*[end.double() for end in box]), 11)):
            assert (gap >= (0 if dtype == torch.float32 else -1e-12)).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_maxima_inside_are_the_same_picked_out_or_not(dtype, monkeypatch):
    box = Rectangle(*[end.to(dtype) for end in boxes(6.0, 2000)])
    found = []
    for many in (0, 10**6):  # never looks at all boxes, always does
        monkeypatch.setattr("popqorn_train.relaxations.tanh_product._MANY", many)
        found.append(enclosing(SIGMOID_TANH, box))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.intercept, other.intercept, rtol=0, atol=1e-6)
    border = _on_border(found[0].upper.x, found[0].upper.y, *box).height
    assert (found[0].upper.intercept > border + 1e-3).any()
