"""What counts as proved, and what float64 makes of the radii that float32 found."""

import math
from types import SimpleNamespace

import pytest
import torch

from popqorn_train import LpBall, certified_radius, certify, frame_radii
from popqorn_train.bounds.methods import method_named
from popqorn_train.certificates.margins import least, proved
from popqorn_train.certificates.search import answer
from tests.problems import F64, build, predicted, sequences


def test_only_a_positive_number_proves():
    margins = torch.tensor([1e-300, 1.0, 0.0, -1.0, math.nan, math.inf, -math.inf], dtype=F64)
    assert proved(margins).tolist() == [True, True, False, False, False, False, False]


def test_one_class_that_is_no_number_proves_nothing():
    margins = torch.tensor([[1.0, math.inf, 2.0], [1.0, math.inf, math.nan]], dtype=F64)
    assert proved(least(margins)).tolist() == [True, False]


class Margins:
    """A query whose margins are a function of epsilon, 1 and falling by 1 at the clean input."""

    ball, scout = LpBall(0.0), None

    def __init__(self, function, method):
        self.function, self.method = function, method_named(method)
        x = torch.zeros(1, 1, 1, dtype=F64)
        self.instance = SimpleNamespace(center=x, value=x)
        self.target = torch.zeros(1).long()

    def margin(self, chosen, epsilon):
        return self.function(epsilon)

    def clean(self):
        return torch.ones(1, dtype=F64), torch.ones(1, dtype=F64)


def confirmed(exact, rtol, method="ibp"):
    """The radius of margins that reach 0 at 1, and are another function in float64."""
    query = Margins(lambda epsilon: 1 - epsilon, method)
    return answer(query, Margins(exact, method), max_radius=10.0, rtol=rtol).radius.item()


@pytest.mark.parametrize("rtol", [0.3, 1e-2, 1e-6])
@pytest.mark.parametrize("root", [0.2, 0.999, 1.0, 1.001, 3.0])
def test_a_radius_is_the_one_that_float64_proves(root, rtol):
    radius = confirmed(lambda epsilon: 1 - epsilon / root, rtol)
    assert radius < root
    if root <= 1.001:  # what float64 proves far above is not looked for
        assert radius >= (1 - rtol) * min(root, 1)


@pytest.mark.parametrize(("asked", "root"), [(1.002, 1.01), (1.002, 1.001), (1.1, 1.2)])
def test_an_epsilon_that_float32_only_just_refuses_is_left_to_float64(asked, root):
    query, exact = (Margins(lambda e, at=at: 1 - e / at, "popqorn") for at in (1.0, root))
    radius = answer(query, exact, max_radius=10.0, rtol=1e-2, epsilons=(asked,)).radius
    assert (radius == asked) == (asked == 1.002 and root > asked)
    assert radius < root


@pytest.mark.parametrize("rtol", [0.5, 1e-3, 1e-8])
def test_a_radius_that_float64_never_proves_is_0(rtol):
    def unknown(epsilon):
        return torch.full_like(epsilon, math.nan)

    assert confirmed(unknown, rtol) == 0


@pytest.mark.parametrize("root", [0.7, 1.01, 1.3])
def test_proofs_by_contradiction_are_searched_in_float64_alone(root):
    radius = confirmed(lambda epsilon: 1 - epsilon / root, 1e-4, "popqorn-tight")
    assert (1 - 1e-4) * root <= radius < root


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


@pytest.mark.one_in(2)
@pytest.mark.parametrize("cell", ["tanh", "gru"])
def test_float64_proves_every_frame_radius_of_a_float32_network(cell):
    model, x, y = single(cell, 16)
    found = frame_radii(model, x, y, method="ibp", rtol=1e-8)
    assert (found > 0).all()
    model.double()
    for t in range(4):
        ball = LpBall(found[:, t].double(), frames=torch.arange(4) == t)
        assert certify(model, x.double(), y, ball, method="ibp").certified.all()
