"""Compiled planes enclose the products wherever they are looked at, and are those of torch."""

import itertools
import math

import numpy as np
import pytest
import torch

from popqorn_train.kernels.enclosing import planes
from popqorn_train.kernels.library import SWITCH, kernels
from popqorn_train.relaxations.domain import Bands, Octagon, Rectangle
from popqorn_train.relaxations.planes import enclosing
from popqorn_train.relaxations.products import MEMORY, SIGMOID_TANH
from popqorn_train.relaxations.slopes import POLICIES, closed_form, tilted
from tests.problems import F64

pytestmark = pytest.mark.skipif(kernels().library is None, reason="no compiled loops")

F32 = torch.float32
# Sizes of the middle and of the half widths: all sizes between two of each are equally likely.
BOXES = {
    "usual": ((0.1, 6), (1e-4, 4)),
    "wide": ((0.1, 30), (0.1, 100)),
    "narrow": ((1e-3, 30), (1e-12, 1e-3)),
    "saturated": ((5, 200), (1e-3, 100)),
    "huge": ((1, 1e12), (1e-3, 1e12)),
    "of all sizes": ((1e-6, 1e3), (1e-6, 1e3)),
}
boxes = pytest.mark.parametrize("sizes", BOXES.values(), ids=BOXES)
dtypes = pytest.mark.parametrize("dtype", [F32, F64])
products = pytest.mark.parametrize("product", [SIGMOID_TANH, MEMORY], ids=lambda p: p.name)
policies = pytest.mark.parametrize("policy", [closed_form, tilted], ids=["lambda", "tilted"])
shapes = pytest.mark.parametrize("octagon", [False, True], ids=["box", "octagon"])


def spread(shape, least, most, generator):
    return (
        torch.empty(shape, dtype=F64)
        .uniform_(math.log(least), math.log(most), generator=generator)
        .exp()
    )


