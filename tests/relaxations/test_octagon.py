"""Planes over boxes and octagons enclose the product, whatever the policy of their slopes."""

import pytest
import torch

from popqorn_train.relaxations.domain import Bands, Octagon, Rectangle, Scale
from popqorn_train.relaxations.planes import enclosing, intercept
from popqorn_train.relaxations.products import MEMORY, SIGMOID_TANH
from popqorn_train.relaxations.slopes import POLICIES, closed_form, tilted
from tests.problems import F64

pytestmark = pytest.mark.usefixtures("loops")

PRODUCTS = (SIGMOID_TANH, MEMORY)
products = pytest.mark.parametrize("product", PRODUCTS, ids=[p.name for p in PRODUCTS])
policies = pytest.mark.parametrize("policy", POLICIES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64])


def rectangles(width, count=400, *, spread=3.0, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    center = spread * torch.randn(2, 1, count, generator=generator, dtype=F64)
    half = width * torch.rand(2, 1, count, generator=generator, dtype=F64) / 2
    (lx, ly), (ux, uy) = center - half, center + half
    return Rectangle(*[end.to(dtype) for end in (lx, ux, ly, uy)])


def octagons(width, count=400, *, seed=0, **options):
    """Octagons around the middle of the box, from a needle to the whole box."""
    box = rectangles(width, count, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed + 1)
    reach = 2 * torch.rand(4, 1, count, generator=generator, dtype=F64).to(box.lx.dtype)
    return Octagon(box, Bands(-reach[0], reach[1], -reach[2], reach[3]))


def beside(width, count=400, *, seed=0, **options):
    """Octagons around any point of the box, so that bands reach farther than what they cut off."""
    box = rectangles(width, count, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed + 1)
    p, q = 2 * torch.rand(2, 1, count, generator=generator, dtype=F64) - 1
    reach = 4 * torch.rand(4, 1, count, generator=generator, dtype=F64).square()
    ends = p + q - reach[0], p + q + reach[1], p - q - reach[2], p - q + reach[3]
    return Octagon(box, Bands(*[end.clamp(-2, 2).to(box.lx.dtype) for end in ends]))


def mixtures(domain, count=600):
    """Points between the corners of octagons in float64, many of them on a side."""
    generator = torch.Generator().manual_seed(0)
    p, q = (part.double() for part in domain.vertices())
    share = torch.rand(count, *p.shape, generator=generator, dtype=F64)
    share[: count // 2] *= torch.rand(count // 2, *p.shape, generator=generator) < 0.3
    share = (share + 1e-9) / (share + 1e-9).sum(1, keepdim=True)
    scale, box = domain.scale(), Rectangle(*[end.double() for end in domain.box])
    x, y = scale.x + scale.half_x * (share * p).sum(1), scale.y + scale.half_y * (share * q).sum(1)
    return x.clamp(box.lx, box.ux), y.clamp(box.ly, box.uy)


def whole(box):
    two = torch.full_like(box.lx, 2)
    return Octagon(box, Bands(-two, two, -two, two))


def in_bands(domain, p, q):
    if isinstance(domain, Rectangle):
        return torch.ones_like(p, dtype=torch.bool)
    low, high, diff_low, diff_high = (band.double() for band in domain.bands)
    return (low <= p + q) & (p + q <= high) & (diff_low <= p - q) & (p - q <= diff_high)


def points_of(domain, count=600, seed=0):
    """Points of every domain in float64, many of them on its border."""
    box = Rectangle(*[end.double() for end in domain.box])
    scale = Scale(*[part.double() for part in domain.scale()])  # what bands are measured in
    generator = torch.Generator().manual_seed(seed)
    p, q = 2 * torch.rand(2, count, *box.lx.shape, generator=generator, dtype=F64) - 1
    third = count // 3
    p[:third], q[third : 2 * third] = p[:third].sign(), q[third : 2 * third].sign()
    if isinstance(domain, Octagon):
        share = torch.ones_like(p)
        bands = [band.double() for band in domain.bands]
        for value, low, high in ((p + q, *bands[:2]), (p - q, *bands[2:])):
            share = torch.where(value > high, torch.minimum(share, high / value), share)
            share = torch.where(value < low, torch.minimum(share, low / value), share)
        p, q = share * p * (1 - 1e-12), share * q * (1 - 1e-12)
    x = (scale.x + scale.half_x * p).clamp(box.lx, box.ux)
    y = (scale.y + scale.half_y * q).clamp(box.ly, box.uy)
    # A side of no width counts as a little one: what is cut to the box may have left the bands.
    held = in_bands(domain, (x - scale.x) / scale.half_x, (y - scale.y) / scale.half_y)
    return torch.where(held, x, scale.x), torch.where(held, y, scale.y)


def least_gap(product, domain, planes, points=points_of):
    x, y = points(domain)
    f = product.value(x, y)
    lower, upper = (
        plane.x.double() * x + plane.y.double() * y + plane.intercept.double() for plane in planes
    )
    return torch.minimum(f - lower, upper - f)


@pytest.mark.parametrize("width", [0.0, 1e-7, 1e-3, 0.3, 2.0, 8.0, 60.0, 400.0])
@dtypes
@policies
@products
def test_planes_enclose_the_product_on_its_domain(product, policy, dtype, width):
    for spread in (1.0, 30.0):
        for domain in (
            rectangles(width, spread=spread, dtype=dtype),
            octagons(width, spread=spread, dtype=dtype),
        ):
            planes = enclosing(product, domain, POLICIES[policy])
            assert all(field.isfinite().all() for plane in planes for field in plane)
            gap = least_gap(product, domain, planes)
            # The points themselves are rounded in float64.
            assert (gap >= -1e-15 * (1 + width + 10 * spread)).all()


def test_the_square_covers_the_box_where_its_middle_is_rounded():
    low = torch.linspace(100, 130, 999)[None]
    high = low + 2e-5 + 1e-3 * torch.rand(1, 999)
    box = Rectangle(low, high, -high, -low)
    x, half_x, y, half_y = (part.double() for part in box.scale())
    for end, middle, half in ((low, x, half_x), (high, x, half_x), (-high, y, half_y)):
        assert ((end.double() - middle).abs() <= half).all()


def test_corners_are_those_of_the_octagon_wherever_it_lies():
    for domain in (beside(1.0, 4000), octagons(1.0, 4000)):
        p, q = domain.vertices()
        sum_low, sum_high, diff_low, diff_high = domain.bands
        for at, low, high in ((p + q, sum_low, sum_high), (p - q, diff_low, diff_high)):
            assert ((low - 1e-12 <= at) & (at <= high + 1e-12)).all()
        assert torch.maximum(p.abs(), q.abs()).max() <= 1


@pytest.mark.parametrize("width", [0.3, 4.0, 20.0])
@dtypes
@policies
@products
def test_planes_enclose_the_product_where_the_octagon_lies_beside_the_middle(
    product, policy, dtype, width
):
    """With corners of more than the octagon, maxima outside were dropped, but not replaced."""
    for seed in range(2):
        domain = beside(width, 1000, seed=seed, spread=2.0, dtype=dtype)
        planes = enclosing(product, domain, POLICIES[policy])
        gap = least_gap(product, domain, planes, mixtures)
        assert (gap >= (-1e-13 if dtype == F64 else -1e-5)).all()


@pytest.mark.slow
@products
def test_intercepts_over_an_octagon_are_exact_up_to_the_allowance(product):
    for width in (0.1, 1.0, 4.0):
        domain = octagons(width)
        x, y = points_of(domain, 20_000)
        for scale in (0.0, 0.1, 0.4):
            a, b = scale * torch.randn(2, *domain.box.lx.shape, dtype=F64)
            least = (product.value(x, y) - a * x - b * y).amax(0)
            gap = intercept(product, a, b, domain) - least
            assert (gap >= 0).all()
            assert gap.median() < 2e-3 * width**2


@products
def test_an_octagon_without_bands_is_its_box(product):
    box = rectangles(1.0)
    a, b, _ = closed_form(product, box)
    over_box, over_octagon = (intercept(product, a, b, domain) for domain in (box, whole(box)))
    assert (over_octagon <= over_box).all()
    assert (over_octagon > over_box - 1e-12).all()


@products
def test_cutting_corners_off_lowers_the_intercept(product):
    domain = octagons(2.0)
    a, b, _ = closed_form(product, domain)
    saved = intercept(product, a, b, domain.box) - intercept(product, a, b, domain)
    assert (saved >= 0).all()
    assert saved.mean() > 1e-3


@products
def test_the_mirror_image_of_an_octagon_holds_the_mirrored_points(product):
    domain = octagons(1.0, 50)
    x, y = points_of(domain)
    mirror = Octagon(
        Rectangle(*[end[1] for end in domain.with_mirror().box]),
        Bands(*[band[1] for band in domain.with_mirror().bands]),
    )
    scale = mirror.scale()
    p, q = (x - scale.x) / scale.half_x, (-y - scale.y) / scale.half_y
    for value, low, high in ((p + q, *mirror.bands[:2]), (p - q, *mirror.bands[2:])):
        assert (value >= low - 1e-12).all()
        assert (value <= high + 1e-12).all()


@pytest.mark.parametrize("reference", [(0.0, 0.0), (-0.1, 0.25), (0.3, -0.2)])
@products
def test_the_tilted_plane_is_the_lowest_at_its_reference(product, reference):
    for domain in (rectangles(2.0), octagons(2.0)):
        scale = domain.scale()
        p, q = (v.mean(0) for v in domain.vertices())
        x = scale.x + scale.half_x * (p + reference[0])
        y = scale.y + scale.half_y * (q + reference[1])

        def height(slopes, domain=domain, x=x, y=y):
            a, b, _ = slopes
            return intercept(product, a, b, domain) + a * x + b * y

        lowest = height(tilted(product, domain, reference=reference, steps=12))
        found = height(tilted(product, domain, reference=reference))
        steep = (domain.box.ux - domain.box.lx) * (domain.box.uy - domain.box.ly) / 8
        inside = (p.abs() + q.abs() < 0.2) if isinstance(domain, Octagon) else p < 9
        for policy in POLICIES.values():
            other = height(policy(product, domain))
            assert (lowest <= other + 0.02 * steep + 1e-9)[inside].float().mean() > 0.95
        assert (found - lowest).mean() < 0.02 * steep.mean()


@products
def test_tilted_slopes_do_not_hang_on_the_last_bit(product):
    domain = octagons(1.0, 2000)
    shaken = Octagon(Rectangle(*[end * (1 + 1e-15) for end in domain.box]), domain.bands)
    for one, two in zip(tilted(product, domain)[:2], tilted(product, shaken)[:2], strict=True):
        assert ((one - two).abs() < 1e-9).float().mean() > 0.995


@products
def test_gradients_through_an_octagon_are_those_for_fixed_slopes(product):
    domain = octagons(1.0, 6, seed=4)
    a, b, _ = tilted(product, domain)
    parts = tuple(part.clone().requires_grad_() for part in (*domain.box, *domain.bands))

    def height(*parts):
        return intercept(product, a, b, Octagon(Rectangle(*parts[:4]), Bands(*parts[4:])))

    gradients = torch.autograd.grad(height(*parts).sum(), parts)
    for index, gradient in enumerate(gradients):
        moved = [part.detach().clone() for part in parts]
        moved[index] += 1e-6
        change = (height(*moved) - height(*parts).detach()) / 1e-6
        # Beside kinks, where another point takes over, and the allowance, which stays.
        assert ((gradient - change).abs() < 0.02 + 0.1 * change.abs()).float().mean() > 0.6


@pytest.mark.slow
@dtypes
@products
def test_octagon_planes_enclose_millions_of_points(product, dtype):
    for seed, width in enumerate((0.05, 0.5, 2.0, 6.0, 30.0)):
        domain = octagons(width, 4000, seed=seed, dtype=dtype)
        gap = least_gap(product, domain, enclosing(product, domain, tilted))
        assert (gap >= (0 if dtype == torch.float32 else -1e-13)).all()
