"""Every registered operation and layer is bounded truly, on tensors of both signs that move.

``a`` and ``b`` of the rows are tanh of one half of the input each, so that every coordinate moves
by itself and the ends of its interval are reached: a range with a wrong sign is left at corners.

P: points.
"""

import functools

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, bound, logit_bounds
from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.node import Root
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.probes import PROBES
from popqorn_train.operations.tables import MODULES, OPERATIONS, SPECTRA
from popqorn_train.perturbations.region import Bounds
from popqorn_train.tracing.steps import called_name
from tests.operations.attention_rows import ATTENTION_ROWS
from tests.operations.function_rows import FUNCTION_ROWS
from tests.operations.layer_rows import layer_rows, spread
from tests.operations.move_rows import MOVE_ROWS
from tests.operations.norm_rows import NORM_ROWS
from tests.operations.product_rows import PRODUCT_ROWS
from tests.operations.rows import ROWS, F, Parts, T
from tests.operations.spectral_rows import SPECTRAL_ROWS
from tests.problems import F64, METHODS

FORMS = ROWS | ATTENTION_ROWS | FUNCTION_ROWS | MOVE_ROWS | PRODUCT_ROWS | NORM_ROWS | SPECTRAL_ROWS
LAYERS = {kind.__name__: kind for kind in layer_rows()}
B, P, EPSILON = 2, 96, 0.4
DTYPES = {"float": torch.float32}  # what it does in float64 is to round
NAMES = [*FORMS, *LAYERS]
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")


class Given:
    """What does not move, with the lengths of the samples."""

    def __init__(self, parts, lengths):
        self.parts, self.lengths = parts, lengths

    def __getattr__(self, name):
        return getattr(self.parts, name)


class Net(nn.Module):
    """All that a row computes, entry by entry, and tanh of it, which reads its intervals."""

    def __init__(self, name):
        super().__init__()
        self.parts, self.forms = Parts(), FORMS.get(name, [])
        rows = layer_rows()[LAYERS[name]] if name in LAYERS else []
        self.calls = [call for call, _ in rows]
        self.layers = nn.ModuleList([layer for _, layer in rows])
        for layer in self.layers:
            spread(layer)

    def forward(self, x, lengths):
        a, b, given = torch.tanh(x[..., :F]), torch.tanh(x[..., F:]), Given(self.parts, lengths)
        found = [form(given, a, b) for form in self.forms]
        for call, layer in zip(self.calls, self.layers, strict=True):
            result = call(layer, a, b)
            found.extend(result if isinstance(result, tuple) else [result])
        found = torch.cat([part.reshape(len(x), -1) for part in found], 1)
        return torch.cat([found, torch.tanh(found)], 1)


@functools.cache
def problem(name):
    """A network whose numbers are those of float32, its inputs, and what bounds it."""
    torch.manual_seed(len(name))
    net = Net(name).eval().to(DTYPES.get(name, F64))
    inputs = torch.randn(B, T, 2 * F).to(net.parts.c.dtype), torch.tensor([4, 2])
    return net, inputs, bound(net)


@functools.cache
def bounds(name, method):
    _, inputs, layer = problem(name)
    probes = PROBES if method == "popqorn" else 0  # the nodes are those of every method
    return logit_bounds(layer, inputs, LpBall(EPSILON), method=method, probes=probes)


def points(x):
    """Points ``(P, B, T, N)`` of the box: corners, and some inside."""
    steps = torch.rand(P, *x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    steps[: 3 * P // 4] = steps[: 3 * P // 4].sign()
    return x + EPSILON * steps.to(x.dtype)


@functools.cache
@torch.no_grad()
def sampled(name):
    """Logits ``(P, B, C)``."""
    net, (x, lengths), _ = problem(name)
    return net(points(x).flatten(0, 1), lengths.repeat(P)).view(P, B, -1)


def rounding(name):
    """How far numbers may be apart that are equal."""
    return 1e-10 if DTYPES.get(name, F64) is F64 else 1e-5


def assert_inside(values, bounds, tolerance):
    outside = torch.maximum(bounds.lower - values, values - bounds.upper).amax()
    assert outside <= tolerance


def test_nothing_is_registered_without_its_row():
    assert set(FORMS) == set(OPERATIONS) | set(SPECTRA)
    assert set(layer_rows()) == set(MODULES)


@pytest.mark.parametrize("name", FORMS)
def test_a_row_calls_its_operation(name):
    _, inputs, layer = problem(name)
    steps = layer.instance(inputs).plan.trace.steps
    assert name in {called_name(step.target) for step in steps if step.kind != "module"}


@pytest.mark.one_in(8, first=1)
@pytest.mark.parametrize("name", NAMES)
def test_no_sampled_point_leaves_the_bounds(name):
    with undisturbed(problem(name)[0]):  # one trace for all methods
        for method in METHODS:
            assert_inside(sampled(name), bounds(name, method), rounding(name))


def values_of(graph, x):
    """The value of every node where what moves is ``x``: the range of one point is one."""
    found = {}
    for node in ancestors(graph):
        ends = Bounds(x, x) if isinstance(node, Root) else node.range(*map(found.get, node.inputs))
        torch.testing.assert_close(ends.lower, ends.upper, rtol=0, atol=1e-6)
        middle = (ends.lower + ends.upper) / 2
        found[node] = Bounds(middle, middle)
    return found


def intervals_of(graph):
    """The interval of every node, from those of its inputs alone."""
    found = {}
    for node in ancestors(graph):
        found[node] = node.range(*map(found.get, node.inputs))
    return found


@pytest.mark.one_in(8, first=3)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_node_stays_in_its_range(name):
    _, inputs, layer = problem(name)
    graph = layer.instance(inputs).graph(LpBall(EPSILON))
    tight = enclose(graph, relax=Relaxation(), backward=True).ranges
    loose, some = intervals_of(graph), range(0, P, 12)
    for x, logits in zip(points(inputs[0])[some], sampled(name)[some], strict=True):
        values = values_of(graph, x)
        for node, value in values.items():
            assert_inside(value.lower, loose[node], 10 * rounding(name))
            assert_inside(value.lower, tight[node], 10 * rounding(name))
        assert (values[graph].lower - logits).abs().amax() <= 10 * rounding(name)


@pytest.mark.one_in(8, first=5)
@pytest.mark.parametrize("name", NAMES)
def test_no_perturbation_leaves_the_value_and_a_sample_alone_has_its_bounds(name):
    net, inputs, layer = problem(name)
    with torch.no_grad():
        logits = net(*inputs)
    alone = tuple(value[1:] for value in inputs)
    with undisturbed(net):
        for method in ("ibp", "crown-ibp"):
            for side in logit_bounds(layer, inputs, LpBall(0.0), method=method):
                assert (side - logits).abs().amax() <= rounding(name)
        own = logit_bounds(layer, alone, LpBall(EPSILON), method="popqorn", probes=0)
    for side, both in zip(own, bounds(name, "popqorn"), strict=True):
        assert (side - both[1:]).abs().amax() <= 10 * rounding(name)


@pytest.mark.one_in(8, first=7)
@pytest.mark.parametrize("name", NAMES)
def test_bounds_in_float32_hold_what_is_sampled_in_float64(name):
    net, (x, lengths), _ = problem(name)
    single = Net(name).eval()
    single.load_state_dict(net.state_dict())
    tolerance = 2e-5 * (1 + sampled(name).abs().amax())
    found = logit_bounds(single, (x.float(), lengths), LpBall(EPSILON), method="popqorn", probes=0)
    assert_inside(sampled(name), found, tolerance)
