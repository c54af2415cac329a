"""What the trace could miss of a user's model: each is bounded soundly, or refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from popqorn_train import (
    CertifiedLoss,
    LpBall,
    UnsupportedModelError,
    bound,
    certify,
    logit_bounds,
)
from popqorn_train.certificates import planning
from popqorn_train.tracing import trace
from popqorn_train.training.objective import CHECK_EVERY


class Net(nn.Module):
    """A recurrent classifier whose forward is given."""

    def __init__(self, forward, cell=nn.GRU, **options):
        super().__init__()
        self.rnn = cell(3, 4, batch_first=True, **options)
        self.head, self.skip = nn.Linear(4, 3), nn.Linear(3, 3)
        self.act, self.scale = nn.ReLU(inplace=True), nn.Parameter(torch.tensor(2.0))
        self.start = nn.Parameter(torch.randn(1, 1, 4))
        self.code = forward
        self.temperature = {"value": 1.0}
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        return self.code(self, x)


def inputs(batch=4):
    return torch.randn(batch, 5, 3, generator=torch.Generator().manual_seed(1)).double()


def assert_sound(model, x, epsilon=0.3):
    """Sampled and corner points of the ball stay inside the bounds of every method."""
    moves = torch.rand(200, *x.shape, generator=torch.Generator().manual_seed(2)).double() * 2 - 1
    moves[100:] = moves[100:].sign()
    for method in ("ibp", "crown-ibp", "popqorn"):
        lower, upper = logit_bounds(model, x, LpBall(epsilon), method=method)
        for move in moves:
            logits = model(x + epsilon * move)
            assert (logits >= lower - 1e-11).all()
            assert (logits <= upper + 1e-11).all()


def double_frame(net, x):
    states = net.rnn(x)[0].reshape(len(x), 5, 2, 2)
    return net.head(torch.cat([states[:, 0][:, 1].tanh(), states[:, 4][:, 0].sigmoid()], 1))


def state_as_tuple(net, x):
    _, state = net.rnn(x)
    if isinstance(state, tuple):
        state = state[0]
    return net.head(state[-1])


def named_arguments(net, x):
    start = net.start.expand(1, len(x), 4).contiguous()
    states = net.rnn(torch.tanh(input=x), hx=start)[0]
    return net.head(input=torch.flatten(input=states[:, -1], start_dim=1))


def same_shape(net, x):
    states = net.rnn(x)[0]
    return net.head((states + states[:, -1:].expand_as(states)).mean(1))


def counted(net, x):
    net.calls = net.calls + 1
    net.seen = x.mean()
    return net.head(net.rnn(x)[0][:, -1])


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("forward", "cell"),
    [
        (double_frame, nn.GRU),
        (state_as_tuple, nn.GRU),
        (state_as_tuple, nn.LSTM),
        (named_arguments, nn.GRU),
        (same_shape, nn.RNN),
    ],
)
def test_what_users_write_is_bounded_soundly(forward, cell):
    torch.manual_seed(3)
    assert_sound(Net(forward, cell).double().eval(), inputs())


def view_then_relu(net, x):
    states = net.rnn(x)[0]
    last = states[:, -1]
    functional.relu(last, inplace=True)
    return net.head(states.mean(1))


def module_on_a_view(net, x):
    states = net.rnn(x)[0]
    return net.head(net.act(states[:, -1]) + states.mean(1))


def leaky_on_a_view(net, x):
    states = net.rnn(x)[0]
    functional.leaky_relu(states[:, -1], 0.1, True)
    return net.head(states.mean(1))


def hardtanh_on_a_view(net, x):
    states = net.rnn(x)[0]
    functional.hardtanh(states[:, -1], -0.1, 0.1, inplace=True)
    return net.head(states.mean(1))


def batch_mean(net, x):
    return net.head(net.rnn(x)[0][:, -1]) - net.start.sum() * x.detach().mean(0).sum()


def floored(net, x):
    return net.head(torch.div(net.rnn(x)[0][:, -1], 0.1, rounding_mode="floor"))


def whole_numbers(net, x):
    return net.head((10 * net.rnn(x)[0][:, -1]).to(torch.int64).to(x.dtype))


def dealt_anew(net, x):
    return net.head(net.rnn(x)[1].reshape(len(x), -1)[:, :4])


@pytest.mark.parametrize(
    ("forward", "message", "options"),
    [
        (view_then_relu, "works in place", {}),
        (module_on_a_view, "works in place", {}),
        (leaky_on_a_view, "works in place", {}),
        (hardtanh_on_a_view, "works in place", {}),
        (batch_mean, "mixes samples", {}),
        (floored, "rounding_mode", {}),
        (whole_numbers, "whole numbers", {}),
        (dealt_anew, "different samples", {"num_layers": 2}),
    ],
)
def test_what_would_be_bounded_wrongly_is_refused(forward, message, options):
    with pytest.raises(UnsupportedModelError, match=message):
        certify(Net(forward, **options).double(), inputs(), torch.zeros(4).long(), LpBall(0.1))


def test_a_mean_over_the_batch_of_another_input_is_refused():
    class Context(Net):
        def forward(self, x, context):
            return self.head(self.rnn(x)[0][:, -1] + (context - context.mean(0)))

    x, context = inputs(), torch.randn(4, 4).double()
    with pytest.raises(UnsupportedModelError, match="mixes samples"):
        certify(Context(None).double(), (x, context), torch.zeros(4).long(), LpBall(0.1))


def test_a_forward_that_keeps_things_finds_nothing_of_the_trace():
    model = Net(counted).double().eval()
    certify(model, inputs(), torch.zeros(4).long(), LpBall(0.1))
    assert model.calls.item() == 0
    assert type(model.calls) is torch.Tensor
    assert not hasattr(model, "seen")
    model(inputs())
    assert model.calls.item() == 1


def test_a_setting_that_changes_unseen_is_traced_anew():
    model = Net(lambda net, x: net.head(net.rnn(x)[0][:, -1]) * net.temperature["value"]).double()
    x, ball = inputs(), LpBall(0.0)
    before = logit_bounds(model, x, ball).lower
    model.temperature["value"] = 3.0
    torch.testing.assert_close(logit_bounds(model, x, ball).lower, 3 * before)
    loss = CertifiedLoss(0.1)
    first = loss(model, x, torch.zeros(4).long())
    model.temperature["value"] = -1.0
    later = [loss(model, x, torch.zeros(4).long()) for _ in range(CHECK_EVERY)]
    assert later[-1] != first


def test_classes_that_only_inherit_a_layer_are_that_layer():
    class Own(nn.ReLU):
        pass

    class Cell(nn.GRU):
        pass

    torch.manual_seed(3)
    model = Net(lambda net, x: net.head(net.own(net.rnn(x)[0][:, -1])), Cell)
    model.own = Own()
    assert_sound(model.double().eval(), inputs(2))


def test_a_counter_that_forward_does_not_read_traces_nothing_anew(monkeypatch):
    recorded = []
    record = trace.record
    monkeypatch.setattr(planning, "record", lambda *a: recorded.append(a) or record(*a))
    model, x = Net(state_as_tuple).double(), inputs()
    loss = CertifiedLoss(0.1)
    for step in range(3):
        model.steps = step
        model.outputs = [torch.zeros(step)]
        loss(model, x, torch.zeros(4).long())
    assert len(recorded) == 1


def set_plain(net):
    net.frame = 0


def set_private(net):
    net._frame = -5


def set_item(net):
    net.frames[0] = 0


@pytest.mark.parametrize("change", [set_plain, set_private, set_item])
def test_a_setting_that_a_helper_of_forward_reads_is_noticed(change):
    class Choosing(Net):
        def __init__(self):
            super().__init__(None)
            self.frame, self._frame, self.frames = 4, -1, [4]

        def forward(self, x):
            return self.head(self.picked(self.rnn(x)[0]))

        def picked(self, states):
            return states[:, self.frame] + states[:, self._frame] + states[:, self.frames[0]]

    model, x, y = Choosing().double(), inputs(), torch.zeros(4).long()
    loss = CertifiedLoss(0.1)
    before = loss(model, x, y)
    change(model)
    fresh = Choosing().double()
    fresh.load_state_dict(model.state_dict())
    change(fresh)
    assert loss(model, x, y) != before
    assert loss(model, x, y) == loss(fresh, x, y)


def test_two_embeddings_ask_which_one_moves():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.rnn = nn.Embedding(9, 3), nn.GRU(3, 4, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, one, two):
            states = [self.rnn(self.embedding(tokens))[0][:, -1] for tokens in (one, two)]
            return self.head(states[0] - states[1])

    model, tokens = Pair(), torch.arange(8).view(2, 4)
    with pytest.raises(UnsupportedModelError, match=r"several embeddings .*perturb="):
        logit_bounds(model, (tokens, tokens + 1), LpBall(0.1))
    second = bound(model, perturb="embedding_1")
    lower, upper = logit_bounds(second, (tokens, tokens + 1), LpBall(0.1))
    assert (upper - lower > 1e-3).all()


class SortedConstant(nn.Module):
    """Reads a field of what torch returns, of something that does not move."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)
        self.scale = nn.Buffer(torch.tensor([3.0, 1.0, 2.0]))

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1]) * self.scale.sort().values


def test_named_results_of_torch_keep_their_names():
    model = SortedConstant().eval()
    x = torch.randn(2, 5, 3)
    bounds = logit_bounds(model, x, LpBall(0.0))
    torch.testing.assert_close(bounds.lower, model(x), rtol=1e-4, atol=1e-5)
