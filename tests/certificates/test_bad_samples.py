"""Numbers that are not finite: padding may hold them, elsewhere they are an error of one sample."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from popqorn_train import (
    Box,
    CertifiedLoss,
    LpBall,
    bound,
    certified_budget,
    certified_radius,
    certify,
    empirical_radius,
    frame_radii,
    logit_bounds,
    search_radius,
)
from popqorn_train.certificates.unread import unread_frames
from popqorn_train.errors import BrokenWeightsError
from tests.problems import F64, Tokens, build, predicted, sequences

LENGTHS = torch.tensor([3, 5, 2, 4])
CHEAP = {"method": "crown-ibp", "max_radius": 2.0, "confirm": None}
WILD = (math.nan, math.inf, -math.inf)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.RNN(3, 4, batch_first=True), nn.Linear(4, 3)
        self.double()

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])


class Masked(Packed):
    """A mean over the frames that count, the others masked out of it."""

    def forward(self, x, lengths):
        mask = torch.arange(x.size(1)) < lengths[:, None]
        h = self.rnn(x.masked_fill(~mask[..., None], 0))[0].masked_fill(~mask[..., None], 0)
        return self.head(h.sum(1) / lengths[:, None])


def padded(x, value):
    found = x.clone()
    for row, length in zip(found, LENGTHS.tolist(), strict=True):
        row[length:] = value
    return found


def problem(kind=Packed):
    model, x = kind().eval(), sequences(4, 5).clamp(-0.9, 0.9)
    return model, x, model(padded(x, 0), LENGTHS).argmax(1)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("value", [*WILD, -1.0, 1e30])
@pytest.mark.parametrize("kind", [Packed, Masked])
@pytest.mark.parametrize("domain", [{}, {"low": -0.9, "high": 0.9}])
def test_padding_that_is_never_read_may_hold_anything(kind, value, domain):
    model, x, y = problem(kind)
    right, wild = (padded(x, 0), LENGTHS), (padded(x, value), LENGTHS)
    options = CHEAP | {"max_radius": None} | domain
    torch.testing.assert_close(
        certified_radius(model, wild, y, **options), certified_radius(model, right, y, **options)
    )
    ball = LpBall(0.05, 2, **domain)
    one, other = (certify(model, inputs, y, ball, method="ibp") for inputs in (wild, right))
    torch.testing.assert_close(one.margins, other.margins)
    assert not one.errors


@pytest.mark.one_in(3)
@pytest.mark.parametrize("value", [math.nan, math.inf, 7.0])
def test_losses_attacks_and_boxes_take_such_padding(value):
    model, x, y = problem()
    right, wild = (padded(x, 0), LENGTHS), (padded(x, value), LENGTHS)
    loss = CertifiedLoss(0.1, alpha=0.5)
    found, expected = loss(model, wild, y), loss(model, right, y)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
    domain = {"low": -0.9, "high": 0.9}
    torch.testing.assert_close(
        *[empirical_radius(model, inputs, y, **domain) for inputs in (wild, right)]
    )
    box = Box(x - 0.1, x + 0.1)
    found = certify(model, wild, y, box, method="ibp").margins
    boxed = certify(model, (x, LENGTHS), y, box, method="ibp").margins
    torch.testing.assert_close(found, boxed)


@pytest.mark.parametrize("kind", [Packed, Masked])
def test_frames_that_are_never_read_have_the_largest_radius_tried(kind):
    model, x, y = problem(kind)
    found = []
    for fill in (0.0, 100.0, math.nan):
        inputs = (padded(x, fill), LENGTHS)
        unread = torch.arange(5) >= LENGTHS[:, None]
        assert torch.equal(unread_frames(bound(model).instance(inputs)), unread)
        found.append(frame_radii(model, inputs, y, method="ibp", confirm=None, rtol=0.1))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    read = found[0].masked_fill(unread, 0).amax(1)
    assert (found[0].masked_fill(~unread, math.inf).amin(1) >= read).all()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("value", WILD)
@pytest.mark.parametrize("domain", [{}, {"low": -0.9, "high": 0.9}])
def test_a_bad_sample_costs_itself_alone(value, domain):
    model, x, y = problem()
    x = padded(x, 0)
    bad = x.clone()
    bad[1, 2, 1] = value
    rest = torch.tensor([0, 2, 3])
    expected = certified_radius(model, (x, LENGTHS), y, **CHEAP, **domain)
    with pytest.warns(UserWarning, match=r"sample 1 \(`x` holds .* at \[2, 1\], which the model"):
        radius = certified_radius(model, (bad, LENGTHS), y, **CHEAP, **domain)
    assert radius.isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(radius[rest], expected[rest])
    found = search_radius(model, (bad, LENGTHS), y, LpBall(0.0, **domain), **CHEAP)
    assert list(found.errors) == [1]
    assert not found.correct[1]
    torch.testing.assert_close(found.radius[rest], expected[rest])
    ball = LpBall(torch.full((4,), 0.05), **domain)
    proof = certify(model, (bad, LENGTHS), y, ball, method="ibp")
    clean = certify(model, (x, LENGTHS), y, ball, method="ibp")
    assert list(proof.errors) == [1]
    assert proof.margins[1].isnan().all()
    assert not proof.certified[1]
    torch.testing.assert_close(proof.margins[rest], clean.margins[rest])
    with pytest.warns(UserWarning, match="sample 1"):
        lower, upper = logit_bounds(model, (bad, LENGTHS), ball, method="ibp")
    assert (
        lower.isnan().any(1).tolist()
        == upper.isnan().any(1).tolist()
        == [False, True, False, False]
    )


def test_every_frame_and_attack_of_a_bad_sample_is_nan():
    model, x, y = problem()
    x[1, 0, 0] = math.nan
    inputs = (padded(x, 0), LENGTHS)
    with pytest.warns(UserWarning, match="sample 1"):
        frames = frame_radii(model, inputs, y, method="ibp", max_radius=1.0, confirm=None, rtol=0.1)
    assert frames.isnan().all(1).tolist() == [False, True, False, False]
    with pytest.warns(UserWarning, match="sample 1"):
        broke = empirical_radius(model, inputs, y, steps=2)
    assert broke.isnan().tolist() == [False, True, False, False]


def test_gradients_of_radii_pass_a_bad_sample():
    model, x, y = problem()
    x[1, 0, 0] = math.nan
    with pytest.warns(UserWarning, match="sample 1"):
        radius = certified_radius(
            model, (padded(x, 0), LENGTHS), y, method="ibp", max_radius=1.0, differentiable=True
        )
    radius.nan_to_num().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_a_batch_of_bad_samples_alone_has_no_answers():
    model, x = build("gru"), sequences(2, 3)
    y = predicted(model, x)
    x[:, 0] = math.nan
    assert certify(model, x, y, LpBall(0.1)).margins.isnan().all()
    assert search_radius(model, x, y, LpBall(0.0)).radius.isnan().all()
    with pytest.warns(UserWarning, match="sample 0 .*; sample 1"):
        assert frame_radii(model, x, y).isnan().all()


def test_a_token_whose_vector_is_nan_is_an_error_of_its_sentences():
    torch.manual_seed(0)
    model = Tokens().double().eval()
    with torch.no_grad():
        model.words.weight[3] = math.nan
    tokens = torch.tensor([[1, 2, 4], [1, 3, 4], [5, 6, 7]])
    candidates = {1: [2], 5: [8]}
    y = model(tokens).nan_to_num().argmax(1)
    with pytest.warns(UserWarning, match=r"sample 1 \(the model returns NaN for it\)"):
        budget = certified_budget(model, tokens, y, candidates, method="ibp")
    assert budget[1] == -1
    alone = certified_budget(model, tokens[[0, 2]], y[[0, 2]], candidates, method="ibp")
    assert budget[[0, 2]].tolist() == alone.tolist()


@pytest.mark.parametrize("call", [certified_radius, frame_radii, empirical_radius])
def test_weights_that_are_nan_are_an_error(call):
    model, x = build("gru"), sequences(2, 3)
    y = predicted(model, x)
    with torch.no_grad():
        model.rnn.weight_hh_l0[0, 0] = math.nan
    with pytest.raises(BrokenWeightsError, match=r"not finite: rnn\.weight_hh_l0"):
        call(model, x, y)


def test_infinity_that_is_read_is_no_padding_even_where_logits_are_finite():
    model, x = build("tanh"), sequences(2, 3)
    y = predicted(model, x)
    x[0, 1] = torch.tensor([math.inf, 1.0, 1.0], dtype=F64)
    assert model(x).isfinite().all()
    assert list(certify(model, x, y, LpBall(0.1)).errors) == [0]


class LogMask(nn.Module):
    """A maximum over the frames that an additive mask leaves, against 0.3."""

    def forward(self, x, mask):
        best = (x + mask[..., None]).max(1).values
        return torch.cat([best, torch.zeros_like(best) + 0.3], 1)


class Missing(nn.Module):
    """The same for frames that are not missing in another input."""

    def forward(self, x, other):
        best = x.masked_fill(~other.isfinite()[..., None], -1e9).max(1).values
        return torch.cat([best, torch.zeros_like(best) + 0.3], 1)


FIRST = torch.tensor([True, False, False])


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "popqorn-fast", "popqorn"])
@pytest.mark.parametrize(
    ("kind", "value"), [(LogMask, -math.inf), (Missing, math.nan), (Missing, math.inf)]
)
def test_what_a_mask_leaves_out_is_not_let_in_where_that_is_the_same_at_the_clean_input(
    kind, value, method
):
    model, x = kind().eval(), torch.tensor([[[0.5], [0.45], [0.4]]] * 2, dtype=F64)
    mask = torch.tensor([[0.0, value, value], [0.0, 0.0, value]], dtype=F64)
    ball = LpBall(0.3, frames=FIRST)
    certificate = certify(model, (x, mask), torch.tensor([0, 0]), ball, method=method, probes=0)
    expected = torch.tensor([-0.1, 0.15], dtype=F64)  # 0.2 - 0.3, 0.45 - 0.3
    torch.testing.assert_close(certificate.margin, expected)


def test_infinity_under_a_maximum_is_no_zero():
    class Greatest(nn.Module):
        def forward(self, x):
            best = x.max(1).values
            return torch.cat([best, torch.zeros_like(best) - 0.3], 1)

    x = torch.tensor([[[0.5], [-math.inf], [0.0]]], dtype=F64)
    ball = LpBall(0.9, frames=FIRST)
    assert list(certify(Greatest().eval(), x, torch.tensor([0]), ball).errors) == [0]


@pytest.mark.parametrize("value", WILD)
def test_padding_of_an_input_that_does_not_move_may_hold_anything(value):
    class Beside(Packed):
        def forward(self, x, other, lengths):
            return super().forward(torch.cat([x, other], -1), lengths)

    model, x = Beside().eval(), sequences(4, 5)
    right, wild = ((x[..., :2], padded(x[..., 2:], fill), LENGTHS) for fill in (0, value))
    y = model(*right).argmax(1)
    torch.testing.assert_close(
        certified_radius(model, wild, y, **CHEAP), certified_radius(model, right, y, **CHEAP)
    )
