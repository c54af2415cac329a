"""Shared set-up; also grafts callbacks/ and recipes/ onto the package in a bare checkout."""

import logging
import os
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import popqorn_train
from popqorn_train.kernels.library import SWITCH, kernels
from tests.thinning import repeating

ROOT = Path(__file__).resolve().parents[1]

# On a developer's machine git-ignored links inside the package do the same.
if find_spec("popqorn_train.callbacks") is None:
    popqorn_train.__path__.append(str(ROOT))

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before `-m` deselects
def pytest_collection_modifyitems(items):
    """Mark as slow what repeats a path of the code; see thinning.py."""
    tests = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and not item.get_closest_marker("slow"):
            tests[item.path, item.originalname].append(item)
    for parametrisations in tests.values():
        for item in repeating(parametrisations):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same global generator, and hears what Lightning says."""
    torch.manual_seed(0)
    logging.getLogger("pytorch_lightning").setLevel(logging.INFO)  # a command may have quieted it


@pytest.fixture(params=["compiled", "eager"])
def loops(request, monkeypatch):
    """A test runs with the compiled loops, where there are some, and with torch alone."""
    if request.param == "eager":
        monkeypatch.setenv(SWITCH, "0")
    elif kernels().library is None:
        pytest.skip(f"no compiled loops: {kernels().reason}")


@pytest.fixture
def golden():
    """The folder with what other verifiers prove."""
    folder = ROOT / os.environ.get("POPQORN_GOLDEN", "../shared/golden")
    if not folder.is_dir():
        pytest.skip(f"no golden files in {folder}; set POPQORN_GOLDEN to their folder")
    return folder
