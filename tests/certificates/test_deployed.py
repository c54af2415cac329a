"""Certificates of the model as it computes in float32, beside float32 with sums in any order."""

import functools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from popqorn_train import Box, LpBall, Substitutions, bound, certified_radius, certify
from popqorn_train.bounds.memory import Chunks
from popqorn_train.bounds.methods import METHODS, method_named
from popqorn_train.certificates.certificate import check_confirm
from popqorn_train.certificates.deployed import MODULES, MOVING, STILL, as_deployed
from popqorn_train.certificates.query import make_query
from popqorn_train.certificates.search import twin_of
from popqorn_train.errors import UnsupportedModelError
from popqorn_train.operations.registry import MODULES as BOUNDED
from popqorn_train.operations.registry import OPERATIONS
from tests.zoo import zoo

aten = torch.ops.aten
RULED = (
    "LastValid", "MaskedMean", "MaskedMax", "BiGRUMasked", "GRUCellLoop",
    "LSTMCellLoop", "GRUByHand", "LSTMByHand", "RNNCellDecay", "Residual", "MaxOverTime",
    "StateViewed", "Projected", "SharedTwice", "AdditiveAttention", "SelfAttention",
    "DotAttention", "HeadsByHand", "SentimentPacked",
)  # fmt: skip


class AnyOrder(TorchDispatchMode):
    """Adds up products, and entries, in orders drawn at random, in the precision they come in."""

    def __init__(self, seed):
        super().__init__()
        self.draw = torch.Generator().manual_seed(seed)

    def total(self, terms, dim):
        terms = terms.movedim(dim, 0)
        parts = list(terms[torch.randperm(len(terms), generator=self.draw)].unbind(0))
        while len(parts) > 1:  # any two are added, a long one more often
            at = int(torch.randint(len(parts) - 1, (), generator=self.draw)) // 2
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts[0]

    def product(self, x, y, more=None):
        terms = (x[..., :, :, None] * y[..., None, :, :]).movedim(-2, 0)
        if more is not None:
            terms = torch.cat([terms, more.expand(terms.shape[1:])[None]])
        return self.total(terms, 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (aten.mm.default, aten.bmm.default):
            return self.product(*args)
        if func is aten.addmm.default and not kwargs:
            return self.product(args[1], args[2], args[0])
        if func in (aten.sum.dim_IntList, aten.mean.dim) and len(args[1]) == 1:
            x, dim = args[0], args[1][0]
            found = self.total(x, dim) / (x.shape[dim] if func is aten.mean.dim else 1)
            return found.unsqueeze(dim) if len(args) > 2 and args[2] else found
        return func(*args, **kwargs)


def in_float32(name):
    """A model of the zoo as it is shipped, its inputs, and labels."""
    model, inputs = zoo()[name]
    model = model.float().requires_grad_(False)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    inputs = tuple(x.float() if x.is_floating_point() else x for x in inputs)
    y = as_logits(model(*inputs)).argmax(1)
    return model, inputs, y


def as_logits(output):
    output = output[0] if isinstance(output, tuple) else output
    return output if output.ndim == 2 and output.shape[1] > 1 else two_classes(output)


def two_classes(output):
    column = output.reshape(-1, 1)
    return torch.cat([torch.zeros_like(column), column], 1)


def bounds_of(instance, ball, method="popqorn"):
    """Bounds of the logits."""
    output = instance.graph(ball)
    unit = torch.eye(output.shape[0], dtype=torch.float64)
    with torch.no_grad():
        lower, minus = (
            method_named(method).lower(output, torch.cat([unit, -unit])[None]).chunk(2, 1)
        )
    return lower, -minus


def instances(model, inputs):
    layer = bound(model)
    exact = layer.instance(inputs, torch.float64)
    return exact, as_deployed(exact, layer)


@pytest.mark.one_in(2)
@pytest.mark.filterwarnings("ignore:TF32 acceleration", "ignore:LSTM with projections")
@pytest.mark.parametrize("name", RULED)
def test_float32_stays_within_the_bound_in_any_order_of_its_sums(name):
    """At one input the ball is a point, and the bounds of the logits are those of rounding."""
    model, inputs, _ = in_float32(name)
    exact, computed = instances(model, inputs)
    low, high = bounds_of(computed, LpBall(0.0), "crown-ibp")
    real = exact.logits(exact.center)
    worst = torch.zeros_like(low)
    for seed in range(3):
        with torch.backends.mkldnn.flags(enabled=False), torch.no_grad(), AnyOrder(seed):
            found = as_logits(model(*inputs)).double()
        assert (found >= low).all()
        assert (found <= high).all()
        worst = torch.maximum(worst, (found - real).abs())
    half = (high - low) / 2
    assert half.max() < 1e-4 * (1 + real.abs().max())
    assert (worst.max() / half.max()) > 3e-3  # bounds are no more than some hundred times too far


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "popqorn-fast", "popqorn", "popqorn-tight"])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_rounding_costs_a_millionth_of_a_margin(kind, method):
    model, x, y = small(kind)
    real = certify(model, x, y, LpBall(0.01), method=method)
    computed = certify(model, x, y, LpBall(0.01), method=method, confirm="deployed")
    loss = real.margin - computed.margin
    assert (loss > 0).all()
    assert (loss < 3e-5).all()
    assert computed.numerics == "deployed float32"


