"""Masks as lists of booleans, as configurations and the command line hold them."""

import numpy as np
import pytest
import torch

from popqorn_train import CertifiedLoss, objectives
from popqorn_train.callbacks import CertifiedRadiusMonitor
from popqorn_train.perturbations.masks import as_mask

LISTED = [[True, False, True], (True, False, True), np.array([True, False, True])]


@pytest.mark.parametrize("mask", LISTED)
def test_a_list_is_a_mask(mask):
    found = as_mask("frames", mask)
    assert found.dtype == torch.bool
    assert found.tolist() == [True, False, True]
    assert as_mask("frames", found) is found
    assert as_mask("frames", None) is None
    assert as_mask("frames", [[True], [False]]).shape == (2, 1)


@pytest.mark.parametrize(
    "mask", ["true", [1, 0], 3, [[True], [False, True]], [True, None], np.array([1, 0])]
)
def test_anything_else_is_refused(mask):
    with pytest.raises(TypeError, match="`features` must be a boolean tensor or array, or a list"):
        as_mask("features", mask)


MAKERS = [CertifiedLoss, *[getattr(objectives, name) for name in ("pgd", "ibp", "crown_ibp")]]
MAKERS += [getattr(objectives, name) for name in ("mtl", "sabr", "popqorn", "radius")]


@pytest.mark.parametrize("make", MAKERS)
def test_every_objective_takes_lists(make):
    ball = make(0.1, frames=[True, False], features=[False, True, True]).ball()
    assert ball.frames.tolist() == [True, False]
    assert ball.features.tolist() == [False, True, True]


def test_the_monitor_takes_lists_and_says_so_in_its_settings():
    monitor = CertifiedRadiusMonitor(frames=[True, False], features=[False, True])
    settings = monitor._certifier.settings()
    assert settings["frames"] == [True, False]
    assert settings["features"] == [False, True]
    assert monitor.state_key != CertifiedRadiusMonitor(frames=[True, False]).state_key


def test_a_mask_that_moves_nothing_is_refused_at_once():
    with pytest.raises(ValueError, match="`features` marks nothing"):
        CertifiedRadiusMonitor(features=[False, False])