def domain_of(sizes, count, dtype, *, octagon, seed=0):
    """Boxes, some of them points, and octagons, some of them beside the middle or empty."""
    generator = torch.Generator().manual_seed(seed)
    middle = spread((2, 1, count), *sizes[0], generator)
    middle = middle * (torch.randint(2, middle.shape, generator=generator) * 2 - 1)
    half = spread((2, 1, count), *sizes[1], generator)
    half[:, :, : count // 20] = 0
    (lx, ly), (ux, uy) = ((middle + sign * half).to(dtype) for sign in (-1, 1))
    box = Rectangle(lx, ux, ly, uy)
    if not octagon:
        return box
    reach = 2 * torch.rand(4, 1, count, generator=generator, dtype=F64)
    aside = torch.rand(4, 1, count, generator=generator) < 0.15
    ends = torch.where(aside, -0.3 * reach, reach).to(dtype)
    sums, diffs = ((torch.minimum(-low, high), high) for low, high in ends.view(2, 2, 1, count))
    return Octagon(box, Bands(*sums, *diffs))


def points_in(domain, count, seed=0):
    """Points of every domain, many on its border, and which of them lie inside."""
    generator = torch.Generator().manual_seed(seed)
    lx, ux, ly, uy = (end.double() for end in domain.box)
    u, v = torch.rand(2, count, *lx.shape, generator=generator, dtype=F64)
    third = count // 3
    u[:third], v[third : 2 * third] = u[:third].round(), v[third : 2 * third].round()
    x, y = (torch.lerp(*ends, w) for ends, w in (((lx, ux), u), ((ly, uy), v)))
    held = torch.ones_like(x, dtype=torch.bool)
    if isinstance(domain, Octagon):
        scale = [part.double() for part in domain.scale()]
        low, high, diff_low, diff_high = (band.double() for band in domain.bands)
        p, q = (x - scale[0]) / scale[1], (y - scale[2]) / scale[3]
        for _ in range(3):  # onto the bands, from outside
            step = ((p + q).clamp(low, high) - p - q) / 2
            p, q = p + step, q + step
            step = ((p - q).clamp(diff_low, diff_high) - p + q) / 2
            p, q = p + step, q - step
        x, y = scale[0] + scale[1] * p, scale[2] + scale[3] * q
    x, y = x.clamp(lx, ux), y.clamp(ly, uy)
    if isinstance(domain, Octagon):
        p, q = (x - scale[0]) / scale[1], (y - scale[2]) / scale[3]
        held = (low <= p + q) & (p + q <= high) & (diff_low <= p - q) & (p - q <= diff_high)
    return x.numpy(), y.numpy(), held.numpy()


def compiled(product, domain, policy):
    found = enclosing(product, domain, policy)
    assert found.lower.x.data_ptr() + 5 * found.lower.x.nbytes == found.upper.intercept.data_ptr()
    return found


def gaps(product, domain, found, count, seed=0):
    """How far f lies from both planes in long doubles, with the points that are inside."""
    x, y, held = points_in(domain, count, seed)
    x, y = x.astype(np.longdouble), y.astype(np.longdouble)
    small = np.exp(-np.abs(x))
    f = np.where(x < 0, small, 1) / (1 + small) * (np.tanh(y) if product.curved else y)
    below, above = ([part.numpy().astype(np.longdouble) for part in plane] for plane in found)
    under = f - (below[0] * x + below[1] * y + below[2])
    over = above[0] * x + above[1] * y + above[2] - f
    return np.where(held, np.minimum(under, over), np.inf), held


@boxes
@dtypes
@policies
@shapes
@products
@pytest.mark.parametrize(
    ("count", "points"), [(200, 30), pytest.param(4000, 150, marks=pytest.mark.slow)]
)
@pytest.mark.every_combination
def test_planes_enclose_the_product(product, octagon, policy, dtype, sizes, count, points):
    """Those marked slow look at more than 10^7 points, each of the others at 6000."""
    domain = domain_of(sizes, count, dtype, octagon=octagon)
    found = compiled(product, domain, policy)
    assert all(field.isfinite().all() for plane in found for field in plane)
    gap, held = gaps(product, domain, found, points)
    assert held.mean() > 0.3
    assert (gap >= 0).all()


@dtypes
@policies
@shapes
@products
def test_planes_are_those_of_torch(product, octagon, policy, dtype, monkeypatch):
    """Up to rounding, and to the choice between planes that are equally low at the reference.

    In float32 the search over thin octagons may end beside the lowest plane, here or there.
    """
    domain = domain_of(((0.1, 6), (1e-3, 4)), 3000, dtype, octagon=octagon)
    found = compiled(product, domain, policy)
    monkeypatch.setenv(SWITCH, "0")
    known = enclosing(product, domain, policy)
    eps = torch.finfo(dtype).eps
    size = 1 + domain.box.lx.abs() + domain.box.ly.abs()
    near = torch.ones_like(size, dtype=torch.bool)
    for one, other in zip(itertools.chain(*found), itertools.chain(*known), strict=True):
        near &= (one - other).abs() <= eps**0.5 * size
    assert near.double().mean() > (0.9 if dtype == F32 else 0.97)
    scale = domain.scale()
    for one, other in zip(found, known, strict=True):
        height = (one.x - other.x) * scale.x + (one.y - other.y) * scale.y
        height = height + one.intercept - other.intercept
        assert height[near].abs().max() < 2 * eps**0.5 * size.max()
        assert height.abs().mean() < (4e-3 if dtype == F32 else 1e-3)
        assert height.mean().abs() < 1e-3  # neither is lower than the other


@dtypes
@shapes
@products
def test_intercepts_of_closed_forms_differ_by_no_more_than_both_allowances(
    product, octagon, dtype, monkeypatch
):
    domain = domain_of(((0.1, 6), (1e-2, 4)), 3000, dtype, octagon=octagon)
    found = compiled(product, domain, closed_form)
    monkeypatch.setenv(SWITCH, "0")
    known = enclosing(product, domain, closed_form)
    lx, ux, ly, uy = domain.box
    far_x, far_y = torch.maximum(lx.abs(), ux.abs()), torch.maximum(ly.abs(), uy.abs())
    for one, other in zip(found, known, strict=True):
        # Slopes are rounded apart; what that costs is a part of the difference.
        turned = (one.x - other.x).abs() * far_x + (one.y - other.y).abs() * far_y
        terms = other.x.abs() * far_x + other.y.abs() * far_y + far_y
        if octagon:  # corners are rounded too
            terms = terms + (far_x / 4 + 1) * far_y
        allowed = 24 * torch.finfo(dtype).eps * terms + turned
        assert ((one.intercept - other.intercept).abs() <= allowed).all()


@dtypes
@policies
@shapes
@products
def test_a_unit_has_the_same_bits_whatever_lies_beside_it(product, octagon, policy, dtype):
    domain = domain_of(BOXES["of all sizes"], 133, dtype, octagon=octagon)
    whole = torch.stack([*itertools.chain(*compiled(product, domain, policy))])
    for chosen in (slice(0, 1), slice(5, 12), slice(100, 133), slice(132, 133)):
        box = Rectangle(*[end[:, chosen] for end in domain.box])
        part = Octagon(box, Bands(*[b[:, chosen] for b in domain.bands])) if octagon else box
        alone = torch.stack([*itertools.chain(*compiled(product, part, policy))])
        torch.testing.assert_close(alone, whole[..., chosen], rtol=0, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@dtypes
@policies
@shapes
@products
def test_what_is_no_number_leaves_no_plane_and_its_neighbours_alone(
    product, octagon, policy, dtype, bad
):
    domain = domain_of(BOXES["usual"], 40, dtype, octagon=octagon)
    known = torch.stack([*itertools.chain(*compiled(product, domain, policy))])
    ends = [*domain.box, *(domain.bands if octagon else ())]
    for place, end in enumerate(ends):
        worse = [part.clone() for part in ends]
        worse[place][0, place] = bad if dtype == F32 or abs(bad) != 1e30 else bad * 1e100
        found = planes(
            worse,
            curved=product.curved,
            share=product.share,
            shift=(-0.1, 0.25) if policy is tilted else None,
            steps=3 if octagon or product.curved else 8,
        )
        assert found[:, 0, place].isnan().all()
        found[:, 0, place] = known[:, 0, place]
        torch.testing.assert_close(found, known, rtol=0, atol=0)
        assert end.isfinite().all()


@products
def test_what_is_not_plain_is_left_to_torch(product):
    box = domain_of(BOXES["usual"], 8, F32, octagon=False)
    options = {"curved": product.curved, "share": 0.0}
    assert planes(box, **options) is not None
    assert planes([box.lx.half(), *box[1:]], **options) is None
    assert planes([end.half() for end in box], **options) is None
    assert planes([box.lx.double(), *box[1:]], **options) is None
    assert planes([box.lx[:, :1], *box[1:]], **options) is None
    live = [end.clone().requires_grad_() for end in box]
    assert planes(live, **options) is None
    with torch.no_grad():
        assert planes(live, **options) is not None
    assert planes([end.to("meta") for end in box], **options) is None


@products
def test_ends_need_not_be_contiguous(product):
    box = domain_of(BOXES["usual"], 64, F32, octagon=False)
    apart = [torch.stack([end, end], -1)[..., 0] for end in box]
    assert not apart[0].is_contiguous()
    options = {"curved": product.curved, "share": 0.25, "shift": (-0.1, 0.25), "steps": 3}
    torch.testing.assert_close(planes(apart, **options), planes(box, **options), rtol=0, atol=0)


@pytest.mark.parametrize("name", POLICIES)
def test_other_policies_and_settings_are_left_to_torch(name, monkeypatch):
    called = []
    monkeypatch.setattr(
        "popqorn_train.kernels.enclosing.planes", lambda *_, **options: called.append(options)
    )
    domain = domain_of(BOXES["usual"], 8, F32, octagon=True)
    enclosing(SIGMOID_TANH, domain, POLICIES[name])
    assert len(called) == (name in ("lambda", "tilted"))
    enclosing(SIGMOID_TANH, domain, lambda *a: tilted(*a, steps=5))
    assert len(called) == (name in ("lambda", "tilted"))
