"""Probes: what is wrong shows at points of the set, and nothing that is right raises an alarm."""

import math

import pytest
import torch
from torch import nn

from popqorn_train import (
    Box,
    CertifiedLoss,
    LpBall,
    Status,
    Substitutions,
    UnsupportedModelError,
    bound,
    certified_budget,
    certified_radius,
    certify,
    certify_loader,
    frame_radii,
    logit_bounds,
)
from popqorn_train.bounds import activation
from popqorn_train.bounds.affine import Linear
from popqorn_train.bounds.methods import IBP
from popqorn_train.bounds.node import Root
from popqorn_train.bounds.relaxer import Relaxer
from popqorn_train.certificates.probes import _differing
from popqorn_train.errors import ContradictionError
from popqorn_train.perturbations import region
from popqorn_train.perturbations.region import Bounds
from popqorn_train.perturbations.substitutions import Choices


class Net(nn.Module):
    """A recurrent layer, a head, and something that tracing does not see."""

    def __init__(self, kind="LSTM", unseen=None, columns=3):
        super().__init__()
        self.rnn = getattr(nn, kind)(2, 4, batch_first=True)
        self.head, self.unseen = nn.Linear(4, columns), unseen

    def forward(self, x):
        z = self.head(torch.tanh(self.rnn(x)[0][:, -1]))
        # A proxy is no tensor, so this branch is not recorded.
        return self.unseen(z) if self.unseen is not None and isinstance(z, torch.Tensor) else z


def make(*args, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return Net(*args, **options).to(dtype).eval()


def inputs(batch=4, dtype=torch.float64):
    return torch.randn(batch, 5, 2, generator=torch.Generator().manual_seed(1)).to(dtype)


# Faults in the bounds, planted one at a time.


def _small_ball(monkeypatch):
    exact = region.around
    monkeypatch.setattr(region, "around", lambda center, radius: exact(center, 0.7 * radius))


def _narrow_layer(monkeypatch):
    exact = Linear.range

    def narrow(self, *given):
        lower, upper = exact(self, *given)
        middle, half = (lower + upper) / 2, 0.4 * (upper - lower)
        return Bounds(middle - half, middle + half)

    monkeypatch.setattr(Linear, "range", narrow)


def _high_planes(monkeypatch):
    exact = Relaxer.planes

    def high(self, *given):
        found = exact(self, *given)
        lower = found.lower._replace(intercept=found.lower.intercept + 0.05)
        return found._replace(lower=lower)

    monkeypatch.setattr(Relaxer, "planes", high)


def _raised_bias(monkeypatch):
    exact = Linear.backward

    def raised(self, slope, tape, relaxation):
        extra = exact(self, slope, tape, relaxation)
        return 0.5 + (0 if extra is None else extra)

    monkeypatch.setattr(Linear, "backward", raised)


def _other_function(monkeypatch):
    monkeypatch.setitem(activation._CURVES, "tanh", activation._CURVES["sigmoid"])


def _small_root(monkeypatch):
    monkeypatch.setattr(
        Root, "range", lambda self, *_: Bounds(self.region.value, self.region.value + 0.05)
    )


# A fault shows where the method uses what is broken.
FAULTS = [
    (fault, method)
    for fault in (_small_ball, _high_planes, _raised_bias, _other_function)
    for method in ("crown-ibp", "popqorn")
] + [(_narrow_layer, "popqorn"), (_small_root, "popqorn")]


@pytest.mark.parametrize(("fault", "method"), FAULTS)
def test_a_fault_in_the_bounds_contradicts_the_certificate(monkeypatch, fault, method):
    model, x = make(), inputs()
    target, ball = model(x).argmax(1), LpBall(0.3)
    certify(model, x, target, ball, method=method)
    fault(monkeypatch)
    where = r"(sample \d, class \d|a \w+ node leaves its \w+ by \S+ at \[.*\] of \[)"
    with pytest.raises(ContradictionError, match=rf"{where}.*nothing is certified"):
        certify(model, x, target, ball, method=method)


CLAIMS = {
    "margins": (lambda net, x, y: certify(net, x, y, LpBall(1e-6), method="ibp"), 0.01, "margins"),
    "bounds": (lambda net, x, y: logit_bounds(net, x, LpBall(1e-6), method="ibp"), 0.01, "bounds"),
    "radii": (
        lambda net, x, y: certified_radius(net, x, y, method="ibp", max_radius=20.0),
        100.0,
        "the class",
    ),
}


@pytest.mark.parametrize(("ask", "more", "said"), CLAIMS.values(), ids=CLAIMS)
def test_a_claim_above_what_the_model_does_is_refused(monkeypatch, ask, more, said):
    model, x = make(), inputs()
    target, exact = model(x).argmax(1), IBP.bounded
    ask(model, x, target)

    def raised(self, *given):
        bounds, found = exact(self, *given)
        return bounds + more, found

    monkeypatch.setattr(IBP, "bounded", raised)
    where = r"\(sample \d, class \d, (point \d of 8|a point found by descent)\)"
    with pytest.raises(ContradictionError, match=rf"(has|leaves) .*{said} .*the set {where}"):
        ask(model, x, target)


class Words(nn.Module):
    """Tokens, an embedding and a GRU."""

    def __init__(self):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(9, 3), nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens):
        return self.head(self.rnn(self.embedding(tokens))[0][:, -1])


