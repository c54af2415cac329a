"""One number per sample: a logit, a probability, or refused; the label follows everywhere."""

import pytest
import torch
from torch import nn
from torch.nn.functional import (
    hardsigmoid,
    leaky_relu,
    linear,
    logsigmoid,
    relu6,
    softplus,
    softsign,
)

from popqorn_train import (
    LpBall,
    UnsupportedModelError,
    bound,
    certified_radius,
    certify,
    certify_loader,
    logit_bounds,
)
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.pgd import attack
from popqorn_train.training.objective import Prepared
from tests.problems import F64, sequences

EPSILON = 0.15


class Ended(nn.Module):
    """Scores of every frame, and an end that makes the output of them."""

    def __init__(self, end, classes=1):
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 3, batch_first=True), nn.Linear(3, classes)
        self.mix, self.squash, self.drop = nn.Linear(1, 1), nn.Sigmoid(), nn.Dropout()
        self.log, self.flat = nn.LogSigmoid(), nn.Flatten()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("fixed", torch.tensor(0.5))
        self.end = end

    def forward(self, x):
        return self.end(self, self.head(self.rnn(x)[0]))


def last(end):
    return lambda net, z: end(z[:, -1])


p = torch.sigmoid
UNDONE = {
    "sigmoid": last(p),
    "expit": last(torch.special.expit),
    "module": lambda net, z: net.squash(z[:, -1]),
    "moved and cast": last(lambda z: p(z).double().contiguous().squeeze(-1).clone()),
    "flattened": lambda net, z: net.flat(net.squash(z[:, -1])),
    "dropped out": lambda net, z: net.drop(net.squash(z[:, -1])),
}
LOGITS = {
    "linear": last(lambda z: z),
    "flat": last(lambda z: z[:, 0]),
    "scaled": lambda net, z: net.scale * z[:, -1] / 3 + net.fixed,
    "tanh": last(torch.tanh),
    "soft cap": last(lambda z: 10 * torch.tanh(z / 10)),
    "learned cap": lambda net, z: net.scale * torch.tanh(z[:, -1]),
    "clamped": last(lambda z: z.clamp(-5, 5)),
    "leaky": last(leaky_relu),
    "mean of frames": lambda net, z: z.mean(1),
    "maximum of frames": lambda net, z: z.amax(1),
    "gated": lambda net, z: p(z[:, 0]) * z[:, -1],
    "gated pooling": lambda net, z: (p(z) * z).sum(1),
    "a hidden sigmoid": lambda net, z: net.mix(p(z[:, -1])),
    "a read-out by hand": lambda net, z: linear(p(z[:, -1]), net.mix.weight, net.mix.bias),
    "a skip": last(lambda z: z + p(z)),
}
PROBABILITIES = {
    "of the last frame": lambda net, z: p(z)[:, -1],
    "times 1": last(lambda z: p(z).double() * 1.0),
    "clipped": last(lambda z: p(z).clamp(1e-7, 1 - 1e-7)),
    "of the other class": last(lambda z: 1 - p(z)),
    "of the other class, by ones": last(lambda z: torch.ones_like(z) - p(z)),
    "by rsub": last(lambda z: torch.rsub(p(z), 1)),
    "smoothed": last(lambda z: 0.9 * p(z) + 0.05),
    "mean of frames": lambda net, z: p(z[..., 0]).mean(1),
    "mean of models": last(lambda z: torch.stack([p(z), p(2 * z + 1)]).mean(0)),
    "half the sum": last(lambda z: (p(z) + p(2 * z + 1)) / 2),
    "weighted": last(lambda z: 0.3 * p(z) + 0.7 * p(2 * z + 1)),
    "most of frames": lambda net, z: p(z).amax(1),
    "hardsigmoid": last(hardsigmoid),
    "tanh": last(lambda z: (torch.tanh(z) + 1) / 2),
    "softsign": last(lambda z: softsign(z) * 0.5 + 0.5),
    "one of two": last(lambda z: torch.cat([1 - p(z), p(z)], 1)[:, 1]),
    "exp of a log": last(lambda z: logsigmoid(z).exp()),
    "softmax": last(lambda z: torch.cat([z, -z], 1).softmax(1)[:, 1]),
}
DOUBTFUL = {
    "shifted": last(lambda z: 2 * p(z) - 1),
    "squared": last(lambda z: p(z) ** 2),
    "product": last(lambda z: p(z) * p(2 * z)),
    "difference": last(lambda z: p(z) - p(1 - 2 * z)),
    "per cent": last(lambda z: 100 * p(z)),
    "times a buffer": lambda net, z: p(z[:, -1]) * net.fixed,
    "tanh and buffers": lambda net, z: (torch.tanh(z[:, -1]) + 2 * net.fixed) * net.fixed,
    "log": lambda net, z: net.log(z[:, -1]),
    "log by softplus": last(lambda z: -softplus(-z)),
    "rate": last(softplus),
    "exp": last(torch.exp),
    "relu": last(torch.relu),
    "times itself": last(lambda z: z * z),
    "tanh beyond [0, 1]": last(lambda z: 0.6 * torch.tanh(z) + 0.5),
    "relu6": last(lambda z: relu6(z + 3) / 6),
    "cut": last(lambda z: z.clamp(0, 1)),
    "folded": last(lambda z: (p(z) - 0.5).abs() + 0.5),
    "sum of frames": lambda net, z: p(z).sum(1),
    "mixed with a logit": last(lambda z: torch.cat([z, p(z)], 1)[:, 1]),
    "mixed by a buffer": lambda net, z: p(z[:, -1]) @ net.fixed.view(1, 1),
}
UNBOUNDED = {
    "rounded": last(lambda z: p(z).round()),
    "decided": last(lambda z: (p(z) > 0.5).double()),
}


