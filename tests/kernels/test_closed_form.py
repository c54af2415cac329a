"""Gradients of compiled planes are those of torch."""

import pytest
import torch

from popqorn_train.kernels.closed_form import planes_with_gradient
from popqorn_train.kernels.library import SWITCH, kernels
from popqorn_train.relaxations.domain import Rectangle
from popqorn_train.relaxations.planes import enclosing
from popqorn_train.relaxations.products import CANDIDATE, MEMORY, SIGMOID_TANH
from tests.kernels.test_enclosing import BOXES, domain_of
from tests.problems import F64

pytestmark = pytest.mark.skipif(kernels().library is None, reason="no compiled loops")

PRODUCTS = {"sigmoid_tanh": SIGMOID_TANH, "memory": MEMORY, "candidate": CANDIDATE}
products = pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64])


def fields(product, ends):
    return torch.stack([field for plane in enclosing(product, Rectangle(*ends)) for field in plane])


def gradients(product, box, worth):
    ends = [end.clone().requires_grad_() for end in box]
    found = fields(product, ends)
    return found.detach(), torch.stack(torch.autograd.grad((found * worth).sum(), ends))


@dtypes
@products
@pytest.mark.parametrize("sizes", BOXES.values(), ids=BOXES)
@pytest.mark.every_combination
def test_gradients_are_those_of_torch(product, dtype, sizes, monkeypatch):
    box = domain_of(sizes, 1000, dtype, octagon=False)
    worth = torch.randn(6, 1, 1000, dtype=dtype)
    found, gradient = gradients(product, box, worth)
    monkeypatch.setenv(SWITCH, "0")
    known, expected = gradients(product, box, worth)
    assert (found - known).abs().median() < 1e-5
    assert gradient.isfinite().all()
    # Beside kinks, which rounding moves, and but for quotients by small widths.
    near = (gradient - expected).abs() <= 1e-3 * (1 + expected.abs())
    wide = ((box.ux - box.lx) > 0.1) & ((box.uy - box.ly) > 0.1)
    sharp = wide.any() and sizes != BOXES["huge"]
    least = (0.9 if dtype == torch.float32 else 0.99) if sharp else 0.5
    assert near[:, wide | ~wide.any()].double().mean() > least


@dtypes
@products
def test_a_unit_has_the_same_bits_whatever_lies_beside_it(product, dtype):
    box = domain_of(BOXES["usual"], 77, dtype, octagon=False)
    worth = torch.randn(6, 1, 77, dtype=dtype)
    found, gradient = gradients(product, box, worth)
    for part in (slice(0, 1), slice(60, 77)):
        some = Rectangle(*[end[:, part] for end in box])
        planes, alone = gradients(product, some, worth[..., part])
        assert torch.equal(planes, found[..., part])
        assert torch.equal(alone, gradient[..., part])


@pytest.mark.parametrize("switch", ["1", "0"])
@products
def test_a_gradient_has_none_itself(product, switch, monkeypatch):
    """As with torch alone: it is refused, not wrong."""
    monkeypatch.setenv(SWITCH, switch)
    box = domain_of(((0.1, 2), (0.2, 1)), 20, F64, octagon=False)
    ends = [end.clone().requires_grad_() for end in box]
    first = torch.autograd.grad(fields(product, ends).square().sum(), ends, create_graph=True)
    with pytest.raises(RuntimeError):
        sum(part.sum() for part in first).backward()


@products
def test_only_the_ends_that_need_one_get_a_gradient(product):
    box = domain_of(BOXES["usual"], 20, F64, octagon=False)
    whole = torch.stack([*gradients(product, box, torch.ones(6, 1, 20, dtype=F64))[1]])
    for place in range(4):
        ends = [end.clone() for end in box]
        ends[place].requires_grad_()
        (one,) = torch.autograd.grad(fields(product, ends).sum(), ends[place])
        assert torch.equal(one, whole[place])


def test_what_does_not_fit_is_left_to_torch():
    box = domain_of(BOXES["usual"], 8, F64, octagon=False)
    ends = [end.clone().requires_grad_() for end in box]
    options = {"curved": True, "share": 0.25}
    assert planes_with_gradient(ends, **options).requires_grad
    assert planes_with_gradient([ends[0][:, :1], *ends[1:]], **options) is None
    assert planes_with_gradient([end.half() for end in ends], **options) is None
