"""Lines and ranges of elementwise functions in general, and of a maximum."""

import pytest
import torch

from popqorn_train.bounds.bilinear import Bilinear
from popqorn_train.bounds.maximum import Maximum
from popqorn_train.bounds.node import Node
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.bows import BOWS
from popqorn_train.relaxations.curves import CURVES

F64 = torch.float64
SETTINGS = {"clamp": (-0.5, 0.7), "clip": (None, 0.3)}
CASES = [(name, SETTINGS.get(name, ())) for name in CURVES if name not in BOWS]
CASES += [("gelu", ("tanh",)), ("elu", (2.0,)), ("celu", (0.5,)), ("leaky_relu", (-0.3,))]
CASES += [("softplus", (3.0, 6.0)), ("clamp", (0.1,))]
every_curve = pytest.mark.parametrize(
    "curve", [CURVES[name](*settings) for name, settings in CASES], ids=[str(c) for c in CASES]
)


def boxes(width, count=500):
    """Intervals around 0 and points inside, ends and 0 among them."""
    generator = torch.Generator().manual_seed(0)
    middle = 4 * torch.randn(count, generator=generator, dtype=F64)
    half = width * torch.rand(count, generator=generator, dtype=F64)
    lower, upper = middle - half, middle + half
    x = torch.lerp(lower, upper, torch.rand(200, count, generator=generator, dtype=F64))
    x = torch.cat([x, torch.stack([lower, upper, torch.zeros_like(lower)])])
    return lower, upper, x.clamp(lower, upper)


@pytest.mark.parametrize("width", [0.0, 1e-6, 0.1, 3.0, 40.0])
@every_curve
def test_lines_and_range_enclose_a_curve(curve, width):
    lower, upper, x = boxes(width)
    f, lines = curve.value(x), curve.lines(lower, upper)
    assert (lines.lower_slope * x + lines.lower_intercept <= f).all()
    assert (lines.upper_slope * x + lines.upper_intercept >= f).all()
    hull = curve.range(Bounds(lower, upper))
    assert (hull.lower <= f + 1e-14).all()
    assert (hull.upper >= f - 1e-14).all()


@every_curve
def test_lines_are_close_where_the_interval_is_short(curve):
    lower, upper, _ = boxes(1e-3)
    lines = curve.lines(lower, upper)
    gap = (lines.upper_slope - lines.lower_slope) * lower
    gap = gap + lines.upper_intercept - lines.lower_intercept
    kinked = torch.zeros_like(gap, dtype=torch.bool)
    for place in curve.breaks:
        kinked |= (lower <= place) & (place <= upper) | (curve.miss > 0) & (place <= upper)
    assert (gap[~kinked] <= 1e-5).all()


@every_curve
def test_the_bend_of_a_curve_is_not_understated(curve):
    step = 1e-3
    x = torch.arange(-12, 12, step, dtype=F64)
    bend = (curve.value(x + step) - 2 * curve.value(x) + curve.value(x - step)) / step**2
    away = torch.ones_like(x, dtype=torch.bool)
    for place in curve.breaks:
        away &= (x - place).abs() > 2 * step
    assert bend[away].abs().max() <= curve.bend + 1e-4


@pytest.mark.parametrize("threshold", [20.0, 2.0])
def test_softplus_covers_what_torch_computes_beyond_its_threshold(threshold):
    curve = CURVES["softplus"](1.5, threshold)
    lower, upper, x = boxes(10.0)
    f, lines = torch.nn.functional.softplus(x, 1.5, threshold), curve.lines(lower, upper)
    hull = curve.range(Bounds(lower, upper))
    assert (lines.lower_slope * x + lines.lower_intercept <= f).all()
    assert (lines.upper_slope * x + lines.upper_intercept >= f).all()
    assert ((hull.lower <= f + 1e-14) & (f <= hull.upper + 1e-14)).all()


def sides_of(lower, upper):
    return Maximum(Node([], lower.shape[1:])).relax(None, Bounds(lower, upper))