def made(end, classes=1):
    torch.manual_seed(5)
    net = Ended(end, classes).double().eval()
    with torch.no_grad():
        for weight in (*net.rnn.parameters(), *net.head.parameters()):
            weight.mul_(2.0)
        net.head.bias.fill_(0.3)
        net.mix.weight.fill_(3.0), net.mix.bias.fill_(-1.6)
    return net


def inside(x, epsilon, count=40):
    generator = torch.Generator().manual_seed(1)
    steps = 2 * torch.rand(count, *x.shape, generator=generator, dtype=F64) - 1
    return x + epsilon * torch.cat([steps, steps.sign()])


def check_bounds(model, net, x, read):
    """No sample leaves the bounds of (0, number), and without a perturbation they are exact."""
    both = (0.0, EPSILON)
    with undisturbed(net):  # one trace for both
        found = [logit_bounds(model, x, LpBall(one), method="crown-ibp") for one in both]
    for epsilon, (lower, upper) in zip(both, found, strict=True):
        for point in inside(x, epsilon):
            number = read(net(point).detach().reshape(-1))
            assert (number >= lower[:, 1] - 1e-7).all()
            assert (number <= upper[:, 1] + 1e-7).all()
        torch.testing.assert_close(lower[:, 0], torch.zeros_like(lower[:, 0]))
        torch.testing.assert_close(upper[:, 0], torch.zeros_like(upper[:, 0]))
        if epsilon == 0:
            torch.testing.assert_close(lower[:, 1], upper[:, 1], rtol=0, atol=1e-7)


def check_labels(model, net, x, threshold):
    """A wrong label has radius 0; within the radius of a right one the class stays."""
    label = (net(x).reshape(-1) > threshold).long()
    with undisturbed(net):
        assert (certified_radius(model, x, 1 - label, method="ibp", rtol=0.3) == 0).all()
        radius = certified_radius(model, x, label, method="ibp", rtol=0.3)
    assert radius.max() > 0
    for point in inside(x, radius.view(-1, 1, 1)):
        stays = (net(point).reshape(-1) > threshold).long() == label
        assert (stays | (radius == 0)).all()


@pytest.mark.parametrize("end", UNDONE.values(), ids=UNDONE)
def test_a_sigmoid_at_the_end_is_undone_through_moves_and_casts(end):
    net, x = made(end), sequences(4)
    assert bound(net).instance(x).plan.meaning.squashed
    check_bounds(net, net, x, torch.logit)
    check_labels(net, net, x, 0.5)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("end", LOGITS.values(), ids=LOGITS)
def test_a_number_of_both_signs_from_a_read_out_is_a_logit(end):
    net, x = made(end), sequences(4)
    check_bounds(net, net, x, lambda number: number)
    check_labels(net, net, x, 0.0)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("end", PROBABILITIES.values(), ids=PROBABILITIES)
def test_a_number_that_is_still_a_probability_is_bounded_as_p_minus_a_half(end):
    net, x = made(end), sequences(4)
    check_bounds(net, net, x, lambda number: number - 0.5)
    check_labels(net, net, x, 0.5)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("end", DOUBTFUL.values(), ids=DOUBTFUL)
def test_any_other_number_from_a_probability_is_what_the_user_says(end):
    net, x = made(end), sequences(4)
    with pytest.raises(UnsupportedModelError, match=r"test_outputs.py.*bound\(model, output_is="):
        certify(net, x, torch.zeros(4).long(), LpBall(0.1))
    for kind, threshold in {"probability": 0.5, "logit": 0.0}.items():
        model = bound(net, output_is=kind)
        check_bounds(model, net, x, lambda number, threshold=threshold: number - threshold)


