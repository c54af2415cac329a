"""Affine forms enclose what every node is worth, and cost no more than they may."""

import math

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, Substitutions, bound, certified_radius, certify, logit_bounds
from popqorn_train.bounds import form_maker
from popqorn_train.bounds.affine import Linear
from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.forward import ForwardPass, bytes_of_forms
from popqorn_train.bounds.images import Stacked
from popqorn_train.bounds.methods import METHODS, FastPopqorn
from popqorn_train.bounds.node import Root
from popqorn_train.bounds.popqorn import STRIPS
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.bounds.slices import Frame
from popqorn_train.bounds.symbols import Symbols
from popqorn_train.bounds.witness import values_at
from popqorn_train.perturbations.region import Bounds
from tests.problems import (
    CELLS,
    F64,
    NORMS,
    SOME_CELLS,
    build,
    logits_at,
    margins,
    points_inside,
    predicted,
    sequences,
    steps_inside,
)

FAST = METHODS["popqorn-fast"]
cells = pytest.mark.parametrize("cell", SOME_CELLS)
norms = pytest.mark.parametrize("p", NORMS)
strips = pytest.mark.parametrize("strip", STRIPS)


class Recorded(ForwardPass):
    """A pass that keeps the range of every form it measures, not cut with intervals."""

    def __init__(self, output, strip="least_gap"):
        super().__init__(output, STRIPS[strip], Relaxation("tilted", ("sigmoid_tanh",)))
        self.measured = {}

    def _measured(self, node):
        self.measured[node] = super()._measured(node)
        return self.measured[node]


class Towards(nn.Module):
    """Layers whose forms are made in every way there is: stacked, joined, moved, boxed."""

    def __init__(self, read):
        super().__init__()
        self.first = nn.GRU(3, 4, batch_first=True, bidirectional=True)
        self.row = nn.Linear(8, 3)
        self.second = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.read = read

    def forward(self, x):
        rows = torch.tanh(self.row(self.first(x)[0]))
        if self.read == "flipped":
            rows = rows.flip(1)
        if self.read == "scaled":
            rows = rows * 0.5 + x
        if self.read == "gated":
            rows = rows * torch.sigmoid(x)
        out = self.second(rows)[0]
        if self.read == "max":
            return self.head(out.amax(1))
        if self.read == "mean":
            return self.head(out.mean(1))
        return self.head(out[:, -1])


READS = ("last", "flipped", "scaled", "gated", "max", "mean")


def towards(read):
    torch.manual_seed(3)
    return Towards(read).double().eval()


def excess(model, x, ball, steps, strip="least_gap"):
    """How far values at points of the ball leave the range of a form, at most; and how many."""
    case = bound(model).instance(x)
    with torch.no_grad():
        run = Recorded(case.graph(ball), strip)
        run.run()
        worst, count = -math.inf, 0
        for step in steps:
            values = values_at(run._outline.nodes[-1], case.value + step)
            for node, (lower, upper) in run.measured.items():
                value = values[node]
                off = torch.maximum(lower - value, value - upper).max().item()
                worst, count = max(worst, off), count + value.numel()
            worst = max(worst, 1e-4 * out_of_bands(run, values))
    return worst, count


def out_of_bands(run, values):
    """How far arguments of products leave their octagons, at most, in half widths."""
    worst = -math.inf
    for node, domains in run._domains.items():
        factors = node.factors(*[run.found.ranges[parent] for parent in node.inputs])
        for (_, x, y), (box, bands) in zip(factors, domains, strict=True):
            scale = box.scale()
            p = (x.sign * values[x.node] - scale.x) / scale.half_x
            q = (y.sign * values[y.node] - scale.y) / scale.half_y
            for at, low, high in ((p + q, *bands[:2]), (p - q, *bands[2:])):
                moves = (box.ux - box.lx > 1e-12) & (box.uy - box.ly > 1e-12)
                off = torch.maximum(low - at, at - high).where(moves, -1)
                worst = max(worst, off.max().item())
    return worst


@strips
@norms
@cells
def test_no_value_leaves_the_range_of_its_form(cell, p, strip):
    model, x = build(cell, num_layers=2), sequences(3, 5)
    for epsilon in (0.01, 0.2):
        steps = epsilon * steps_inside((60, *x.shape), p)
        worst, count = excess(model, x, LpBall(epsilon, p), steps, strip)
        assert count > 6e3
        assert worst <= 1e-13


@pytest.mark.slow
@strips
@norms
@cells
def test_ten_million_values(cell, p, strip):
    total = 0
    for seed in range(5):
        model, x = build(cell, num_layers=2, seed=seed), sequences(20, 6, seed=seed)
        for epsilon in (0.003, 0.05, 0.5):
            steps = epsilon * steps_inside((60, *x.shape), p, seed=seed)
            worst, count = excess(model, x, LpBall(epsilon, p), steps, strip)
            total += count
            assert worst <= 1e-12
    assert total > 5e5


