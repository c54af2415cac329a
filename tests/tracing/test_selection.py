"""Models that return more than logits are bounded by the part that is selected."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from popqorn_train import (
    CertifiedLoss,
    LpBall,
    UnsupportedModelError,
    bound,
    certified_radius,
    logit_bounds,
)
from tests.problems import Base, sequences


@dataclasses.dataclass
class Found:
    """Logits, and the states that they are made from."""

    states: Tensor
    logits: Tensor


class Pair(NamedTuple):
    states: Tensor
    logits: Tensor


class Several(Base):
    """Returns its states too."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        states = self.rnn(x)[0]
        logits = self.head(states[:, -1])
        return self.kind(states=states, logits=logits)


class Plain(Base):
    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def as_tuple(states, logits):
    return states, logits


def made(kind):
    torch.manual_seed(0)
    return (Plain() if kind is None else Several(kind)).double().eval()


WAYS = [
    (as_tuple, 1),
    (as_tuple, -1),
    (as_tuple, lambda output: output[1]),
    (dict, "logits"),
    (dict, lambda output: output["logits"]),
    (Found, "logits"),
    (Pair, "logits"),
    (Pair, 1),
]


@pytest.mark.parametrize(("kind", "select"), WAYS)
def test_bounds_are_those_of_the_logits_alone(kind, select):
    x, ball = sequences(2, 3), LpBall(0.1)
    layer = bound(made(kind), select=select)
    for one, two in zip(
        logit_bounds(layer, x, ball, method="crown-ibp"),
        logit_bounds(made(None), x, ball, method="crown-ibp"),
        strict=True,
    ):
        assert torch.equal(one, two)


def test_radii_and_losses_take_it():
    x, y, layer = sequences(2, 3), torch.tensor([0, 1]), bound(made(dict), select="logits")
    options = {"method": "ibp", "rtol": 0.1}
    radii = certified_radius(layer, x, y, **options)
    assert torch.equal(radii, certified_radius(made(None), x, y, **options))
    loss = CertifiedLoss(0.01, method="ibp")(layer, x, y)
    loss.backward()
    assert layer.model.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "way"),
    [(as_tuple, "select=0"), (dict, "select='states'"), (Found, 'select="logits"')],
)
def test_without_it_the_error_says_how(kind, way):
    with pytest.raises(UnsupportedModelError, match="expected one tensor of logits") as caught:
        logit_bounds(made(kind), sequences(2, 3), LpBall(0.1))
    assert way in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "select", "message"),
    [
        (as_tuple, 2, "a tuple of 2, got 2"),
        (dict, "scores", "a dict with 'states', 'logits', got 'scores'"),
        (Found, "scores", "a Found with 'states', 'logits', got 'scores'"),
        (as_tuple, 0, "returns a tensor like"),
    ],
)
def test_what_is_not_there_is_refused(kind, select, message):
    with pytest.raises(UnsupportedModelError, match=message):
        logit_bounds(bound(made(kind), select=select), sequences(2, 3), LpBall(0.1))


@pytest.mark.parametrize("select", [True, 1.5, b"logits"])
def test_what_selects_nothing_is_refused(select):
    with pytest.raises(TypeError, match="`select` must be an index"):
        bound(made(dict), select=select)


def test_a_bound_model_keeps_it():
    layer = bound(made(dict), select="logits")
    assert bound(layer, output_is="logit").select == "logits"
    assert bound(layer) is layer
