"""Numbers of numpy, arrays, lists and "inf" are what floats and tensors are; errors name them."""

import math

import numpy as np
import pytest
import torch

from popqorn_train import Box, LpBall, certified_radius, certify
from popqorn_train.perturbations.arguments import as_norm, as_numbers
from tests import subjects
from tests.problems import F64


@pytest.mark.parametrize(
    "p", ["inf", "Inf", np.inf, np.float32(np.inf), np.array(np.inf), torch.tensor(torch.inf)]
)
def test_the_largest_norm_has_many_spellings(p):
    assert LpBall(0.1, p).p == math.inf
    x, y = subjects.pair()
    expected = certified_radius(subjects.net(), x, y, method="ibp")
    assert torch.equal(certified_radius(subjects.net(), x, y, p=p, method="ibp"), expected)


@pytest.mark.parametrize("p", [np.int64(2), np.float32(2), np.array(2), torch.tensor(2)])
def test_other_norms_are_numbers_of_any_kind(p):
    found = LpBall(0.1, p).p
    assert found == 2
    assert type(found) in (int, float)


@pytest.mark.parametrize("p", [0.5, "2 or so", None, True, math.nan, [2, 2], 1j, "-inf"])
def test_what_is_no_norm_is_refused_by_name(p):
    with pytest.raises(ValueError, match=r"`p` must be a number from 1 to math\.inf"):
        as_norm(p)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.array(0.5), 0.5])
def test_single_numbers_become_floats(value):
    ball = LpBall(value, low=value, high=value)
    for found in (ball.epsilon, ball.low, ball.high):
        assert type(found) is float
        assert found == 0.5


SIZES = [[0.1, 0.2], (0.1, 0.2), np.array([0.1, 0.2]), np.array([0.2, 0.1])[::-1]]
SIZES += [[np.float64(0.1), np.float64(0.2)], [torch.tensor(0.1, dtype=F64), 0.2]]


@pytest.mark.parametrize("value", SIZES)
def test_arrays_and_lists_become_tensors_of_their_own(value):
    found = LpBall(value).epsilon
    assert torch.equal(found, torch.tensor([0.1, 0.2], dtype=F64))
    if isinstance(value, np.ndarray):
        value[:] = 7.0
        assert found[0] == 0.1


def test_tensors_stay_what_they_are_with_their_gradient():
    epsilon = torch.tensor([0.1, 0.2], requires_grad=True)
    assert LpBall(epsilon).epsilon is epsilon


def test_arrays_prove_what_tensors_prove():
    x, y = subjects.pair()
    net, frames, features = subjects.net(), [True, False, True, True], [True, True, False]
    low, high = x.amin((0, 1)) - 0.01, x.amax((0, 1)) + 0.01
    epsilon = torch.linspace(0.01, 0.2, len(x), dtype=F64)
    ball = LpBall(
        epsilon,
        2,
        frames=torch.tensor(frames),
        features=torch.tensor(features),
        low=low,
        high=high,
    )
    same = LpBall(
        epsilon.numpy(),
        np.float32(2),
        frames=np.array(frames),
        features=features,
        low=low.numpy(),
        high=high.tolist(),
    )
    assert torch.equal(certify(net, x, y, same).margins, certify(net, x, y, ball).margins)
    box = Box((x - 0.01).numpy(), (x + 0.01).tolist())
    expected = certify(net, x, y, Box(x - 0.01, x + 0.01)).margins
    assert torch.equal(certify(net, x, y, box).margins, expected)


def test_infinite_ends_of_the_domain_are_none():
    assert LpBall(0.1, low="-inf", high="inf").low == -math.inf


@pytest.mark.parametrize("value", ["0.1", None, True, [True], ["0.1"], [[0.1], [0.1, 0.2]], 1j])
@pytest.mark.parametrize("name", ["epsilon", "low", "high"])
def test_what_is_no_number_is_refused_by_name(name, value):
    if value is None and name != "epsilon":
        return  # no such end
    with pytest.raises(TypeError, match=f"`{name}` must be a float, or a tensor, array or list"):
        LpBall(**{"epsilon": 0.1, name: value})


def test_infinity_is_no_size():
    with pytest.raises(ValueError, match="`epsilon` must be finite"):
        LpBall("inf")


@pytest.mark.parametrize("name", ["frames", "features"])
@pytest.mark.parametrize("mask", [[1, 0], "yes", np.array([1.0, 0.0]), 3, [[True], [True, False]]])
def test_what_is_no_mask_is_refused_by_name(name, mask):
    with pytest.raises(TypeError, match=f"`{name}` must be a boolean tensor or array, or a list"):
        LpBall(0.1, **{name: mask})


def test_whole_numbers_stay_whole():
    assert type(as_numbers("epsilon", 2)) is int
