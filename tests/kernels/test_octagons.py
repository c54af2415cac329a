"""Compiled planes on octagons have the gradients of torch, and stay the planes they were."""

import itertools
import math

import pytest
import torch

from popqorn_train.kernels.library import SWITCH, kernels, loop_for
from popqorn_train.kernels.octagons import octagon_planes
from popqorn_train.kernels.signatures import pointers
from popqorn_train.relaxations.domain import Bands, Octagon, Rectangle
from popqorn_train.relaxations.planes import enclosing, intercept
from popqorn_train.relaxations.products import CANDIDATE, MEMORY, SIGMOID_TANH
from popqorn_train.relaxations.slopes import closed_form, tilted
from tests.kernels.test_enclosing import BOXES, domain_of, gaps
from tests.problems import F64
from tests.relaxations.test_octagon import beside, octagons

pytestmark = pytest.mark.skipif(kernels().library is None, reason="no compiled loops")

PRODUCTS = {"sigmoid_tanh": SIGMOID_TANH, "memory": MEMORY, "candidate": CANDIDATE}
products = pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64])
policies = pytest.mark.parametrize("policy", [closed_form, tilted], ids=["lambda", "tilted"])
COUNT = 1000


def one_sided(count, dtype):
    """Boxes on one side of 0 in both arguments."""
    return domain_of(((8, 12), (0.1, 4)), count, dtype, octagon=True)


DOMAINS = {
    **{
        name: lambda n, dtype, s=s: domain_of(s, n, dtype, octagon=True)
        for name, s in BOXES.items()
    },
    "one-sided": one_sided,
    "around": lambda n, dtype: octagons(4.0, n, dtype=dtype),
    "beside": lambda n, dtype: beside(2.0, n, dtype=dtype),
    "needles": lambda n, dtype: _tight(octagons(2.0, n, dtype=dtype), 1e-3),
}
domains = pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)


def _tight(domain, share):
    """With sums next to the middle alone."""
    sums = [share * band for band in domain.bands[:2]]
    return Octagon(domain.box, Bands(*sums, *domain.bands[2:]))


def live(domain):
    return [end.clone().requires_grad_() for end in (*domain.box, *domain.bands)]


def on(ends):
    return Octagon(Rectangle(*ends[:4]), Bands(*ends[4:]))


def fields(product, ends, policy=closed_form):
    planes = enclosing(product, on(ends), policy)
    return torch.stack([part.expand_as(ends[0]) for part in itertools.chain(*planes)])


def gradients(product, domain, worth, policy=closed_form):
    ends = live(domain)
    found = fields(product, ends, policy)
    return found.detach(), torch.stack(torch.autograd.grad((found * worth).sum(), ends))


def unlike(found, wanted):
    """Units where gradients differ by more than rounding does."""
    room = 1e-3 if found.dtype == torch.float32 else 1e-6
    return ((found - wanted).abs() > room * (1 + wanted.abs())).any(0)


def sharp(domain):
    """Units without kinks: neither are bands of no width or at a corner of the square."""
    box, bands = domain
    wide = (box.ux - box.lx > 0.1) & (box.uy - box.ly > 0.1)
    wide &= (box.lx.abs() < 1e3) & (box.ly.abs() < 1e3) & (box.uy.abs() < 1e3)
    for low, high in (bands[:2], bands[2:]):
        wide = wide & (high > low) & (low > -2) & (high < 2)
    return wide


@pytest.mark.every_combination
@dtypes
@products
@domains
def test_gradients_are_those_of_torch(product, domain, dtype, monkeypatch):
    domain = domain(COUNT, dtype)
    worth = torch.randn(6, 1, COUNT, dtype=dtype)
    found, gradient = gradients(product, domain, worth)
    assert gradient.isfinite().all()
    monkeypatch.setenv(SWITCH, "0")
    known, expected = gradients(product, domain, worth)
    assert (found - known).abs().median() < 1e-5
    near = ~unlike(gradient, expected)
    chosen = sharp(domain)
    if chosen.sum() > 20:
        assert near[chosen].double().mean() > (0.95 if dtype == torch.float32 else 0.995)
    assert near.double().mean() > 0.65


@dtypes
@products
def test_slopes_that_are_held_leave_the_gradient_of_the_intercept(product, dtype):
    """Tilted planes touch at three points; other slopes tell which point decides."""
    domain = octagons(2.0, COUNT, dtype=dtype)
    box, both, ends = domain.box, live(domain), [*domain.box, *domain.bands]
    a, b = 0.3 * torch.randn(2, 2, 1, COUNT, dtype=dtype)
    known, worth = torch.stack([-a[1], b[1], a[1], a[0], b[0], a[0]]), torch.zeros(6, 1, COUNT)
    worth = worth.to(dtype)
    worth[2], worth[5] = torch.randn(2, 1, COUNT, dtype=dtype)
    run, found = loop_for("octagon_gradient", ends), torch.empty(8, 1, COUNT, dtype=dtype)
    run(
        COUNT, product.curved, True, product.share, pointers(*ends), known.data_ptr(),
        pointers(*worth), found.data_ptr(),
    )  # fmt: skip
    top = intercept(product, a, b, on(both).with_mirror())
    total = (torch.stack([worth[5], -worth[2]]) * top).sum()
    expected = torch.stack(torch.autograd.grad(total, both))
    assert (expected[4:] != 0).double().mean() > 0.2
    assert not unlike(found, expected).double().mean() > 0.01
    assert box.lx.grad is None


