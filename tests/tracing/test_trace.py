"""Models as people write them are traced, and what cannot be bounded is refused."""

import gc
import math
import weakref

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, UnsupportedModelError, bound, certify, logit_bounds
from popqorn_train.certificates.pgd import attack
from tests.problems import (
    CLASSES,
    F64,
    HIDDEN,
    METHODS,
    Base,
    Residual,
    TimeFirst,
    build,
    sequences,
    steps_inside,
    zoo,
)

ZOO = zoo()
every_model = pytest.mark.parametrize(("model", "x"), ZOO.values(), ids=ZOO)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", METHODS)
@every_model
def test_epsilon_zero_gives_the_logits_of_the_model(model, x, method):
    lower, upper = logit_bounds(model, x, LpBall(0.0), method=method)
    torch.testing.assert_close(lower, upper, rtol=0, atol=1e-12)
    expected = model(x)
    if isinstance(model, Residual):  # bounds are those of the logits before a softmax
        lower, expected = lower - lower[:, :1], expected - expected[:, :1]
    torch.testing.assert_close(lower, expected, rtol=0, atol=1e-12)


@pytest.mark.one_in(12)
@pytest.mark.parametrize("p", [2, math.inf])
@every_model
def test_no_sampled_point_leaves_the_bounds(model, x, p):
    case = bound(model).instance(x)
    steps = steps_inside((200 * 2, *case.center.shape[1:]), p).view(200, *case.center.shape)
    for method in METHODS:
        lower, upper = logit_bounds(model, x, LpBall(0.3, p), method=method)
        for step in steps:
            logits = case.logits(case.center + 0.3 * step)
            assert (logits >= lower - 1e-12).all()
            assert (logits <= upper + 1e-12).all()


@pytest.mark.one_in(2)
@every_model
def test_an_attack_inside_the_ball_never_beats_the_certificate(model, x):
    y = model(x).argmax(1)
    found = attack(model, x, y, LpBall(0.2), steps=5)
    assert (certify(model, x, y, LpBall(0.2)).margin <= found.margin + 1e-12).all()


@pytest.mark.one_in(6)
@every_model
def test_one_trace_serves_every_batch_size(model, x):
    axis = 1 if type(model) is TimeFirst else 0
    many = torch.cat([x, x, x.flip(axis)], axis)
    expected = logit_bounds(model, many, LpBall(0.1))
    for index in ([0], [1, 2], [0, 1, 2, 3]):
        found = logit_bounds(model, many.index_select(axis, torch.tensor(index)), LpBall(0.1))
        torch.testing.assert_close(found.lower, expected.lower[index], rtol=0, atol=1e-12)


FRAMES = {"Image": (2, 4, 3), "Channels": (2, 4, 3), "Permuted": (2, 4, 3), "Tokens": (2, 4, 3)}


@pytest.mark.parametrize(("name", "shape"), FRAMES.items(), ids=FRAMES)
def test_frames_are_those_that_the_first_recurrent_layer_reads(name, shape):
    model, x = ZOO[name]
    assert bound(model).instance(x).center.shape == shape


def test_a_mask_speaks_of_the_frames_that_the_layer_reads():
    model, x = ZOO["Image"]
    first = torch.tensor([True, False, False, False])
    plain = nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (4, 3)))(x)
    reference = build("gru", gain=1.0)
    reference.load_state_dict(model.state_dict(), strict=False)
    ball = LpBall(0.2, 2, frames=first)
    torch.testing.assert_close(
        logit_bounds(model, x, ball), logit_bounds(reference, plain, ball), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_frames_are_the_rows_of_an_image_that_is_also_read_on_another_way(p):
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 3)
            self.skip = nn.Linear(20, 3)

        def forward(self, x):
            rows = x[:, 0].transpose(1, 2)  # (B, 1, 4, 5) to 5 columns of 4 pixels
            return self.head(self.rnn(rows)[0][:, -1]) + self.skip(x.flatten(1))

    model, x = Skipping().double().eval(), torch.randn(3, 1, 4, 5).double()
    case = bound(model).instance(x)
    torch.testing.assert_close(case.center, x[:, 0].transpose(1, 2))
    torch.testing.assert_close(case.logits(case.center), model(x))
    mask = torch.arange(5) == 2
    bounds = logit_bounds(model, x, LpBall(0.3, p, frames=mask))
    for _ in range(200):
        move = torch.randn(3, 4).double()
        moved = x.clone()
        moved[:, 0, :, 2] += 0.3 * move / move.norm(p=p, dim=1, keepdim=True)
        logits = model(moved)
        assert (logits >= bounds.lower - 1e-12).all()
        assert (logits <= bounds.upper + 1e-12).all()


def test_epsilon_and_domain_keep_the_units_of_the_raw_input():
    model, x = ZOO["Normalised"]
    x = x.clamp(-1, 1)
    reference = build("gru", gain=1.0)
    reference.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():  # the same function of x, normalised by the weights
        weight = reference.rnn.weight_ih_l0
        reference.rnn.bias_ih_l0.sub_(weight @ (model.mean / model.std))
        weight.div_(model.std)
    for ball in (LpBall(0.2, 2), LpBall(0.2, low=-1.0, high=1.0), LpBall(0.3, 1, low=-1.0)):
        for one, two in zip(
            logit_bounds(model, x, ball), logit_bounds(reference, x, ball), strict=True
        ):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)  # slopes are searched