@pytest.mark.parametrize("time", [1, 2, 3, 7])
@pytest.mark.parametrize("width", [0.0, 0.1, 5.0])
def test_lines_enclose_a_maximum_and_touch_it(time, width):
    generator = torch.Generator().manual_seed(1)
    lower = torch.randn(200, time, 2, generator=generator, dtype=F64)
    upper = lower + width * torch.rand(200, time, 2, generator=generator, dtype=F64)
    sides = sides_of(lower, upper)
    inside = torch.rand(100, *lower.shape, generator=generator, dtype=F64)
    inside[50:] = inside[50:].round()
    peaks = torch.eye(time, dtype=F64)[:, None, :, None].expand(-1, 200, -1, 2)  # one up, rest down
    x = torch.lerp(lower, upper, torch.cat([inside, peaks]))
    most = x.amax(2)
    above = (sides.upper * x).sum(2) + sides.intercept
    assert ((sides.lower * x).sum(2) <= most + 1e-14).all()
    assert (above >= most).all()
    assert ((above - most).amin(0) <= 1e-11).all()  # no smaller intercept would do


def test_a_maximum_that_one_entry_always_attains_is_exact():
    lower = torch.tensor([[[0.0], [2.0], [-1.0]]], dtype=F64)
    upper = torch.tensor([[[1.0], [5.0], [1.9]]], dtype=F64)
    sides = sides_of(lower, upper)
    expected = torch.tensor([[[0.0], [1.0], [0.0]]], dtype=F64)
    torch.testing.assert_close(sides.lower, expected)
    torch.testing.assert_close(sides.upper, expected)
    assert 0 <= sides.intercept.item() < 1e-13


def test_gradients_of_a_maximum_are_finite_where_its_greatest_entry_stands_still():
    lower = torch.tensor([[[0.0], [2.0]]], dtype=F64, requires_grad=True)
    upper = torch.tensor([[[1.0], [2.0]]], dtype=F64, requires_grad=True)
    sides = sides_of(lower, upper)
    height = (sides.upper * upper).sum() + sides.intercept.sum()
    assert height.item() == pytest.approx(2)
    assert all(part.isfinite().all() for part in torch.autograd.grad(height, (lower, upper)))


@pytest.mark.parametrize("width", [0.0, 1e-6, 0.1, 5.0])
def test_a_strip_encloses_a_product_and_touches_it(width):
    generator = torch.Generator().manual_seed(1)
    lower = torch.randn(2, 300, 4, generator=generator, dtype=F64)
    upper = lower + width * torch.rand(2, 300, 4, generator=generator, dtype=F64)
    pair = Bounds(lower[0], upper[0]), Bounds(lower[1], upper[1])
    node = Bilinear(Node([], (4,)), Node([], (4,)))
    strip, hull = node.relax(None, *pair), node.range(*pair)
    share = torch.rand(200, 2, 300, 4, generator=generator, dtype=F64)
    share[100:] = share[100:].round()
    x, y = torch.lerp(lower, upper, share).unbind(1)
    gap = x * y - (strip.x * x + strip.y * y + strip.intercept)
    assert (gap.abs() <= strip.reach).all()
    assert (gap.abs().amax(0) >= strip.reach - 1e-11).float().mean() > 0.99
    assert ((hull.lower <= x * y) & (x * y <= hull.upper)).all()


@pytest.mark.parametrize(("name", "settings"), [("celu", (-1.0,)), ("softplus", (-2.0,))])
def test_settings_without_a_known_bend_are_refused(name, settings):
    with pytest.raises(ValueError, match="must be positive"):
        CURVES[name](*settings)


@pytest.mark.parametrize("width", [0.0, 1e-6, 0.1, 5.0])
def test_the_planes_that_a_row_chooses_enclose_a_product_and_one_meets_it_at_every_corner(width):
    generator = torch.Generator().manual_seed(2)
    lower = torch.randn(2, 300, 4, generator=generator, dtype=F64)
    upper = lower + width * torch.rand(2, 300, 4, generator=generator, dtype=F64)
    ranges = Bounds(lower[0], upper[0]), Bounds(lower[1], upper[1])
    node = Bilinear(Node([], (4,)), Node([], (4,)))
    corners = [(x[:, None], y[:, None]) for x in ranges[0] for y in ranges[1]]
    inside = torch.rand(200, 2, 300, 1, 4, generator=generator, dtype=F64)
    x, y = torch.lerp(lower[:, :, None], upper[:, :, None], inside).unbind(1)
    for point in corners:
        below, above = node.closest(point, ranges)
        for a, b in ((x, y), *corners):
            assert (below[0] * a + below[1] * b + below[2] <= a * b).all()
            assert (above[0] * a + above[1] * b + above[2] >= a * b).all()
        for plane in (below, above):
            gap = (plane[0] * point[0] + plane[1] * point[1] + plane[2] - point[0] * point[1]).abs()
            assert gap.max() <= 1e-12
