"""Both directions, projections and cells: sound at every depth, and close to the truth."""

import math

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, bound, certified_radius, logit_bounds
from tests.bounds.test_backward import contains
from tests.problems import (
    CELLS,
    F64,
    METHODS,
    SOME_CELLS,
    logits_at,
    points_inside,
    recurrent,
    sequences,
)

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")


class Net(nn.Module):
    """A recurrent stack, its states or its outputs, a head."""

    def __init__(self, cell, *, read="states", hidden=4, features=3, **options):
        super().__init__()
        self.rnn = recurrent(cell, features, hidden, batch_first=True, **options)
        sides = 2 if self.rnn.bidirectional else 1
        width = self.rnn.proj_size or hidden
        self.head, self.read, self.sides = nn.Linear(sides * width, 3), read, sides

    def forward(self, x):
        out, state = self.rnn(x)
        if self.read == "mean":
            return self.head(out.mean(1))
        h_n = state[0] if isinstance(state, tuple) else state
        return self.head(torch.cat([*h_n[-self.sides :]], 1))


def build(cell, *, seed=0, gain=1.5, **options):
    torch.manual_seed(seed)
    model = Net(cell, **options).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(gain)
    return model


@pytest.mark.one_in(2, first=1)
@pytest.mark.parametrize(("p", "read"), [(2, "states"), (math.inf, "mean")])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_both_directions_are_enclosed(cell, depth, read, p):
    model = build(cell, num_layers=depth, bidirectional=True, read=read)
    x = sequences(2, 4)
    logits = logits_at(model, points_inside(model, x, 0.2, p, count=200))
    for method in METHODS:
        assert contains(logit_bounds(model, x, LpBall(0.2, p), method=method), logits), method


@pytest.mark.one_in(2)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_projected_states_are_enclosed(bidirectional):
    model = build("lstm", num_layers=2, proj_size=2, bidirectional=bidirectional)
    x = sequences(2, 4)
    logits = logits_at(model, points_inside(model, x, 0.3, 2, count=300))
    for method in METHODS:
        assert contains(logit_bounds(model, x, LpBall(0.3, 2), method=method), logits)


class Cells(nn.Module):
    """The same weights as a layer, walked by hand."""

    def __init__(self, rnn, head):
        super().__init__()
        kinds = {nn.RNN: nn.RNNCell, nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell}
        options = {"nonlinearity": rnn.nonlinearity} if isinstance(rnn, nn.RNN) else {}
        self.cell = kinds[type(rnn)](rnn.input_size, rnn.hidden_size, **options)
        for name, weight in self.cell.named_parameters():
            weight.data = rnn.get_parameter(f"{name}_l0").data
        self.head = head

    def forward(self, x):
        state = None
        for t in range(x.size(1)):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.one_in(4, first=1)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_in_a_loop_has_the_bounds_of_the_layer(cell, method):
    model, x = build(cell), sequences(3, 5)
    loop = Cells(model.rnn, model.head)
    for ball in (LpBall(0.1), LpBall(0.2, 2), LpBall(0.1, low=-1.0)):
        ball = ball if ball.low is None else LpBall(0.1, low=x.min().item())
        one, other = (logit_bounds(m, x, ball, method=method) for m in (model, loop))
        for side, same in zip(one, other, strict=True):
            torch.testing.assert_close(side, same, rtol=0, atol=1e-12)


def test_the_backward_direction_is_the_forward_one_of_the_flipped_sequence():
    model, x = build("gru", bidirectional=True), sequences(2, 4)
    flipped = build("gru", bidirectional=True)
    with torch.no_grad():
        pairs = {name.removesuffix("_reverse") for name, _ in model.rnn.named_parameters()}
        for name in pairs:
            one, two = (model.rnn.get_parameter(name + end) for end in ("", "_reverse"))
            flipped.rnn.get_parameter(name).copy_(two)
            flipped.rnn.get_parameter(name + "_reverse").copy_(one)
        flipped.head.weight.copy_(model.head.weight.roll(4, 1))
    one, two = logit_bounds(model, x, LpBall(0.1)), logit_bounds(flipped, x.flip(1), LpBall(0.1))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def subdivided(model, x, epsilon, parts):
    """Hull of the interval bounds on a grid of small boxes: encloses the true range."""
    ends = torch.linspace(-1, 1, parts + 1, dtype=F64)
    middles, half = (ends[1:] + ends[:-1]) / 2, epsilon / parts
    grid = torch.cartesian_prod(*[middles] * x.numel()).view(-1, *x.shape[1:])
    lower, upper = logit_bounds(model, x + epsilon * grid, LpBall(half), method="ibp")
    return lower.amin(0), upper.amax(0)


TINY = [
    (cell, time, features, bidirectional)
    for cell in CELLS
    for time, features in ((1, 2), (2, 1))
    for bidirectional in (False, True)
]


@pytest.mark.parametrize(("cell", "time", "features", "bidirectional"), TINY)
def test_bounds_of_tiny_nets_are_near_the_truth(cell, time, features, bidirectional):
    model = build(cell, hidden=2, features=features, bidirectional=bidirectional, seed=3)
    x = sequences(1, time, features, seed=3)
    outer = subdivided(model, x, 0.3, parts=60)
    corners = torch.linspace(-1, 1, 61, dtype=F64)
    points = torch.cartesian_prod(*[corners] * x.numel()).view(-1, *x.shape[1:])
    inner = model(x + 0.3 * points).aminmax(dim=0)
    lower, upper = (side[0] for side in logit_bounds(model, x, LpBall(0.3)))
    assert (lower <= inner.min + 1e-12).all()
    assert (upper >= inner.max - 1e-12).all()
    ratio = ((upper - lower) / (outer[1] - outer[0])).max().item()
    truth = ((upper - lower) / (inner.max - inner.min)).max().item()
    print(
        f"{cell} T={time} N={features} both={bidirectional}: width / subdivided {ratio:.3f}, "
        f"width / sampled {truth:.3f}"
    )
    assert truth >= 1 - 1e-9
    assert ratio < 2.0


@pytest.mark.one_in(2)
@pytest.mark.parametrize("cell", SOME_CELLS)
def test_radii_of_a_stack_are_positive_and_sound(cell):
    model, x = build(cell, num_layers=2, bidirectional=True, gain=1.0), sequences(3, 4)
    y = model(x).argmax(1)
    radius = certified_radius(model, x, y)
    assert (radius > 0).all()
    for index, r in enumerate(radius.tolist()):
        one = x[index : index + 1]
        logits = logits_at(model, points_inside(model, one, r, math.inf, count=200))
        assert (logits.argmax(-1) == y[index]).all()


def test_frames_of_an_image_read_by_cells_are_its_rows():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRUCell(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            h, rows = None, x.view(-1, 4, 4)
            for t in range(rows.size(1)):
                h = self.cell(rows[:, t], h)
            return self.head(h)

    model, x = Rows().double().eval(), torch.randn(2, 1, 4, 4).double()
    case = bound(model).instance(x)
    torch.testing.assert_close(case.center, x[:, 0])
    torch.testing.assert_close(case.logits(case.center), model(x))
