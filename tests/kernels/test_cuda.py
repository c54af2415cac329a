"""The kernels of a GPU do what the compiled loops of a processor do."""

import itertools

import pytest
import torch

from popqorn_train.kernels import enclosing, rows
from popqorn_train.kernels.closed_form import planes_with_gradient
from popqorn_train.kernels.library import SWITCH, cuda_loops, function
from popqorn_train.relaxations.domain import Bands, Octagon, Rectangle
from popqorn_train.relaxations.planes import Plane, Planes
from tests.kernels.test_enclosing import BOXES, domain_of, gaps, products
from tests.problems import F64

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64])
shapes = pytest.mark.parametrize("octagon", [False, True], ids=["box", "octagon"])


def ends_of(domain):
    return [*domain.box, *(domain.bands if isinstance(domain, Octagon) else ())]


def on_gpu(parts):
    return [part.cuda() for part in parts]


def test_they_are_there():
    known = cuda_loops(torch.device("cuda"))
    assert known.functions is not None, known.reason


def test_the_switch_turns_them_off(monkeypatch):
    monkeypatch.setenv(SWITCH, "0")
    assert function("planes", torch.ones(3, device="cuda")) is None


@dtypes
@shapes
@products
@pytest.mark.parametrize("sizes", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("tilted", [False, True])
@pytest.mark.every_combination
def test_planes_enclose_the_product(product, octagon, tilted, dtype, sizes):
    domain = domain_of(sizes, 4000, dtype, octagon=octagon)
    shift = (-0.1, 0.25) if tilted else None
    ask = {"curved": product.curved, "share": 0.25, "shift": shift, "steps": 4}
    found = enclosing.planes(on_gpu(ends_of(domain)), **ask)
    assert found is not None
    lower, upper = (Plane(*side.cpu()) for side in (found[:3], found[3:]))
    gap, held = gaps(product, domain, Planes(lower, upper), 60)
    assert held.mean() > 0.3
    assert (gap >= 0).all()


@dtypes
@products
def test_strips_and_planes_are_those_of_the_processor(product, dtype):
    domain = domain_of(((0.1, 6), (1e-2, 4)), 5000, dtype, octagon=True)
    ends, near = ends_of(domain), torch.finfo(dtype).eps ** 0.5
    for ask in (enclosing.strips, lambda e, curved: enclosing.planes(e, curved=curved, share=0.25)):
        here, there = (ask(e, curved=product.curved) for e in (ends, on_gpu(ends)))
        close = torch.isclose(there.cpu(), here, rtol=near, atol=near).all(0)
        assert close.double().mean() > 0.97


@dtypes
@products
def test_planes_have_the_gradient_of_the_processor(product, dtype):
    domain, found = domain_of(BOXES["usual"], 2000, dtype, octagon=False), []
    worth = torch.randn(6, 1, 2000, generator=torch.Generator().manual_seed(0)).to(dtype)
    for device in ("cpu", "cuda"):
        ends = [end.to(device).requires_grad_() for end in domain.box]
        planes = planes_with_gradient(ends, curved=product.curved, share=0.5)
        found.append([g.cpu() for g in torch.autograd.grad(planes, ends, worth.to(device))])
    near = torch.finfo(dtype).eps ** 0.5
    for here, there in zip(*found, strict=True):
        assert torch.isclose(there, here, rtol=near, atol=near).double().mean() > 0.99


ROWS = 131  # four warps have, and three of a fifth
LAYOUTS = list(itertools.product((1, 3), (1, 3), (1, ROWS)))  # samples of slopes, of sides, rows


@dtypes
@pytest.mark.parametrize(("slopes", "samples", "own"), LAYOUTS)
@pytest.mark.parametrize("arguments", [1, 2])
@pytest.mark.every_combination
def test_rows_and_their_gradient_are_those_of_torch(slopes, samples, own, arguments, dtype):
    generator = torch.Generator(device="cuda").manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, device="cuda", dtype=dtype)

    slope = draw(slopes, ROWS, 3, 37)
    lower, upper = ([draw(samples, own, 3, 37) for _ in range(arguments + 1)] for _ in range(2))
    found, constant = rows.substitute(slope, lower, upper)
    parts = [slope, *lower, *upper]
    for part in parts:
        part.requires_grad_()
    up, down = slope.clamp(min=0), slope.clamp(max=0)
    known = [up * low + down * high for low, high in zip(lower, upper, strict=True)]
    known[-1] = known[-1].flatten(2).sum(2)
    near = {"rtol": 0, "atol": 300 * torch.finfo(dtype).eps}
    torch.testing.assert_close([*found, constant], [part.detach() for part in known], **near)
    worths = [draw(*part.shape) for part in known]
    expected = torch.autograd.grad(known, parts, worths)
    with torch.no_grad():
        gradient = rows.substitute_gradient(slope, lower, upper, worths)
    torch.testing.assert_close(list(gradient), list(expected), **near)


@dtypes
@pytest.mark.parametrize("samples", [(1, 3), (3, 1), (3, 3)])
def test_least_values_are_those_of_torch(samples, dtype):
    slope = torch.randn(samples[0], 7, 4, 29, device="cuda", dtype=dtype)
    center = torch.randn(samples[1], 6, 29, device="cuda", dtype=dtype)
    half = center.cos().abs()
    found = rows.minimum(slope, center, half)
    known = slope * center[:, None, :4] - slope.abs() * half[:, None, :4]
    torch.testing.assert_close(
        found, known.flatten(2).sum(2), rtol=0, atol=300 * torch.finfo(dtype).eps
    )


@dtypes
def test_a_unit_and_a_row_have_the_same_bits_whatever_lies_beside_them(dtype):
    domain = domain_of(BOXES["usual"], 133, dtype, octagon=True)
    ask = {"curved": True, "share": 0.25, "shift": (0.0, 0.0), "steps": 4}
    whole = enclosing.planes(on_gpu(ends_of(domain)), **ask)
    part = Octagon(
        Rectangle(*[end[:, 40:52] for end in domain.box]),
        Bands(*[band[:, 40:52] for band in domain.bands]),
    )
    alone = enclosing.planes(on_gpu(ends_of(part)), **ask)
    assert torch.equal(alone, whole[..., 40:52])
    slope, center = torch.randn(4, 9, 3, 50, device="cuda", dtype=dtype), whole.new_ones(4, 3, 50)
    least = rows.minimum(slope, center, center)
    assert torch.equal(rows.minimum(slope[1:2, 2:3], center[:1], center[:1]), least[1:2, 2:3])
