"""What counts as proved, and what float64 makes of the radii that float32 found."""

import math

import pytest
import torch

from popqorn_train import LpBall, certified_radius, certify, frame_radii
from popqorn_train.certificates.certificate import least, proved
from popqorn_train.certificates.radius import _confirmed
from tests.problems import F64, build, predicted, sequences


def test_only_a_positive_number_proves():
    margins = torch.tensor([1e-300, 1.0, 0.0, -1.0, math.nan, math.inf, -math.inf], dtype=F64)
    assert proved(margins).tolist() == [True, True, False, False, False, False, False]


def test_one_class_that_is_no_number_proves_nothing():
    margins = torch.tensor([[1.0, math.inf, 2.0], [1.0, math.inf, math.nan]], dtype=F64)
    assert proved(least(margins)).tolist() == [True, False]


class Margins:
    """A query whose margins are a function of epsilon."""

    def __init__(self, function):
        self.function = function

    def margin(self, chosen, epsilon):
        return self.function(epsilon)


def test_radii_shrink_until_float64_proves_them():
    query = Margins(lambda epsilon: 1e-7 * (1 - epsilon))
    found = _confirmed(query, torch.tensor([0.0, 0.5, 1.0, 1.5, 1.9], dtype=F64), 1e-3)
    assert found[:2].tolist() == [0, 0.5]
    assert ((found[2:] > 0) & (found[2:] < 1)).all()


@pytest.mark.parametrize("rtol", [0.5, 1e-3, 1e-8])
def test_a_radius_that_float64_never_proves_is_0(rtol):
    query = Margins(lambda epsilon: torch.full_like(epsilon, math.nan))
    assert _confirmed(query, torch.tensor([0.3, 2.0], dtype=F64), rtol).tolist() == [0, 0]


def single(cell, batch):
    """A network in float32, inputs and labels.

    With ``rtol=1e-8``, intervals in float32 alone end above the root about as often as below.
    """
    model, x = build(cell, gain=3.0).float(), sequences(batch, 4, seed=5).float()
    return model, x, predicted(model, x)


@pytest.mark.parametrize("cell", ["tanh", "gru"])
def test_float64_proves_every_radius_of_a_float32_network(cell):
    model, x, y = single(cell, 64)
    found = certified_radius(model, x, y, method="ibp", rtol=1e-8)
    assert (found > 0).all()
    ball = LpBall(found.double())
    assert certify(model.double(), x.double(), y, ball, method="ibp").certified.all()


@pytest.mark.parametrize("cell", ["tanh", "gru"])
def test_float64_proves_every_frame_radius_of_a_float32_network(cell):
    model, x, y = single(cell, 16)
    found = frame_radii(model, x, y, method="ibp", rtol=1e-8)
    assert (found > 0).all()
    model.double()
    for t in range(4):
        ball = LpBall(found[:, t].double(), frames=torch.arange(4) == t)
        assert certify(model, x.double(), y, ball, method="ibp").certified.all()
