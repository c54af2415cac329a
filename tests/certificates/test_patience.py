"""A long search says once how far it is, and what would be faster."""

import pytest
import torch

from popqorn_train import certified_radius
from popqorn_train.certificates import patience
from tests.fitting import Classifier


def searched(method):
    model, x = Classifier(dropout=0.0).eval(), torch.rand(3, 4, 3)
    return certified_radius(model, x, model(x).argmax(1), method=method)


@pytest.mark.parametrize(("method", "told"), [("popqorn", 1), ("popqorn-fast", 0), ("ibp", 0)])
def test_a_long_search_speaks_once_where_a_faster_method_is_known(
    monkeypatch, caplog, method, told
):
    monkeypatch.setattr(patience, "_LONG", 0.0)
    searched(method)
    said = [line for line in caplog.messages if "of 3 samples decided" in line]
    assert len(said) == told
    assert all("popqorn-fast" in line for line in said)


def test_a_short_search_says_nothing(caplog):
    searched("popqorn")
    assert not caplog.messages
