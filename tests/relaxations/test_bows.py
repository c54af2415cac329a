"""Lines, strips and ranges of functions that bend one way, and of quotients."""

import math

import pytest
import torch

from popqorn_train import CertifiedLoss, LpBall, certified_radius, certify
from popqorn_train.bounds.bilinear import Quotient
from popqorn_train.bounds.node import Node
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.bows import BOWS, power
from tests.problems import Base, sequences

F64 = torch.float64
CASES = {name: make() for name, make in BOWS.items()}
CASES |= {f"power {p}": power(p) for p in (0.3, 1.5, 2.5, -0.5, -1.7)}
every_bow = pytest.mark.parametrize("name", CASES)
EXACT = {"sqrt": torch.sqrt, "reciprocal": torch.reciprocal}


def exactly(name, x):
    """The function in float64."""
    if name.startswith("power"):
        return x ** float(name.split()[1])
    return getattr(torch, name)(x)


def intervals(name, dtype, count=3000):
    """Tiny and huge, short and long ones, where the function is defined; the ends among points."""
    generator = torch.Generator().manual_seed(len(name))

    def spread(low, high):
        return 10 ** (low + (high - low) * torch.rand(count, generator=generator, dtype=F64))

    edge = CASES[name].edge
    lower = edge + spread(-6, 6) if edge > -math.inf else 9 * torch.randn(count, dtype=F64)
    width = spread(-9, 0.5) * torch.where(torch.arange(count) % 2 == 0, 1.0, lower.abs())
    width = (width * (torch.arange(count) % 7 > 0)).clamp(max=50)
    lower, upper = lower.to(dtype), (lower + width).to(dtype)
    if name == "reciprocal":
        lower, upper = torch.cat([lower, -upper]), torch.cat([upper, -lower])
    if name in ("sqrt", "power 0.3", "power 1.5"):
        lower[: count // 10] = 0
    share = torch.rand(40, len(lower), generator=generator, dtype=F64)
    share[:2] = torch.tensor([0.0, 1.0], dtype=F64)[:, None]
    ends = lower.double(), upper.double()
    return lower, upper, torch.lerp(*ends, share).clamp(*ends)


def worst(name, parts, x):
    """How far the function leaves lines, beside the rounding of working them out in float64."""
    one, two, three, four = (part.double() for part in parts)
    f = exactly(name, x)
    rounding = 8 * torch.finfo(F64).eps * (f.abs() + (one * x).abs() + (three * x).abs())
    return torch.maximum(one * x + two - f, f - three * x - four) - rounding


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@every_bow
def test_lines_and_strips_enclose_in_either_precision(name, dtype):
    lower, upper, x = intervals(name, dtype)
    bow = CASES[name]
    for point in (lower, upper, (lower + upper) / 2):
        assert worst(name, bow.closest(lower, upper, point), x).max() <= 0
    assert worst(name, bow.lines(lower, upper), x).max() <= 0
    slope, middle, half = bow.strip(lower, upper)
    assert worst(name, (slope, middle - half, slope, middle + half), x).max() <= 0
    hull, f = bow.range(Bounds(lower, upper)), exactly(name, x)
    near = 4 * torch.finfo(dtype).eps * f.abs()
    assert ((hull.lower - near <= f) & (f <= hull.upper + near)).all()


@pytest.mark.one_in(2)
@every_bow
def test_a_strip_is_as_narrow_as_a_chord_allows(name):
    lower, upper, _ = intervals(name, F64)
    bow = CASES[name]
    long = bow.strip(lower, upper).half > 1e-9 * (1 + exactly(name, lower).abs() + upper.abs())
    lower, upper = lower[long], upper[long]
    slope, middle, half = bow.strip(lower, upper)
    x = torch.lerp(lower, upper, torch.linspace(0, 1, 4001, dtype=F64)[:, None] ** 3)
    gap = (exactly(name, x) - slope * x - middle).abs().amax(0)
    assert (gap >= 0.9 * half).all()


@every_bow
def test_gradients_are_those_of_differences(name):
    bow = CASES[name]
    ends = (
        torch.tensor([1.2, 1.9], dtype=F64, requires_grad=True),
        torch.tensor([2.5, 4.0], dtype=F64, requires_grad=True),
    )

    def parts(lower, upper):
        return *bow.lines(lower, upper), *bow.range(Bounds(lower, upper))

    assert torch.autograd.gradcheck(parts, ends, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].edge > -math.inf])