@products
def test_gradients_are_derivatives(product):
    """Where no other point takes over, and but for what a diagonal may rise, which stays."""
    domain = octagons(0.1, 16, seed=3)
    ends = live(domain)
    worth = torch.randn(6, 1, 16, dtype=F64)

    def height(*ends):
        return (fields(product, ends) * worth).sum(0)

    assert torch.autograd.gradcheck(height, ends, eps=1e-7, atol=3e-3, rtol=0)


@dtypes
@policies
@products
def test_planes_with_a_gradient_are_the_same_planes(product, policy, dtype):
    domain = domain_of(BOXES["of all sizes"], COUNT, dtype, octagon=True)
    found, known = (
        fields(product, live(domain), policy),
        fields(product, [*domain.box, *domain.bands], policy),
    )
    assert found.requires_grad
    assert torch.equal(found, known)


@dtypes
@policies
@products
def test_planes_with_a_gradient_enclose_a_million_points(product, policy, dtype):
    domain = beside(3.0, COUNT, dtype=dtype, spread=2.0)
    planes = enclosing(product, on(live(domain)), policy)
    planes = [[part.detach() for part in plane] for plane in planes]
    gap, held = gaps(product, domain, planes, 1000)
    assert held.mean() > 0.3
    assert (gap >= 0).all()


@dtypes
@policies
@products
def test_a_unit_has_the_same_gradient_whatever_lies_beside_it(product, policy, dtype):
    domain = domain_of(BOXES["usual"], 77, dtype, octagon=True)
    worth = torch.randn(6, 1, 77, dtype=dtype)
    _, whole = gradients(product, domain, worth, policy)
    for part in (slice(0, 1), slice(5, 12), slice(60, 77)):
        some = on([end[:, part] for end in (*domain.box, *domain.bands)])
        _, alone = gradients(product, some, worth[..., part], policy)
        assert torch.equal(alone, whole[..., part])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@dtypes
@policies
@products
def test_what_is_no_number_has_no_plane_and_no_gradient(product, policy, dtype, bad):
    domain = domain_of(BOXES["usual"], 40, dtype, octagon=True)
    worth = torch.randn(6, 1, 40, dtype=dtype)
    known, expected = gradients(product, domain, worth, policy)
    for place in range(8):
        ends = [end.clone() for end in (*domain.box, *domain.bands)]
        ends[place][0, place] = bad
        found, gradient = gradients(product, on(ends), worth, policy)
        assert found[..., place].isnan().all()
        assert gradient[..., place].isnan().all()
        rest = [unit for unit in range(40) if unit != place]
        assert torch.equal(found[..., rest], known[..., rest])
        assert torch.equal(gradient[..., rest], expected[..., rest])


@products
def test_numbers_of_planes_may_be_worth_nothing(product):
    domain = octagons(1.0, 50)
    for chosen in range(6):
        worth = torch.zeros(6, 1, 50, dtype=F64)
        worth[chosen] = 1
        _, expected = gradients(product, domain, worth)
        ends = live(domain)
        part = [*itertools.chain(*enclosing(product, on(ends), closed_form))][chosen]
        found = torch.autograd.grad(part.sum(), ends)
        assert torch.equal(torch.stack(found), expected)


@pytest.mark.parametrize("switch", ["1", "0"])
@products
def test_a_gradient_has_none_itself(product, switch, monkeypatch):
    """As with torch alone: it is refused, not wrong."""
    monkeypatch.setenv(SWITCH, switch)
    ends = live(octagons(1.0, 20))
    total = fields(product, ends).square().sum()
    first = torch.autograd.grad(total, ends, create_graph=True)
    with pytest.raises(RuntimeError):
        sum(part.sum() for part in first).backward()


def test_what_does_not_fit_is_left_to_torch():
    ends, options = live(octagons(1.0, 8)), {"curved": True, "share": 0.25}
    assert octagon_planes(ends, **options)[0].requires_grad
    assert octagon_planes([ends[0][:, :1], *ends[1:]], **options) is None
    assert octagon_planes([end.half() for end in ends], **options) is None
    apart = [torch.stack([end, end], -1)[..., 0] for end in ends]
    for one, other in zip(
        octagon_planes(apart, **options), octagon_planes(ends, **options), strict=True
    ):
        assert torch.equal(one, other)
