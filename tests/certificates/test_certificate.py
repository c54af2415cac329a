"""What a certificate says is proved, and NaN proves nothing."""

import contextlib
import copy
import math

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, Popqorn, bound, certified_radius, certify, logit_bounds
from popqorn_train.certificates.pgd import attack
from popqorn_train.errors import BrokenWeightsError
from tests.problems import (
    CELLS,
    CLASSES,
    METHODS,
    NORMS,
    SOME_CELLS,
    build,
    logits_at,
    margins,
    points_inside,
    predicted,
    sequences,
)

cells = pytest.mark.parametrize("cell", CELLS)
some_cells = pytest.mark.parametrize("cell", SOME_CELLS)
methods = pytest.mark.parametrize("method", METHODS)
norms = pytest.mark.parametrize("p", NORMS)


def problem(cell, batch=8, **options):
    model, x = build(cell, **options), sequences(batch, 4, seed=2)
    return model, x, predicted(model, x)


@norms
@methods
@cells
def test_no_point_of_the_ball_has_a_smaller_margin(cell, method, p):
    model, x, y = problem(cell, batch=3)
    found = certify(model, x, y, LpBall(0.1, p), method=method)
    logits = logits_at(model, points_inside(model, x, 0.1, p, count=500))
    worst = torch.stack([margins(point, y) for point in logits]).amin(0)
    assert (found.margins <= worst + 1e-12).all()


@methods
@some_cells
def test_epsilon_zero_gives_the_clean_margins(cell, method):
    model, x, y = problem(cell, num_layers=2)
    found = certify(model, x, y, LpBall(0.0), method=method)
    torch.testing.assert_close(found.margins, margins(model(x), y).detach(), rtol=0, atol=1e-12)
    assert found.certified.all()


@some_cells
def test_the_parts_of_a_certificate_agree(cell):
    model, x, y = problem(cell)
    middle = certified_radius(model, x, y).median().item()
    margins_, margin, certified, numerics, errors = certify(model, x, y, LpBall(middle))
    assert (margins_.gather(1, y[:, None]) == math.inf).all()
    assert torch.equal(margin, margins_.amin(1))
    assert torch.equal(certified, margin > 0)
    assert (numerics, errors) == ("float64", {})
    assert 0 < certified.sum() < 8


@methods
@some_cells
def test_folded_margins_are_never_looser_than_logits_bounded_apart(cell, method):
    model, x, y = problem(cell)
    ball = LpBall(0.1)
    lower, upper = logit_bounds(model, x, ball, method=method)
    apart = lower.gather(1, y[:, None]) - upper
    own = nn.functional.one_hot(y, CLASSES).bool()
    found = certify(model, x, y, ball, method=method).margins
    assert (found >= apart.masked_fill(own, math.inf) - 1e-12).all()
    assert (found[~own] > apart[~own] + 1e-3).any()


@some_cells
def test_certificates_of_a_sample_alone_and_in_a_batch_agree(cell):
    model, x, y = problem(cell)
    whole = certify(model, x, y, LpBall(0.1, 2)).margins
    for i in (0, 7):
        alone = certify(model, x[i : i + 1], y[i : i + 1], LpBall(0.1, 2)).margins
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=0, atol=1e-12)


@methods
@some_cells
def test_a_wrong_prediction_is_never_certified(cell, method):
    model, x, y = problem(cell)
    for epsilon in (0.0, 1e-9, 0.1):
        found = certify(model, x, (y + 1) % CLASSES, LpBall(epsilon), method=method)
        assert not found.certified.any()


@pytest.mark.one_in(2)
@cells
def test_an_attack_breaks_no_certified_sample(cell):
    model, x, y = problem(cell, batch=32)
    for epsilon in (0.05, 0.2, 8.0):
        found = certify(model, x, y, LpBall(epsilon, 2))
        broken = attack(model, x, y, LpBall(epsilon, 2)).margin <= 0
        assert not (found.certified & broken).any()
    assert broken.any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "head.bias"])
@methods
@some_cells
def test_a_weight_that_is_not_finite_certifies_nothing(cell, method, name, value):
    model, x, y = problem(cell)
    model.get_parameter(name).data.view(-1)[0] = value
    refused = contextlib.nullcontext()
    if model(x).isnan().any(1).all():
        refused = pytest.raises(BrokenWeightsError, match=name.replace(".", r"\."))
    with refused:
        found = certify(model, x, torch.zeros_like(y), LpBall(0.01), method=method)
        assert not found.certified.any()


@norms
@some_cells
def test_float64_confirms_what_float32_certifies(cell, p):
    model, x, y = problem(cell, batch=16)
    single, x = copy.deepcopy(model).float(), x.float()
    exact = certify(model.float().double(), x.double(), y, LpBall(0.1, p))
    found = certify(single, x, y, LpBall(0.1, p))
    assert (found.numerics, found.margins.dtype) == ("float64", torch.float64)
    assert torch.equal(found.certified, exact.certified)
    sure = found.certified
    torch.testing.assert_close(found.margins[sure], exact.margins[sure], rtol=0, atol=1e-12)


def test_without_confirmation_the_precision_of_the_weights_is_said():
    model, x, y = problem("lstm")
    found = certify(model.float(), x.float(), y, LpBall(0.05), confirm=None)
    assert (found.numerics, found.margins.dtype) == ("float32", torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_is_bounded_in_float32(dtype):
    model, x, _ = problem("gru")
    model, x = model.to(dtype), x.to(dtype)
    lower, upper = logit_bounds(model, x, LpBall(0.0))
    assert lower.dtype == torch.float32
    torch.testing.assert_close(lower, model.float()(x.float()), rtol=1e-5, atol=1e-5)
    assert (upper >= lower - 1e-5).all()


@pytest.mark.parametrize("top", [nn.Softmax(1), nn.LogSoftmax(-1)])
def test_margins_are_those_before_a_softmax(top):
    model, x, y = problem("gru")
    expected = certify(model, x, y, LpBall(0.1))
    found = certify(nn.Sequential(model, top), x, y, LpBall(0.1))
    torch.testing.assert_close(found.margins, expected.margins)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type_are_taken(dtype):
    model, x, y = problem("gru")
    expected = certify(model, x, y, LpBall(0.1))
    assert torch.equal(certify(model, x, y.to(dtype), LpBall(0.1)).margin, expected.margin)


def test_names_objects_and_bound_models_are_taken_alike():
    model, x, y = problem("gru")
    by_name = certify(model, x, y, LpBall(0.1), method="popqorn")
    by_object = certify(bound(model), x, y, LpBall(0.1), method=Popqorn())
    assert torch.equal(by_name.margins, by_object.margins)
