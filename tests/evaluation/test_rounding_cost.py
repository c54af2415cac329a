"""What it costs to certify the model as it computes, as it is told, beside what is measured."""

import copy

import pytest
import torch
from torch import nn

from popqorn_train import Box, LpBall, bound, certified_radius
from popqorn_train.bounds.methods import method_named
from popqorn_train.evaluation.batches import Picked
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.rounding_cost import rounding_loss
from popqorn_train.evaluation.sample_rows import SampleRow, Status
from tests.certificates.test_deployed import small


def told(model, x, y, radii, ball, capped=False):
    """What is said of some samples, one at a time."""
    question = Examination(ball, method_named("popqorn"), None, 1e-2, "deployed", False)
    pairs = [
        (
            SampleRow(at, int(y[at]), Status.CERTIFIED, radius=float(radius), capped=capped),
            Picked(torch.tensor([at]), (x[at : at + 1],), y[at : at + 1]),
        )
        for at, radius in enumerate(radii)
    ]
    return rounding_loss(bound(model), pairs, question)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("kind", "ball", "dtype"),
    # A search in float32 loses as much of the radius of a tanh RNN as the rounding of its model.
    [(nn.RNN, LpBall(0.0, 2), torch.float64), (nn.GRU, Box(-3.0, 3.0), torch.float32)],
    ids=["ball", "box"],
)
def test_the_loss_is_about_what_two_exact_searches_differ_by(kind, ball, dtype):
    model, x, y = small(kind)
    moving = {"box": ball} if isinstance(ball, Box) else {"p": 2}
    known = copy.deepcopy(model).to(dtype), x.to(dtype), y
    real = certified_radius(*known, rtol=1e-6, **moving).double()
    computed = certified_radius(model, x, y, rtol=1e-6, confirm="deployed", **moving).double()
    loss = 1 - computed / real
    measured, at = float(loss.max()), int(loss.argmax())
    assert 0 < measured < 1e-2
    for share in (1.0, 0.99):  # as a search leaves it
        found = told(model, x[[at]], y[[at]], share * computed[[at]], ball)
        assert 0.9 * measured < found < 2 * measured
    assert found <= told(model, x, y, share * computed, ball) < 1e-3


def test_without_a_radius_there_is_nothing_to_tell():
    model, x, y = small(nn.RNN)
    assert told(model, x, y, [0.0, 0.0, 0.0], LpBall(0.0)) is None


def test_a_radius_that_no_margin_ends_tells_nothing():
    model, x, y = small(nn.RNN)
    assert told(model, x, y, [0.1, 0.1, 0.1], LpBall(0.0), capped=True) is None


def test_margins_that_do_not_fall_lose_nothing():
    model, x, _ = small(nn.RNN)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        head.weight.zero_()
    y = model(x).argmax(1)
    assert told(model, x, y, [0.1, 0.1, 0.1], LpBall(0.0)) == 0