@pytest.mark.one_in(10)
@pytest.mark.parametrize("read", READS)
def test_forms_of_sequences_enclose_their_values(read):
    model, x = towards(read), sequences(2, 5)
    steps = 0.1 * steps_inside((30, *x.shape), math.inf)
    assert excess(model, x, LpBall(0.1), steps)[0] <= 1e-13
    assert excess(model, x, LpBall(0.1, 2), 0.1 * steps_inside((30, *x.shape), 2))[0] <= 1e-13


@pytest.mark.one_in(4)
@pytest.mark.parametrize("p", NORMS)
def test_masks_and_sizes_of_frames_hold_in_forms(p):
    model, x = towards("last"), sequences(2, 5)
    sizes = torch.tensor([0.0, 0.3, 0.0, 0.05, 0.2], dtype=F64)
    ball = LpBall(sizes.expand(2, 5), p, frames=torch.tensor([True, True, False, True, True]))
    steps = sizes[:, None] * steps_inside((60, *x.shape), p)
    assert excess(model, x, ball, steps)[0] <= 1e-13
    one = LpBall(0.3, p, scope="sequence")
    apart = steps_inside((60, 2, 1, 15), p).view(-1, *x.shape)
    assert excess(model, x, one, 0.3 * apart)[0] <= 1e-13


@pytest.mark.one_in(6)
@pytest.mark.parametrize("read", READS)
def test_what_has_no_form_is_left_to_its_range(read, monkeypatch):
    model, x, ball = towards(read), sequences(2, 5), LpBall(0.05)
    formed = logit_bounds(model, x, ball, method=FAST)
    monkeypatch.setattr(form_maker, "_MOST", 0)
    boxed = logit_bounds(model, x, ball, method=FAST)
    logits = logits_at(model, points_inside(model, x, 0.05, math.inf, count=300))
    assert ((boxed.lower <= logits) & (logits <= boxed.upper)).all()
    crown = logit_bounds(model, x, ball, method="crown-ibp")
    width, other, worst = ((b.upper - b.lower).mean() for b in (formed, boxed, crown))
    assert width <= other * 1.001
    assert other < worst


@cells
def test_margins_are_never_below_those_of_crown_ibp(cell):
    model, x = build(cell), sequences(16, 5)
    for epsilon in (1e-3, 0.03, 0.3, 3.0):
        fast, crown = (
            certify(model, x, predicted(model, x), LpBall(epsilon), method=m).margins
            for m in (FAST, "crown-ibp")
        )
        assert (fast >= crown).all()


