"""Losses over a box are those over the ball with the same ends, and speak of a share of it."""

import math

import pytest
import torch

from popqorn_train import Box, CertifiedLoss, certify, objectives
from tests.problems import build, predicted, sequences

NAMES = ("pgd", "ibp", "crown-ibp", "mtl", "sabr", "popqorn", "radius")


def problem():
    model, x = build("gru"), sequences(3, 4)
    return model, x, predicted(model, x)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_symmetric_box_gives_the_loss_of_the_ball(name, share):
    model, x, y = problem()
    box = objectives.OBJECTIVES[name](share, box=Box(x - 0.2, x + 0.2))
    ball = objectives.OBJECTIVES[name](0.2 * share)
    torch.testing.assert_close(box(model, x, y), ball(model, x, y))
    box(model, x, y).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_the_share_certified_is_that_of_certify_over_uneven_boxes():
    model, x, y = problem()
    down, up = torch.rand(2, *x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    box = Box(x - down / 8, x + up / 8)
    loss = CertifiedLoss(1.0, box=box)
    found = certify(model, x, y, box, method="ibp").certified.double().mean()
    assert loss.parts(model, x, y).certified.item() == pytest.approx(found.item())
    loss.epsilon = 0.0
    clean = torch.nn.functional.cross_entropy(model(x), y)
    torch.testing.assert_close(loss(model, x, y), clean)


def test_a_share_of_a_box_is_certified_as_the_smaller_box():
    model, x, y = problem()
    half = certify(model, x, y, Box(x - 0.2, x + 0.4, 0.5)).margins
    torch.testing.assert_close(half, certify(model, x, y, Box(x - 0.1, x + 0.2)).margins)


def test_a_box_may_differ_from_batch_to_batch():
    model, x, y = problem()
    loss = CertifiedLoss(1.0, box=Box(-9.0, 9.0))
    first = loss(model, x, y)
    loss.box = Box(x - 0.1, x + 0.1)
    assert loss(model, x, y) < first


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"box": 0.1}, TypeError, "`box` must be a Box or None, got float"),
        ({"box": Box(0.0, 1.0), "low": 0.0}, ValueError, "leave out p, low, high"),
        ({"box": Box(0.0, 1.0), "p": 2}, ValueError, "leave out p, low, high"),
        ({"box": Box(0.0, 1.0), "epsilon": 2.0}, ValueError, "`epsilon` must be the share.*2.0"),
    ],
)
def test_a_box_that_does_not_fit_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        CertifiedLoss(**{"epsilon": 1.0} | options)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, "1"])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="`share` must be a number from 0 to 1"):
        Box(0.0, 1.0, share)
