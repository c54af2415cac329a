"""What every bound owes, for every cell: soundness first."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from popqorn_train import LpBall, bound, logit_bounds
from popqorn_train.bounds.affine import Linear
from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.concatenation import readers_of_input
from popqorn_train.bounds.methods import TRAINING
from popqorn_train.bounds.node import Root
from popqorn_train.bounds.slices import Frame, Span
from popqorn_train.bounds.tape import Tape
from popqorn_train.kernels.library import SWITCH, kernels
from tests.problems import (
    CELLS,
    F64,
    METHODS,
    NORMS,
    build,
    logits_at,
    points_inside,
    sampled_problem,
    sequences,
)

TOLERANCE = 1e-12
LAYERS, TIMES = (1, 2), (1, 2, 5, 12)
cells = pytest.mark.parametrize("cell", CELLS)
methods = pytest.mark.parametrize("method", METHODS)
norms = pytest.mark.parametrize("p", NORMS)


def contains(bounds, logits):
    low, high = bounds.lower - TOLERANCE, bounds.upper + TOLERANCE
    return bool(((low <= logits) & (logits <= high)).all())


@pytest.mark.parametrize("time", TIMES)
@norms
@pytest.mark.parametrize("layers", LAYERS)
@cells
def test_no_point_of_the_ball_leaves_the_bounds(cell, layers, p, time):
    model, x, logits = sampled_problem(cell, layers, p, time, epsilon=0.1)
    assert logits.shape[:2].numel() >= 1e4
    ball = LpBall(0.1, p)
    for method in METHODS if time == 5 else ("ibp", "popqorn"):
        assert contains(logit_bounds(model, x, ball, method=method), logits), method


@methods
@cells
@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, 1.0, 30.0])
def test_tiny_and_huge_balls_are_enclosed(cell, method, epsilon):
    model, x = build(cell, seed=1), sequences(3, 4, seed=1)
    logits = logits_at(model, points_inside(model, x, epsilon, math.inf, count=300))
    assert contains(logit_bounds(model, x, LpBall(epsilon), method=method), logits)


@methods
@cells
@pytest.mark.parametrize("read", ["state", "mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
def test_every_way_to_read_the_sequence_is_enclosed(cell, method, read, bias):
    model, x = build(cell, read=read, bias=bias, num_layers=2), sequences(2, 4)
    logits = logits_at(model, points_inside(model, x, 0.2, 2, count=300))
    assert contains(logit_bounds(model, x, LpBall(0.2, 2), method=method), logits)


@norms
@methods
@cells
def test_domain_bounds_hold_for_points_of_ball_and_domain(cell, method, p):
    model, x = build(cell), sequences(2, 3).clamp(-0.5, 0.5)
    points = points_inside(model, x, 0.4, p, count=500).clamp(-0.5, 0.5)
    free = logit_bounds(model, x, LpBall(0.4, p), method=method)
    cut = logit_bounds(model, x, LpBall(0.4, p, low=-0.5, high=0.5), method=method)
    assert contains(cut, logits_at(model, points))
    assert (cut.upper - cut.lower).sum() < (free.upper - free.lower).sum()


@methods
@cells
def test_bounds_of_a_sequence_ball_lie_inside_those_of_frame_balls(cell, method):
    model, x = build(cell), sequences(2, 4)
    one = logit_bounds(model, x, LpBall(0.2, 2, scope="sequence"), method=method)
    each = logit_bounds(model, x, LpBall(0.2, 2), method=method)
    points = points_inside(model, x, 0.1, 2, count=300)  # 4 frames: 0.1 each is 0.2 in all
    assert contains(one, logits_at(model, points))
    # Intervals look at one frame at a time, for which both balls are the same.
    ratio = (one.upper - one.lower).sum(1) / (each.upper - each.lower).sum(1)
    assert (ratio < (1 + TOLERANCE if method == "ibp" else 0.9)).all()


@methods
@cells
def test_frames_that_stay_do_not_loosen_the_bounds(cell, method):
    model, x = build(cell), sequences(2, 4)
    mask = torch.tensor([False, True, False, True])
    points = points_inside(model, x, 0.2, math.inf, count=300)
    points = torch.where(mask[:, None], points, x)
    some = logit_bounds(model, x, LpBall(0.2, frames=mask), method=method)
    zero = LpBall(torch.where(mask, 0.2, 0.0).expand(2, 4))
    assert contains(some, logits_at(model, points))
    # Searched slopes turn the rounding of boxes of width 0 into other slopes.
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if method.startswith("popqorn") else {}
    torch.testing.assert_close(some, logit_bounds(model, x, zero, method=method), **tolerance)


@pytest.mark.one_in(2)
@methods
@pytest.mark.parametrize("layers", LAYERS)
@cells
def test_a_sample_has_the_same_bounds_alone_and_in_a_batch(cell, layers, method):
    model, x = build(cell, num_layers=layers), sequences(7, 4)
    epsilon = torch.linspace(0.01, 0.3, 7, dtype=F64)
    whole = logit_bounds(model, x, LpBall(epsilon, 2), method=method)
    for i in (0, 3, 6):
        alone = logit_bounds(model, x[i : i + 1], LpBall(epsilon[i].item(), 2), method=method)
        for side, both in zip(alone, whole, strict=True):
            torch.testing.assert_close(side, both[i : i + 1], rtol=0, atol=1e-12)


@methods
@norms
@pytest.mark.parametrize("layers", LAYERS)
@cells
def test_epsilon_zero_gives_the_clean_logits(cell, layers, p, method):
    model, x = build(cell, num_layers=layers), sequences(3, 5)
    lower, upper = logit_bounds(model, x, LpBall(0.0, p), method=method)
    torch.testing.assert_close(lower, model(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(upper, model(x), rtol=0, atol=1e-12)


@methods
@norms
@cells
def test_a_larger_ball_has_wider_bounds(cell, p, method):
    model, x = build(cell), sequences(3, 4)
    found = [logit_bounds(model, x, LpBall(e, p), method=method) for e in (0, 0.05, 0.2)]
    assert (torch.stack([bounds.lower for bounds in found]).diff(dim=0) <= 0).all()
    assert (torch.stack([bounds.upper for bounds in found]).diff(dim=0) >= 0).all()
    assert (found[-1].upper > found[0].upper + 0.01).all()


@pytest.mark.one_in(4)
@norms
@cells
def test_backward_bounds_are_never_looser_than_intervals(cell, p):
    model, x = build(cell, num_layers=2), sequences(2, 3)
    for epsilon in (0.01, 0.1, 1.0):
        ibp, *linear = (
            logit_bounds(model, x, LpBall(epsilon, p), method=method) for method in METHODS
        )
        for better in linear:
            assert (better.lower >= ibp.lower - TOLERANCE).all()
            assert (better.upper <= ibp.upper + TOLERANCE).all()


@pytest.mark.one_in(2)
@cells
def test_methods_get_tighter_in_the_order_of_their_cost(cell):
    model, x = build(cell), sequences(16, 6)
    found = [logit_bounds(model, x, LpBall(0.05), method=method) for method in METHODS]
    widths = [(bounds.upper - bounds.lower).mean().item() for bounds in found]
    assert widths[0] > 1.05 * widths[1]
    assert widths[1] > 1.01 * widths[2]
    assert widths[2] > 0.99 * widths[3]


@pytest.mark.one_in(2)
@methods
@cells
def test_float32_bounds_are_close_to_float64_bounds(cell, method):
    model, x = build(cell, num_layers=2), sequences(3, 5).float()
    exact = logit_bounds(model, x.double(), LpBall(0.05, 2), method=method)
    single = logit_bounds(model.float(), x, LpBall(0.05, 2), method=method)
    assert single.lower.dtype == torch.float32
    for side, reference in zip(single, exact, strict=True):
        torch.testing.assert_close(side.double(), reference, rtol=1e-4, atol=1e-4)


@pytest.mark.one_in(4, first=1)
@methods
@cells
def test_gradients_of_the_bounds_are_exact(cell, method):
    model, x = build(cell, hidden=2, classes=2), sequences(1, 2, seed=4)
    weights = tuple(model.parameters())  # gradcheck moves them in place
    ball = LpBall(0.1, 2)
    quick = method != "ibp"  # in some directions
    method = TRAINING[method]  # with closed forms; searched slopes are held fixed
    bounds = functools.partial(logit_bounds, model, x, ball, method=method)
    assert gradcheck(lambda *_: bounds(), weights, fast_mode=quick)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 100.0])
@norms
@methods
@cells
def test_gradients_are_finite_for_zero_width_and_saturated_boxes(cell, method, p, epsilon):
    for gain in (0.0, 1.5, 100.0):
        model, x = build(cell, gain=gain), sequences(2, 3)
        lower, upper = logit_bounds(model, x, LpBall(epsilon, p), method=method)
        for gradient in torch.autograd.grad((upper - lower + lower).sum(), model.parameters()):
            assert gradient.isfinite().all()


class Direct(nn.Module):
    """The hidden state of the last frame, without a head."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn.double()

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