def test_any_step_can_be_named_as_what_moves():
    model, x = build("gru"), sequences(2, 4)
    raw = logit_bounds(bound(model, perturb="x"), x, LpBall(0.1))
    torch.testing.assert_close(raw, logit_bounds(model, x, LpBall(0.1)))
    last = model.rnn(x)[0][:, -1]
    lower, upper = logit_bounds(bound(model, perturb="getitem_2"), x, LpBall(0.1))
    reach = 0.1 * model.head.weight.abs().sum(1)
    torch.testing.assert_close(lower, model.head(last) - reach)
    torch.testing.assert_close(upper, model.head(last) + reach)


class Twice(Base):
    """Logits ``(1 + 1) x[:, 0]``, the frame read twice."""

    def forward(self, x):
        return x[:, 0] + x[:, 0]


@pytest.mark.parametrize("method", METHODS)
def test_a_frame_that_is_read_twice_counts_twice(method):
    x = sequences(2, 3)
    lower, upper = logit_bounds(Twice(), x.float(), LpBall(0.1), method=method)
    torch.testing.assert_close(lower, 2 * x[:, 0].float() - 0.2)
    torch.testing.assert_close(upper, 2 * x[:, 0].float() + 0.2)


def test_binding_a_bound_model_again_returns_it():
    layer = bound(build("gru"))
    assert bound(layer) is layer
    assert bound(layer, perturb="x") is not layer


class Scaled(Base):
    """Its forward depends on a setting, a function, a constant and a layer."""

    def __init__(self):
        super().__init__()
        self.gain, self.squash, self.shift = 1.0, torch.tanh, torch.zeros(HIDDEN, dtype=F64)
        self.activation, self.limits = nn.ReLU(), (0.0, 1.0)

    def forward(self, x):
        out = self.activation(self.squash(self.rnn(x)[0][:, -1]) + self.shift)
        return self.head(self.gain * out + self.limits[0])


CHANGES = {
    "weight": lambda model: model.head.weight.data.mul_(2),
    "setting": lambda model: setattr(model, "gain", 3.0),
    "tuple": lambda model: setattr(model, "limits", (5.0, 1.0)),
    "tensor": lambda model: setattr(model, "shift", torch.ones(HIDDEN, dtype=F64)),
    "layer": lambda model: setattr(model, "activation", nn.Tanh()),
    "head": lambda model: setattr(model, "head", nn.Linear(HIDDEN, CLASSES, dtype=F64)),
    "function": lambda model: setattr(model, "squash", torch.sigmoid),
    "hook": lambda model: model.head.register_forward_hook(lambda _, args, output: 2 * output),
    "forward": lambda model: setattr(model, "forward", lambda x: 3 * Scaled.forward(model, x)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_model_changed_after_it_was_traced_is_not_bounded_as_it_was(change):
    torch.manual_seed(0)
    model, x = Scaled().double(), sequences(2, 3)
    logit_bounds(model, x, LpBall(0.0))
    change(model)
    try:
        lower, upper = logit_bounds(model, x, LpBall(0.0))
    except UnsupportedModelError:
        return  # refusing is sound
    torch.testing.assert_close(lower, model(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(upper, model(x), rtol=0, atol=1e-12)


def test_a_trace_does_not_keep_its_model_alive():
    model = build("gru")
    logit_bounds(model, sequences(2, 3), LpBall(0.1))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


class Branches(Base):
    def forward(self, x):
        return self.last(x if x.sum() > 0 else -x)


class Multiplied(Base):
    def forward(self, x):
        out = self.rnn(x)[0]
        return self.head(out.cumprod(1)[:, -1])


class Normed(Base):
    def __init__(self):
        super().__init__()
        self.norm = nn.Hardshrink()

    def forward(self, x):
        return self.head(self.norm(self.rnn(x)[0][:, -1]))


class Mixed(Base):
    def forward(self, x):
        logits = self.last(x)
        return logits - logits.mean(0)


class Unread(Base):
    def forward(self, x):
        return self.last(torch.ones_like(x))


class Random(Base):
    def forward(self, x):
        return self.last(x + torch.randn_like(x))


REFUSED = {
    Branches: r"control flow depends on the data .*\(test_trace.py, line \d+.*Move",
    Multiplied: r"'cumprod'.*\(test_trace.py, line \d+.*Write the scan",
    Normed: r"'norm' is a torch\.nn\.modules\.activation\.Hardshrink, .*\(test_trace.py, line \d+",
    Mixed: r"mixes samples.*\(test_trace.py, line \d+",
    Unread: r"do not depend on the perturbed tensor, 'x'.*perturb|'ones_like'.*Use",
    Random: r"draws random numbers",
}


@pytest.mark.parametrize(
    ("kind", "message"), REFUSED.items(), ids=[kind.__name__ for kind in REFUSED]
)
def test_what_cannot_be_bounded_is_refused_with_place_and_way_out(kind, message):
    with pytest.raises(UnsupportedModelError, match=message):
        logit_bounds(kind().double(), sequences(2, 3), LpBall(0.1))
