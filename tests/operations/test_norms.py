"""Normalisation layers: their ranges and lines hold, the rounding of small numbers included."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from popqorn_train import LpBall, UnsupportedModelError, certify, logit_bounds
from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.node import Root
from popqorn_train.bounds.normal import normalised
from popqorn_train.perturbations.region import Bounds
from tests.problems import Base, sequences

F64 = torch.float64


def normal(lower, upper, eps):
    """The node of a vector and its inverse scale, and their ranges."""
    node = normalised(Root(LpBall(0.1).around(lower[:, None])), eps)
    ranges = {}
    for passed in ancestors(node)[:-1]:
        read = [ranges[parent] for parent in passed.inputs]
        ends = Bounds(lower[:, None], upper[:, None])
        ranges[passed] = passed.range(*read) if passed.inputs else ends
    return node, [ranges[parent] for parent in node.inputs]


def formula(x, eps):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


@pytest.mark.parametrize("width", [0.0, 1e-3, 5.0])
def test_range_and_planes_enclose_what_is_normalised(width):
    center, steps = 2 * torch.randn(200, 6, dtype=F64), 2 * torch.rand(100, 200, 6, dtype=F64) - 1
    steps[50:] = steps[50:].sign()
    lower, upper = center - width, center + width
    x = (center + width * steps).clamp(lower, upper)
    f, (node, read) = formula(x, 1e-5), normal(lower, upper, 1e-5)
    hull, strip = node.range(*read), node.relax(None, *read)
    assert ((hull.lower[:, 0] <= f + 1e-14) & (f <= hull.upper[:, 0] + 1e-14)).all()
    scale = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    on_x, on_scale, middle, reach = (part[:, 0] for part in strip)
    assert ((f - on_x * x - on_scale * scale - middle).abs() <= reach).all()


def test_the_range_is_reached():
    lower, upper = (
        torch.tensor([[-1.0, 0.5, 2.0]], dtype=F64),
        torch.tensor([[1.0, 3.0, 2.5]], dtype=F64),
    )
    node, read = normal(lower, upper, 0.1)
    hull = node.range(*read)
    worst = [[[1, 0.5, 2], [0, 3, 2], [0, 0.5, 2.5]], [[-1, 0.5, 2], [1, 0.5, 2.5], [1, 3, 2]]]
    for side, points in zip((hull.upper, hull.lower), worst, strict=True):
        reached = formula(torch.tensor(points, dtype=F64), 0.1).diagonal()
        torch.testing.assert_close(side[0, 0], reached, rtol=0, atol=1e-13)


def test_the_range_of_a_point_holds_its_exact_value_in_float32():
    x = torch.randn(2000, 5)
    exact, (node, read) = formula(x.double(), 1e-5), normal(x, x, 1e-5)
    lower, upper = (end[:, 0].double() for end in node.range(*read))
    assert ((lower <= exact) & (exact <= upper)).all()
    assert (upper - lower < 1e-4).all()


def test_one_feature_that_is_all_reaches_the_root_of_their_number():
    lower, upper = torch.full((1, 4), -9.0, dtype=F64), torch.full((1, 4), 9.0, dtype=F64)
    node, read = normal(lower, upper, 1e-12)
    hull = node.range(*read)
    torch.testing.assert_close(hull.upper[:, 0], torch.full_like(upper, 2.0))
    torch.testing.assert_close(hull.lower[:, 0], torch.full_like(lower, -2.0))


class Small(Base):
    """An RMSNorm without an eps, on states so small that it counts."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(4)

    def forward(self, x):
        return self.head(self.norm(1e-4 * self.rnn(x)[0][:, -1]))


def test_the_eps_of_a_norm_without_one_is_that_of_the_weights():
    torch.manual_seed(0)
    model, x = Small().eval(), sequences(2, 3).float()
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    found = certify(model, x, y, LpBall(0.0))
    assert found.numerics == "float64"
    own = logits.gather(1, y[:, None]) - logits
    finite = found.margins.isfinite()
    torch.testing.assert_close(found.margins[finite].float(), own[finite], rtol=0, atol=1e-4)


class Normed(nn.Module):
    """A recurrent layer, a norm of its states, a head."""

    def __init__(self, norm, call=None):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)
        self.norm, self.call = copy.deepcopy(norm), call
        for weight in self.norm.parameters():
            nn.init.uniform_(weight, 0.5, 2)
        self.double().eval()

    def forward(self, x):
        h = self.rnn(x)[0].transpose(1, 2)
        h = self.norm(h) if self.call is None else self.call(self.norm, h)
        return self.head(h.sum(2))


def running(norm, h, function, *rest, **options):
    weights = norm.running_mean, norm.running_var, norm.weight, norm.bias
    return function(h, *weights, *rest, **options, eps=norm.eps)


FUNCTIONS = {
    "batch": (nn.BatchNorm1d(4), lambda m, h: running(m, h, functional.batch_norm, m.training)),
    "layer": (
        nn.LayerNorm(5),
        lambda m, h: functional.layer_norm(h, m.normalized_shape, m.weight, m.bias, m.eps),
    ),
    "rms": (nn.RMSNorm(5), lambda m, h: functional.rms_norm(h, (5,), m.weight, m.eps)),
    "group": (nn.GroupNorm(2, 4), lambda m, h: functional.group_norm(h, 2, m.weight, m.bias)),
    "instance": (
        nn.InstanceNorm1d(4, affine=True),
        lambda m, h: functional.instance_norm(h, weight=m.weight, bias=m.bias),
    ),
    "instance, by statistics": (
        nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        lambda m, h: running(m, h, functional.instance_norm, use_input_stats=m.training),
    ),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_bounds_of_its_module(name):
    norm, call = FUNCTIONS[name]
    for epsilon in (0.0, 0.05):
        one, two = (
            logit_bounds(Normed(norm, how), sequences(3, 5), LpBall(epsilon), method="crown-ibp")
            for how in (None, call)
        )
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


REFUSED = {
    "of the batch": (
        lambda m, h: functional.batch_norm(h, None, None, training=True),
        "mixes samples|statistics of the batch",
    ),
    "of another order": (
        lambda m, h: torch.batch_norm(
            h, m.weight, m.bias, m.running_mean, m.running_var, False, 0.1, 1e-5, False
        ),
        r"Use torch.nn.functional.batch_norm",
    ),
    "weights that move": (
        lambda m, h: functional.layer_norm(h, (5,), h[0, 0]),
        "weights that move|mixes samples",
    ),
    "several axes": (lambda m, h: functional.layer_norm(h, (4, 5)), "else than the last axis"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_functions_are_refused_with_the_line(name):
    call, message = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=message):
        logit_bounds(Normed(nn.BatchNorm1d(4), call), sequences(3, 5), LpBall(0.01))