def small(kind, size=6):
    torch.manual_seed(1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = kind(3, size, batch_first=True), nn.Linear(size, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    model = Model().eval().requires_grad_(False)
    x = torch.randn(3, 4, 3)
    return model, x, model(x).argmax(1)


def test_radii_are_a_little_smaller():
    model, x, y = small(nn.GRU)
    real = certified_radius(model, x, y, rtol=1e-3)
    computed = certified_radius(model, x, y, rtol=1e-3, confirm="deployed")
    assert (computed <= real).all()
    assert (computed >= real * (1 - 2e-3)).all()


def test_a_sample_is_bounded_as_in_a_batch():
    model, x, y = small(nn.LSTM)
    whole = certify(model, x, y, LpBall(0.02), confirm="deployed").margin
    alone = [certify(model, x[[i]], y[[i]], LpBall(0.02), confirm="deployed") for i in range(3)]
    torch.testing.assert_close(torch.cat([one.margin for one in alone]), whole)


def test_frames_that_do_not_move_round_too():
    """The layer is unrolled from its first frame on, although the graph of real numbers is not."""
    model, x, _ = small(nn.RNN)
    last = torch.tensor([False, False, False, True])
    exact, computed = instances(model, x)
    ball = LpBall(0.01, frames=last)
    low, high = bounds_of(computed, ball)
    still, above = bounds_of(exact, ball)
    assert (low < still).all()
    assert (high > above).all()
    assert ((still - low) < 1e-5).all()


class Cancelling(nn.Module):
    """Over the real numbers class 1 wins by 1/2; float32 loses that beside 2^26."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2, bias=False)
        self.head.weight.data = torch.tensor([[0.0, 0.0, 0.0], [2.0**26, 0.5, -(2.0**26)]])

    def forward(self, x):
        return self.head(x.mean(1) if x.ndim == 3 else x)


def test_what_float32_loses_is_not_certified():
    model, x, y = Cancelling().eval(), torch.ones(1, 1, 3), torch.tensor([1])
    assert model(x)[0, 1] == 0
    # A probe would see it, at this input.
    assert certify(model, x, y, LpBall(1e-10), probes=0).certified.all()
    assert not certify(model, x, y, LpBall(1e-10), confirm="deployed", probes=0).certified.any()
    assert not (certified_radius(model, x, y, confirm="deployed", probes=0) > 0).any()


def test_radii_are_confirmed_on_the_graph_of_what_is_computed():
    model, x, y = small(nn.RNN)
    layer, method = bound(model), method_named("popqorn")
    options = {"against": None, "ball": LpBall(0.0), "method": method, "chunks": Chunks(None)}
    query = make_query(layer, x, y, **options)
    assert twin_of(query, layer, x, "deployed").instance.deployed
    assert not twin_of(query, layer, x, "float64").instance.deployed
    assert twin_of(query, layer, x, None) is None


def test_biases_that_cancel_out_round_as_they_are_added():
    model, x, y = small(nn.LSTM)
    plain = certify(model, x, y, LpBall(0.01), confirm="deployed").margin
    model.rnn.bias_ih_l0.data += 1024.0
    model.rnn.bias_hh_l0.data -= 1024.0
    far = certify(model, x, y, LpBall(0.01), confirm="deployed").margin
    real = certify(model, x, y, LpBall(0.01)).margin
    assert ((real - far) > 20 * (real - plain).abs().clamp(max=5e-6)).all()


def test_boxes_and_substitutions_too():
    model, x, y = small(nn.GRU)
    box = Box(x - 0.01, x + 0.01)
    found = certify(model, x, y, box, confirm="deployed")
    assert (found.margin < certify(model, x, y, box).margin).all()

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.rest = nn.Embedding(7, 3), model

        def forward(self, tokens):
            return self.rest(self.embedding(tokens))

    words, tokens = Words().eval(), torch.tensor([[1, 2, 3, 4]])
    label, swaps = words(tokens).argmax(1), Substitutions({2: [5]})
    real = certify(words, tokens, label, swaps)
    computed = certify(words, tokens, label, swaps, confirm="deployed")
    assert computed.certified.all()
    torch.testing.assert_close(computed.margin, real.margin, rtol=1e-2, atol=1e-5)


def test_every_method_certifies_what_is_deployed():
    model, x, y = small(nn.RNN)
    for method in METHODS:
        assert certify(model, x, y, LpBall(1e-4), method=method, confirm="deployed").certified.all()


class Refused(nn.Module):
    """A classifier with one step of its own before the head."""

    def __init__(self, step):
        super().__init__()
        self.head, self.step = nn.Linear(3, 2), step
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]))

    def forward(self, x):
        return self.head(self.step(self, x).mean(1))


REFUSED = {
    "an operation without a rule": (lambda own, x: torch.sin(x), "the operation 'sin' has no"),
    "a module without a rule": (lambda own, x: own.norm(x), "module 'norm' has no"),
    "a constant worked out": (lambda own, x: x + (own.mean * 0.3).exp(), "is worked out beside"),
    "constants summed up": (lambda own, x: x + own.mean.sum(), "is worked out beside"),
    "a constant that float32 has not": (
        lambda own, x: x + own.mean.masked_fill(own.mean > 0, 0.1),
        "is worked out beside",
    ),
    "half precision": (
        lambda own, x: x + own.mean.to(torch.float16).float(),
        "is worked out beside",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_rule_is_refused_with_a_way_out(case):
    step, text = REFUSED[case]
    model = Refused(step)
    if "module" in case:
        model.norm = nn.LayerNorm(3)
    arguments = model.eval(), torch.rand(2, 4, 3), torch.tensor([0, 1]), LpBall(0.01)
    with pytest.raises(UnsupportedModelError, match=text) as error:
        certify(*arguments, confirm="deployed")
    assert "Use confirm='float64'" in str(error.value)


def test_states_that_forward_works_out_are_refused():
    """What the layer makes of a state other than 0 is rounded before anything moves."""
    model, inputs, y = in_float32("TimeMajorPacked")
    with pytest.raises(UnsupportedModelError, match="constants that forward works out"):
        certify(model, inputs, y, LpBall(0.01), confirm="deployed")


def test_weights_and_outputs_that_are_refused():
    model, x, y = small(nn.GRU)
    ask = functools.partial(certify, ball=LpBall(0.01), confirm="deployed")
    with pytest.raises(UnsupportedModelError, match="not float32"):
        ask(small(nn.GRU)[0].double(), x.double(), y)
    with pytest.raises(UnsupportedModelError, match="not float32"):
        ask(small(nn.GRU)[0].bfloat16(), x.bfloat16(), y)
    with pytest.raises(UnsupportedModelError, match="probabilities"):
        ask(nn.Sequential(model, nn.Softmax(1)), x, y)
    nn.utils.parametrizations.weight_norm(model.head)
    with pytest.raises(UnsupportedModelError, match="worked out at every call"):
        ask(model, x, y)


def test_only_what_is_bounded_has_a_rule():
    assert set(OPERATIONS) >= MOVING
    assert set(MODULES) <= set(BOUNDED)
    assert not STILL & {"matmul", "sum", "mul"}
    check_confirm("deployed")
    with pytest.raises(ValueError, match="'float64', 'deployed' or None"):
        check_confirm("float32")