@methods
@pytest.mark.parametrize(("p", "reach"), [(1, 4.0), (2, 5.0), (math.inf, 7.0)])
def test_one_frame_of_a_vanilla_rnn_is_bounded_exactly(p, reach, method):
    for kind, f in (("tanh", torch.tanh), ("relu", torch.relu)):
        model = Direct(nn.RNN(2, 1, nonlinearity=kind, bias=False, batch_first=True))
        model.rnn.weight_ih_l0.data = torch.tensor([[3.0, -4.0]], dtype=F64)
        x = torch.tensor([[[0.2, 0.1]]], dtype=F64)
        lower, upper = logit_bounds(model, x, LpBall(0.1, p), method=method)
        ends = f(torch.tensor([0.2 - 0.1 * reach, 0.2 + 0.1 * reach], dtype=F64))
        zero = torch.zeros(2, dtype=F64)  # one logit stands for the classes (0, logit)
        torch.testing.assert_close(torch.cat([lower, upper]), torch.stack([zero, ends], 1))


class Flat(nn.Module):
    """Affine in the sequence, but through slices, sums and joins."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4, dtype=F64), nn.Linear(8, 3, dtype=F64)

    def forward(self, x):
        out = self.inner(x)
        return self.head(torch.cat([out[:, 0] - 2 * out[:, -1], out.mean(1)], 1)).relu()


@methods
@pytest.mark.parametrize("p", [*NORMS, 3.0])
def test_an_affine_node_takes_its_range_from_the_ball_and_not_from_its_box(p, method):
    model, x = Flat(), sequences(2, 4)
    rows = torch.func.vmap(torch.func.jacrev(lambda x: before(model, x[None])[0]))(x)
    q = {1: math.inf, 2: 2, 3.0: 1.5, math.inf: 1}[p]
    reach = 0.3 * torch.linalg.vector_norm(rows, q, dim=-1).sum(-1)
    lower, upper = logit_bounds(model, x, LpBall(0.3, p), method=method)
    torch.testing.assert_close(lower, (before(model, x) - reach).relu())
    torch.testing.assert_close(upper, (before(model, x) + reach).relu())


def before(model, x):
    """What the last relu of ``Flat`` reads."""
    out = model.inner(x)
    return model.head(torch.cat([out[:, 0] - 2 * out[:, -1], out.mean(1)], 1))


def test_intervals_of_a_gru_are_the_hull_of_state_and_candidate():
    # A convex combination of numbers in [-1, 1] stays there; two products bounded apart do not.
    model, x = Direct(nn.GRU(3, 4, num_layers=2, batch_first=True)), sequences(2, 12)
    for epsilon in (1.0, 10.0, 1e3):
        lower, upper = logit_bounds(model, x, LpBall(epsilon), method="ibp")
        assert (lower >= -1).all()
        assert (upper <= 1).all()


@pytest.mark.parametrize("sizes", [((2, 2), (1, 3)), ((4,), (1, 2, 1)), ((3, 1), (3, 1))])
def test_spans_that_overlap_add_up(sizes):
    torch.manual_seed(0)
    x = torch.randn(2, 1, 4, dtype=F64)
    root = Root(LpBall(0.1).around(x))
    whole = Linear(Frame(root, 0), torch.randn(4, 4, dtype=F64))
    parts = [Span(whole, cut, place) for cut in sizes for place in range(len(cut))]
    slopes = [torch.randn(1, 3, *part.shape, dtype=F64) for part in parts]
    tape, total = Tape(2), torch.zeros(1, 3, 4, dtype=F64)
    for part, slope in zip(parts, slopes, strict=True):
        tape.add_slice(part, slope)
        total[..., part.start : part.stop] += slope
    node, found = next(tape.drain())
    assert node is whole
    torch.testing.assert_close(found, total.expand_as(found), rtol=0, atol=1e-15)


class Reads(nn.Module):
    """Reads every frame once, or the first one a second time."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        options = {"batch_first": True, "dtype": F64, "bidirectional": how == "both ways"}
        self.rnn = nn.RNN(12, 20, 2 if how == "two layers" else 1, **options)
        self.head = nn.Linear(self.rnn.hidden_size * (2 if how == "both ways" else 1), 4, dtype=F64)
        self.skip = nn.Linear(12, 4, dtype=F64)

    def forward(self, x):
        logits = self.head(self.rnn(x)[0][:, -1])
        if self.how == "a layer beside":
            logits = logits + self.skip(x[:, 0])
        if self.how == "itself":
            logits = logits + x[:, 0, :1]
        return logits


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("how", ["once", "two layers", "both ways", "a layer beside", "itself"])
def test_bounds_do_not_depend_on_loops(how, p, monkeypatch):
    torch.manual_seed(0)
    model, x = Reads(how), torch.randn(2, 4, 12, dtype=F64)
    ball, found = LpBall(0.1, p), []
    for switch in ("1", "0"):
        monkeypatch.setenv(SWITCH, switch)
        with torch.no_grad():
            found.append(torch.stack([*logit_bounds(model, x, ball, method="popqorn")]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-8)


@pytest.mark.skipif(kernels().library is None, reason="no compiled loops")
@pytest.mark.parametrize("threads", [1, 2])
def test_products_are_left_to_torch_where_it_has_threads(threads, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(Linear, "least", lambda *args: asked.append(args))
    torch.manual_seed(0)
    with torch.no_grad():
        logit_bounds(Reads("once"), torch.randn(2, 4, 12, dtype=F64), LpBall(0.1), method="popqorn")
    assert bool(asked) == (threads == 1)


@pytest.mark.parametrize(
    ("how", "frames"),
    [("once", 4), ("two layers", 4), ("both ways", 0), ("a layer beside", 0), ("itself", 0)],
)
def test_the_input_is_left_out_where_every_frame_is_read_once(how, frames):
    x = torch.randn(2, 4, 12, dtype=F64)
    logits = bound(Reads(how)).instance(x).graph(LpBall(0.1))
    nodes = ancestors(logits)
    reading = readers_of_input(nodes, [logits])
    assert len(reading) == frames
    assert {node.t for node in reading} == set(range(frames))
    assert readers_of_input(nodes, [logits, nodes[0]]) == ()
