"""Ranges of affine nodes that read an entry along several paths."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from popqorn_train import LpBall, bound, logit_bounds
from popqorn_train.bounds import repeated_reads as module
from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.affine import Linear, Negative, Sum
from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.computed import Computed
from popqorn_train.bounds.contraction import Contraction
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.node import Root
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.bounds.repeated_reads import reread, without_repeats
from popqorn_train.bounds.single_reads import Affine
from popqorn_train.objectives import ibp
from popqorn_train.perturbations.region import Bounds

BATCH, TIME, SIZE = 4, 5, 2
METHODS = ("ibp", "crown-ibp", "popqorn-fast", "popqorn")


def decays(p=math.inf, epsilon=0.3, dtype=torch.float64, weight=None):
    """``c - c[:, -1:]`` of cumulative, or weighted, sums of tanh, and tanh of it."""
    torch.manual_seed(0)
    value = torch.randn(BATCH, TIME, SIZE, dtype=torch.float64).to(dtype)
    h = Activation("tanh", Root(LpBall(epsilon, p).around(value, None, None)))
    weight = value.new_ones(TIME, TIME).tril() if weight is None else weight
    sums = Contraction(
        lambda x, w: torch.einsum("ts,bsh->bth", w, x), h, [weight],
        shape=(TIME, SIZE), batch_axis=0,
    )  # fmt: skip
    last = Affine(lambda x: x[:, -1:].expand(-1, TIME, -1), [sums], (TIME, SIZE), 0)
    return Activation("tanh", Sum([sums, Negative(last)]))


def later(x):
    """Minus the sum of all later frames."""
    return x - x.flip(1).cumsum(1).flip(1)


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("backward", [False, True])
def test_only_later_frames_make_a_difference_of_cumulative_sums_move(p, backward):
    output = decays(p)
    found = enclose(output, relax=Relaxation(), backward=backward)
    (node,) = output.inputs
    h = next(node for node in ancestors(output) if isinstance(node, Activation))
    expected = Bounds(*[later(end) for end in found.ranges[h][::-1]])
    if backward:
        assert (found.ranges[node].lower >= expected.lower - 1e-12).all()
        assert (found.ranges[node].upper <= expected.upper + 1e-12).all()
    else:
        torch.testing.assert_close(tuple(found.ranges[node]), tuple(expected))
    region = node.region
    for _ in range(50):
        x = later((region.value + 0.3 * sampled(region.value, p)).tanh())
        assert (found.ranges[node].lower <= x + 1e-12).all()
        assert (x <= found.ranges[node].upper + 1e-12).all()


def test_weights_of_both_signs_are_worth_their_differences():
    weight = torch.randn(TIME, TIME, dtype=torch.float64, generator=torch.manual_seed(1))
    (node,) = (output := decays(weight=weight)).inputs
    found = enclose(output)
    h = next(node for node in ancestors(output) if isinstance(node, Activation))
    rows = weight - weight[-1:]
    lower, upper = found.ranges[h]
    center = torch.einsum("ts,bsh->bth", rows, (lower + upper) / 2)
    radius = torch.einsum("ts,bsh->bth", rows.abs(), (upper - lower) / 2)
    torch.testing.assert_close(found.ranges[node].lower, center - radius)
    torch.testing.assert_close(found.ranges[node].upper, center + radius)
    for sign in (-1, 1):  # the corner that reaches the ends of the first frame
        corner = torch.where(sign * rows[0][:, None] > 0, upper, lower)
        end = found.ranges[node][sign > 0][:, 0]
        torch.testing.assert_close(torch.einsum("s,bsh->bh", rows[0], corner), end)


def sampled(like, p):
    """A point on the unit ball of every frame."""
    step = torch.randn_like(like)
    return step / torch.linalg.vector_norm(step, p, dim=-1, keepdim=True)


def test_nothing_moves_without_epsilon_and_float32_agrees():
    for epsilon, dtype in ((0.0, torch.float64), (0.3, torch.float32)):
        output = decays(epsilon=epsilon, dtype=dtype)
        (node,) = output.inputs
        lower, upper = enclose(output).ranges[node]
        if epsilon:
            exact = enclose(decays()).ranges
            wide = next(ends for at, ends in exact.items() if isinstance(at, Sum))
            torch.testing.assert_close((lower, upper), tuple(end.float() for end in wide))
        else:
            torch.testing.assert_close(lower, later(node.region.value.tanh()))
            torch.testing.assert_close(upper, lower)


def test_layers_that_read_every_entry_once_are_not_walked_back():
    h = decays().inputs[0].inputs[0].inputs[0]
    once = Linear(h, torch.randn(3, SIZE, dtype=torch.float64))
    twice = Linear(once, torch.randn(3, 3, dtype=torch.float64))
    apart = Sum([once, Linear(h.inputs[0], torch.randn(3, SIZE, dtype=torch.float64))])
    nodes = {node: Activation("tanh", node) for node in (once, twice, apart)}
    assert [bool(reread(ancestors(reader))) for reader in nodes.values()] == [
        False, True, False,
    ]  # fmt: skip


def test_long_walks_are_left_out(monkeypatch):
    monkeypatch.setattr(module, "_MOST", 10)
    assert not reread(ancestors(decays()))


def test_ranges_keep_the_rounding_that_a_computed_node_stands_for():
    h = decays().inputs[0].inputs[0].inputs[0]
    rounded = Computed(h, torch.full((1, TIME, SIZE), 0.1, dtype=torch.float64))
    node = Sum([rounded, rounded])
    ranges = enclose(Activation("tanh", node)).ranges
    torch.testing.assert_close(ranges[node].upper, 2 * ranges[h].upper + 0.2)
    torch.testing.assert_close(ranges[node].lower, 2 * ranges[h].lower - 0.2)


def test_ends_that_are_not_finite_leave_the_range_as_it_is():
    node = decays().inputs[0]
    h = next(x for x in ancestors(node) if isinstance(x, Activation))
    wide = torch.full((BATCH, TIME, SIZE), math.inf, dtype=torch.float64)
    kept = Bounds(torch.zeros_like(wide), torch.ones_like(wide))
    assert all(map(torch.equal, without_repeats(node, kept, {h: Bounds(-wide, wide)}), kept))


class Decaying(nn.Module):
    """Values that decay by the gates after them, by cumulative sums or by a matrix."""

    def __init__(self, summed):
        super().__init__()
        self.gate, self.head, self.summed = nn.Linear(SIZE, 3), nn.Linear(3, 2), summed

    def forward(self, x):
        gate = self.gate(x)
        if self.summed:
            decay = torch.cumsum(functional.softplus(gate), dim=1)
            decay = decay - decay[:, -1:]
        else:
            after = torch.ones(x.size(1), x.size(1), dtype=x.dtype).triu(1)
            decay = -torch.einsum("ts,bsh->bth", after, functional.softplus(gate))
        return self.head((torch.exp(decay) * torch.sigmoid(gate)).sum(1))


def both():
    torch.manual_seed(1)
    summed, product = Decaying(True).double().eval(), Decaying(False).double().eval()
    product.load_state_dict(summed.state_dict())
    return bound(summed), bound(product), torch.randn(3, 6, SIZE, dtype=torch.float64)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", METHODS)
def test_a_recurrence_by_cumulative_sums_has_the_bounds_of_its_matrix(method):
    summed, product, x = both()
    for given in (x, x[:1, :4]):  # another batch and length after the first
        nets = summed, product
        one, two = (logit_bounds(net, given, LpBall(0.1), method=method) for net in nets)
        torch.testing.assert_close(tuple(one), tuple(two), rtol=1e-9, atol=1e-9)


def test_so_do_its_gradients():
    summed, product, x = both()
    y = torch.tensor([0, 1, 0])
    gradients = []
    for net in (summed, product):
        ibp(0.1)(net, x, y).backward()
        gradients.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*gradients)