@pytest.mark.parametrize("end", UNBOUNDED.values(), ids=UNBOUNDED)
@pytest.mark.parametrize("kind", [None, "probability"])
def test_a_probability_without_a_bound_is_refused(end, kind):
    net, x = made(end), sequences(2)
    with pytest.raises(UnsupportedModelError, match=r"output_is|no bound"):
        certify(bound(net, output_is=kind), x, torch.zeros(2).long(), LpBall(0.1))


def test_half_precision_of_a_cast_does_not_hide_a_probability():
    net, x = made(last(lambda z: p(z).float() * 1.0)).float(), sequences(6).float()
    label = (net(x)[:, 0] > 0.5).long()
    assert len(set(label.tolist())) == 2
    assert (certified_radius(net, x, 1 - label, method="ibp", rtol=0.1) == 0).all()
    assert (certified_radius(net, x, label, method="ibp", rtol=0.1) > 0).all()


def test_a_module_called_sigmoid_is_read_by_what_it_does():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.sigmoid = nn.GRU(3, 3, batch_first=True), nn.Linear(3, 1)

        def forward(self, x):
            return self.sigmoid(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    net, x = Named().double().eval(), sequences(4)
    check_bounds(net, net, x, lambda number: number)


@pytest.mark.parametrize("end", [last(p), last(lambda z: p(z) * 1.0), last(lambda z: z)])
def test_the_user_decides_where_class_1_begins(end):
    net, x = made(end), sequences(4)
    check_labels(bound(net, output_is="probability"), net, x, 0.5)
    check_bounds(bound(net, output_is="logit"), net, x, lambda number: number)


def test_a_probability_that_moves_itself_is_no_logit():
    net, x = made(lambda net, z: net.squash(z).mean(1)), sequences(4)
    frames = bound(net, perturb="squash")
    label = (net(x)[:, 0] > 0.5).long()
    radius = certified_radius(frames, x, label, rtol=1e-3)
    torch.testing.assert_close(radius, (net(x)[:, 0] - 0.5).abs().detach(), rtol=1e-2, atol=0)
    assert (certified_radius(frames, x, 1 - label) == 0).all()


def test_every_question_uses_the_same_label():
    net, x = made(PROBABILITIES["smoothed"]), sequences(8)
    label = (net(x)[:, 0] > 0.5).long()
    assert len(set(label.tolist())) == 2
    rows = [*certify_loader(net, [(x, label)], method="ibp")]
    assert [row.prediction for row in rows] == label.tolist()
    assert (Prepared(net, x, label, check=True).logits.argmax(1) == label).all()
    clean = attack(net, x, label, LpBall(0.0))
    torch.testing.assert_close(clean.margin, (net(x)[:, 0] - 0.5).abs().detach())


def test_two_columns_of_probabilities_are_compared():
    net, x = made(last(lambda z: torch.cat([1 - p(z), p(z)], 1))), sequences(4)
    label = net(x).argmax(1)
    assert (certified_radius(net, x, 1 - label, method="ibp", rtol=0.3) == 0).all()
    assert certified_radius(net, x, label, method="ibp", rtol=0.3).max() > 0


@pytest.mark.parametrize("end", [last(lambda z: z.softmax(1).double()), last(lambda z: z)])
def test_several_logits_need_no_word(end):
    net, x = made(end, classes=3), sequences(2)
    logits = made(last(lambda z: z), classes=3)
    assert (
        logit_bounds(net, x, LpBall(0.0)).lower == logit_bounds(logits, x, LpBall(0.0)).lower
    ).all()
    with pytest.raises(ValueError, match=r"`output_is`.*Ended returns 3 logits"):
        logit_bounds(bound(net, output_is="probability"), x, LpBall(0.1))


def test_what_is_said_of_the_output_is_checked_and_kept():
    net, x = made(DOUBTFUL["squared"]), sequences(2)
    with pytest.raises(ValueError, match=r"`output_is` must be one of logit, probability.*'odds'"):
        bound(net, output_is="odds")
    said = bound(net, output_is="probability")
    assert bound(said) is said
    named = bound(said, perturb="x")
    assert (named.output_is, named.perturb) == ("probability", "x")
    assert (bound(named, output_is="logit").perturb, bound(named).output_is) == ("x", "probability")
    one, other = (
        logit_bounds(bound(net, output_is=kind), x, LpBall(0.0)).lower[:, 1]
        for kind in ("logit", "probability")
    )
    torch.testing.assert_close(one - 0.5, other)  # one trace does not serve both