def test_what_reaches_the_edge_has_no_bound(name):
    bow = CASES[name]
    lower = torch.tensor([bow.edge - 1, bow.edge - 1e-9, bow.edge + 1], dtype=F64)
    upper = torch.tensor([bow.edge + 1, bow.edge + 2, bow.edge + 2], dtype=F64)
    for parts in (
        bow.lines(lower, upper),
        bow.range(Bounds(lower, upper)),
        bow.strip(lower, upper),
    ):
        for part in parts:
            assert part.isnan().tolist() == [True, True, False]


def test_gradients_of_a_root_are_finite_at_0():
    lower = torch.zeros(2, dtype=F64, requires_grad=True)
    upper = torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)
    bow = CASES["sqrt"]
    total = sum(part.sum() for part in bow.lines(lower, upper))
    total = total + sum(part.sum() for part in bow.range(Bounds(lower, upper)))
    assert all(part.isfinite().all() for part in torch.autograd.grad(total, (lower, upper)))


def quotient(dtype, count=3000):
    """Boxes ``(1, count)`` of either sign, some of them points."""
    generator = torch.Generator().manual_seed(3)
    x, y, w, h = torch.randn(4, count, generator=generator, dtype=F64)
    x, y = 10 ** (3 * x) * w.sign(), (0.01 + y.abs()) * h.sign()
    w = torch.where(torch.arange(count) % 5 == 0, 0.0, w.abs() * 10 ** (2 * h))
    h = torch.where(torch.arange(count) % 7 == 0, 0.0, h.abs())
    ends = [
        end.to(dtype)[None] for end in (x - w, x + w, y * (1 + h * (y < 0)), y * (1 + h * (y > 0)))
    ]
    pairs = Bounds(*ends[:2]), Bounds(*ends[2:])
    return Quotient(Node([], (count,)), Node([], (count,))), pairs


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_strip_encloses_a_quotient(dtype):
    node, (x, y) = quotient(dtype)
    a, b, middle, reach = (part.double() for part in node.strip(x, y))
    hull = node.range(x, y)
    share = torch.rand(200, 2, *a.shape, generator=torch.Generator().manual_seed(4), dtype=F64)
    share[100:] = share[100:].round()
    x, y = (
        torch.lerp(*(end.double() for end in pair), share[:, at]) for at, pair in enumerate((x, y))
    )
    values, terms = x / y, (a * x).abs() + (b * y).abs()
    gap = (values - a * x - b * y - middle).abs()
    assert (gap <= reach + 8 * torch.finfo(F64).eps * terms).all()
    near = 4 * torch.finfo(dtype).eps * values.abs()
    assert ((hull.lower - near <= values) & (values <= hull.upper + near)).all()


def test_the_strip_of_a_quotient_touches_it_in_small_boxes_but_for_the_square_of_their_size():
    node, _ = quotient(F64)
    center = (
        torch.tensor([[3.0, -0.5, 0.0]], dtype=F64),
        torch.tensor([[2.0, 1.0, -4.0]], dtype=F64),
    )
    node = Quotient(Node([], (3,)), Node([], (3,)))
    reach = [node.strip(*(Bounds(c - h, c + h) for c in center)).reach for h in (1e-2, 1e-3)]
    assert (reach[1] <= 0.011 * reach[0]).all()


class Logged(Base):
    """A logarithm of what may become negative."""

    def forward(self, x):
        return self.head(self.rnn(torch.log(x))[0][:, -1])


def test_beyond_the_domain_nothing_is_certified_and_a_loss_says_why():
    model, x = Logged().double().eval(), sequences(2, 3).abs() + 0.2
    y = model(x).argmax(1)
    assert certify(model, x, y, LpBall(1e-4)).certified.all()
    far = certify(model, x, y, LpBall(3.0))
    assert far.margin.isnan().all()
    assert not far.certified.any()
    radius = certified_radius(model, x, y)
    assert (radius > 1e-4).all()
    assert (radius <= x.flatten(1).amin(1)).all()
    for method in ("ibp", "crown-ibp", "popqorn-fast"):
        assert CertifiedLoss(1e-3, method=method)(model, x, y).isfinite()
        with pytest.raises(ValueError, match="domain of a logarithm"):
            CertifiedLoss(3.0, method=method)(model, x, y)