def sentences():
    torch.manual_seed(0)
    model, tokens = Words().double().eval(), torch.arange(12).view(3, 4) % 9
    return model, tokens, model(tokens).argmax(1), {k: [(k + 1) % 9, (k + 4) % 9] for k in range(9)}


def test_replaced_words_show_a_fault_too(monkeypatch):
    model, tokens, target, synonyms = sentences()
    certify(model, tokens, target, Substitutions(synonyms, 2))
    assert certified_budget(model, tokens, target, synonyms).shape == (3,)
    monkeypatch.setattr(Choices, "minimum", lambda self, slope: slope.flatten(2).sum(2) + 9)
    with pytest.raises(ContradictionError):
        certify(model, tokens, target, Substitutions(synonyms, 2), method="crown-ibp")


# What the module does and its trace does not, only far from the clean input.


def beyond(limit):
    return lambda z: torch.cat([z[:, :1].clamp(max=limit), z[:, 1:]], 1)


def least_limit(model, x):
    return model(x)[:, 0].max().item() + 1e-9 * model(x).abs().max().item()


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("scope", ["frame", "sequence"])
def test_what_a_module_does_only_inside_the_set_is_seen(p, scope):
    model, x = make(), inputs()
    target, ball = model(x).argmax(1), LpBall(0.5, p, scope=scope)
    certify(model, x, target, ball, method="ibp")
    model.unseen = beyond(least_limit(model, x))
    with pytest.raises(ContradictionError, match=r"does not .* traced.*sample \d, class 0, point"):
        certify(model, x, target, ball, method="ibp")
    certify(model, x, target, ball, method="ibp", probes=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
@pytest.mark.parametrize("masked", [False, True])
def test_neither_tiny_logits_nor_a_masked_class_hide_it(dtype, scale, masked):
    class Scaled(Net):
        def forward(self, x):
            z = scale * self.head(torch.tanh(self.rnn(x)[0][:, -1]))
            hidden = self.unseen is not None and isinstance(z, torch.Tensor)
            return self.unseen(z) if hidden else z

    torch.manual_seed(0)
    model, x = Scaled(columns=4), inputs(dtype=dtype)
    if masked:
        with torch.no_grad():
            model.head.weight[3], model.head.bias[3] = 0, -1e9 / scale
    model = model.to(dtype).eval()
    target = model(x).argmax(1)
    assert certify(model, x, target, LpBall(0.01)).margin.isfinite().all()
    limit = model(x)[:, 0].max().item()
    model.unseen = beyond(limit + 1e-4 * abs(limit))
    with pytest.raises(UnsupportedModelError):
        certify(model, x, target, LpBall(0.5), method="ibp")


def margins_of(logits, target):
    own = logits.gather(1, target[:, None])
    return (own - logits.scatter(1, target[:, None], -math.inf).amax(1, keepdim=True))[:, 0]


def test_descent_on_the_module_finds_what_no_listed_point_shows():
    model, x, seen = make(), inputs(), []
    target, ball = model(x).argmax(1), LpBall(0.02, 2)
    model.unseen = lambda z: (seen.append(margins_of(z.detach(), target[:1].repeat(len(z)))), z)[1]
    one = (x[:1], target[:1])
    assert certify(model, *one, ball, method="ibp", probes=2).certified.all()
    listed, descended = torch.cat(seen[:2]).min(), torch.cat(seen[2:]).min()
    assert descended < listed
    limit = (listed + descended) / 2

    def other_class(z):
        low = margins_of(z, target[:1].repeat(len(z))) < limit
        return torch.where(low[:, None], -z, z)

    model.unseen = other_class
    with pytest.raises(ContradictionError, match="a point found by descent"):
        certify(model, *one, ball, method="ibp", probes=2)


def test_one_frame_and_boxes_are_looked_at():
    model, x = make(), inputs()
    target = model(x).argmax(1)
    model.unseen = beyond(least_limit(model, x))
    only = LpBall(0.5, frames=torch.tensor([False, False, False, False, True]))
    for ball in (only, Box(x - 0.5, x + 0.25)):
        with pytest.raises(ContradictionError):
            certify(model, x, target, ball, method="ibp")


def test_loaders_report_a_contradiction_for_every_sample_of_the_batch():
    model, x = make(), inputs()
    target = model(x).argmax(1)
    model.unseen = beyond(least_limit(model, x))
    wrong = (target + 1) % 3  # of which nothing is claimed
    with pytest.warns(UserWarning, match=r"4 of 8 samples ended in an error.*nothing is certified"):
        rows = certify_loader(model, [(x, wrong), (x, target)], method="ibp", progress=False)
    assert [row.status for row in rows[:4]] == [Status.NOT_CERTIFIED] * 4
    assert [row.status for row in rows[4:]] == [Status.ERROR] * 4


ASKED = {
    "certify": lambda net, x, y, n: certify(net, x, y, LpBall(0.5), method="ibp", probes=n),
    "bounds": lambda net, x, y, n: logit_bounds(net, x, LpBall(0.5), method="ibp", probes=n),
    "radius": lambda net, x, y, n: certified_radius(net, x, y, method="ibp", probes=n),
    "tight radius": lambda net, x, y, n: certified_radius(
        net, x, y, method="popqorn-tight", rtol=0.1, probes=n
    ),
    "targeted": lambda net, x, y, n: certified_radius(
        net, x, y, method="ibp", against=(y + 1) % 3, probes=n
    ),
    "frames": lambda net, x, y, n: frame_radii(net, x, y, method="ibp", probes=n),
}


SLOW = pytest.param("tight radius", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [*[name for name in ASKED if name != "tight radius"], SLOW])
def test_every_kind_of_certificate_is_probed(name):
    model, x = make(), inputs()
    target = model(x).argmax(1)
    ASKED[name](model, x, target, 8)
    model.unseen = beyond(least_limit(model, x))
    with pytest.raises(ContradictionError):
        ASKED[name](model, x, target, 8)
    ASKED[name](model, x, target, 0)


def test_a_loss_is_probed_at_its_first_call():
    model, x = make(), inputs()
    target = model(x).argmax(1)
    model.unseen = beyond(least_limit(model, x))
    with pytest.raises(ContradictionError):
        CertifiedLoss(0.5)(model, x, target)
    loss = CertifiedLoss(0.5)
    loss.probes = 0
    assert loss(model, x, target).isfinite()


def test_certificates_say_when_nobody_looked():
    model, x = make(), inputs()
    target = model(x).argmax(1)
    assert certify(model, x, target, LpBall(0.1)).numerics == "float64"
    found = certify(model, x, target, LpBall(0.1), probes=0)
    assert found.numerics == "float64, not probed"


@pytest.mark.parametrize("probes", [-1, 1.5, True, None])
def test_probes_are_a_whole_number(probes):
    model, x = make(), inputs()
    for ask in (
        lambda: certify(model, x, torch.zeros(4).long(), LpBall(0.1), probes=probes),
        lambda: logit_bounds(model, x, LpBall(0.1), probes=probes),
    ):
        with pytest.raises(ValueError, match="`probes` must be a non-negative integer"):
            ask()


@pytest.mark.parametrize("probes", [0, 1, 2, 5, 30])
def test_results_do_not_depend_on_how_many_there_are(probes):
    model, x = make("GRU"), inputs()
    target, ball = model(x).argmax(1), LpBall(0.1, 2)
    one, two = certify(model, x, target, ball), certify(model, x, target, ball, probes=probes)
    assert torch.equal(one.margins, two.margins)


def test_the_model_is_left_as_it_was():
    model, tokens, target, synonyms = sentences()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    certify(model, tokens, target, Substitutions(synonyms, 1))
    certify(bound(model), tokens, target, LpBall(0.1))
    assert model.training
    assert not model.embedding._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_a_logit_next_to_0_may_be_off_by_the_rounding_of_its_terms():
    traced = torch.tensor([[2.2, -1.2, 6.2, -1.5e-4, -1e9]], dtype=torch.float64)
    off = torch.tensor([[0, 0, 0, 9e-16, 0]], dtype=torch.float64)
    assert not _differing(traced + off, traced, 0.0, traced.abs()).any()
    wrong = _differing(traced + 1e6 * off, traced, 0.0, traced.abs())
    assert wrong.tolist() == [[False, False, False, True, False]]


@pytest.mark.parametrize("classes", [1, 2])
def test_a_sample_next_to_the_border_is_no_contradiction(classes):
    """All its logits are next to 0, and no other sample says how large their terms are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, classes)).double().eval()
    model[1].weight.data *= 3
    x = torch.randn(10, 1, 2, 3).double()
    for one in x:
        with torch.no_grad():
            model[1].bias -= model(one)[0] - 1e-8
        proof = certify(model, one, model(one).argmax(1), LpBall(1e-12), method="crown-ibp")
        assert proof.margin.abs() < 1e-7