def test_bounds_are_exact_for_a_linear_model():
    class Straight(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(3, 4, nonlinearity="relu", batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Straight().double(), sequences(4, 4)
    with torch.no_grad():
        model.rnn.bias_ih_l0.add_(100)  # every unit is open
    x.requires_grad_()
    top = model(x)[:, 0]
    (gradient,) = torch.autograd.grad(top.sum(), x)
    found = logit_bounds(model, x.detach(), LpBall(0.1), method=FAST)
    expected = top.detach() + 0.1 * gradient.abs().sum((1, 2))
    torch.testing.assert_close(found.upper[:, 0].detach(), expected, rtol=0, atol=1e-9)


def test_float32_forms_allow_for_their_rounding():
    """Over many frames; the sums of absolute values must not grow as intervals do.

    Boxes go through a compiled loop, where there is one, and other balls through torch.
    """
    for cell, p in (*((cell, math.inf) for cell in CELLS), ("tanh", 2)):
        model, x = build(cell, hidden=16, gain=1.0), sequences(2, 40)
        single = bound(model.float())
        steps, ball = 1e-4 * steps_inside((12, *x.shape), p), LpBall(1e-4, p)
        case = single.instance(x.float())
        with torch.no_grad():
            run = Recorded(case.graph(ball))
            run.run()
        exact = bound(model.double()).instance(x.float().double())
        nodes = exact.graph(ball)
        twins = dict(zip(run._outline.nodes, ancestors(nodes), strict=True))
        widths = []
        with torch.no_grad():
            for step in steps:
                values = values_at(nodes, exact.value + step)
                for node, (lower, upper) in run.measured.items():
                    value = values[twins[node]]
                    assert ((lower.double() <= value) & (value <= upper.double())).all()
                    widths.append((upper - lower).max().item())
        assert max(widths) < 0.1, (cell, p)


def test_what_cancels_out_on_the_way_to_the_input_is_rounded_as_its_terms_are():
    x = torch.rand(1, 1, 64, generator=torch.Generator().manual_seed(0))
    root = Root(LpBall(1e-3).around(x))
    many = 1e4 * torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    few = torch.randn(4, 96, generator=torch.Generator().manual_seed(2))
    few -= (few @ many) @ torch.linalg.pinv(many)  # few @ many is 0, but for rounding
    node = Linear(Linear(Frame(root, 0), many), few)
    symbols = Symbols(root.region)
    lower, upper = (end.double() for end in symbols.measured(symbols.affine(node))[0])
    exact = x[:, 0].double() @ many.double().T @ few.double().T
    assert ((lower <= exact) & (exact <= upper)).all()
    widest = (1e-3 * (few.double() @ many.double()).abs().sum(1)).max()
    assert (upper - lower).min() > 2 * widest  # rounding is most of it


def test_padding_that_a_sample_does_not_have_changes_nothing():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(3, 4, batch_first=True, bidirectional=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(
                x, lengths, batch_first=True, enforce_sorted=False
            )
            _, (state, _) = self.rnn(packed)
            return self.head(torch.cat([state[0], state[1]], -1))

    torch.manual_seed(0)
    model, x, lengths = Packed().double(), sequences(3, 6), torch.tensor([2, 6, 4])
    one = logit_bounds(model, (x, lengths), LpBall(0.1), method=FAST)
    other = x.clone()
    other[0, 2:] = 1e6
    two = logit_bounds(model, (other, lengths), LpBall(0.1), method=FAST)
    torch.testing.assert_close(one.lower, two.lower, rtol=0, atol=1e-12)


def test_words_are_replaced_in_forms_as_in_bounds():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rnn = nn.Embedding(12, 4), nn.LSTM(4, 5, batch_first=True)
            self.head = nn.Linear(5, 2)

        def forward(self, tokens):
            return self.head(self.rnn(self.embed(tokens))[0][:, -1])

    torch.manual_seed(0)
    model, tokens = Words().double().eval(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    swaps = Substitutions({1: [7], 2: [8, 9], 4: [10], 6: [11]}, budget=2)
    found = logit_bounds(model, tokens, swaps, method=FAST)
    for first in (1, 7):
        for second in (2, 8, 9):
            logits = model(torch.tensor([[first, second, 3]]))[0]
            assert ((found.lower[0] <= logits) & (logits <= found.upper[0])).all()
    loose = logit_bounds(model, tokens, swaps, method="crown-ibp")
    assert (found.upper - found.lower).mean() < 0.9 * (loose.upper - loose.lower).mean()


@pytest.mark.one_in(2)
@cells
def test_radii_are_sound_and_close_to_those_of_popqorn(cell):
    model, x = build(cell), sequences(8, 4)
    y = predicted(model, x)
    fast, full, crown = (
        certified_radius(model, x, y, method=m) for m in (FAST, "popqorn", "crown-ibp")
    )
    assert (fast >= crown * (1 - 0.02)).all()
    assert (fast / full).median() > 0.75
    points = points_inside(model, x, 1.0, math.inf, count=300) - x
    moved = x + points * (fast * (1 - 1e-6))[:, None, None]
    assert (margins(logits_at(model, moved).flatten(0, 1), y.repeat(len(moved))) > 0).all()


def test_the_estimate_of_memory_grows_with_frames_twice_and_layers():
    sizes = {}
    for layers, time in ((1, 4), (1, 8), (2, 8)):
        case = bound(build("lstm", num_layers=layers)).instance(sequences(1, time))
        output = case.graph(LpBall(0.1))
        sizes[layers, time] = bytes_of_forms(output, case.value)
        assert FAST.bytes_a_sample(output, case.value) > sizes[layers, time]
    assert 1.9 < sizes[1, 8] / sizes[1, 4] < 2.1
    assert sizes[2, 8] > 1.5 * sizes[1, 8]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strips": "best"}, "`strips` must be one of 'least_gap', 'chords'"),
        ({"slopes": "best"}, "`slopes` must be one of"),
        ({"octagons": "reset"}, "`octagons` must be a tuple"),
    ],
)
def test_unknown_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        FastPopqorn(**options)


def test_frames_have_forms_of_their_own():
    case = bound(towards("last")).instance(sequences(2, 5))
    run = Recorded(case.graph(LpBall(0.1)))
    kept = []
    original = run._made
    run._made = lambda node: kept.append(original(node)) or kept[-1]
    run.run()
    assert any(isinstance(form, Stacked) for form in kept)
    assert all(isinstance(bounds, Bounds) for bounds in run.measured.values())
    assert not run._forms  # nothing is kept that nobody reads
