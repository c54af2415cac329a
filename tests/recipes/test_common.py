"""What the experiments share."""

import json
import math

import pytest
import torch

from popqorn_train.evaluation.provenance import fingerprint
from popqorn_train.recipes.data.pen_strokes import PenStrokes
from popqorn_train.recipes.experiments.common import (
    Training,
    mean_of,
    plain,
    rank_trend,
    rounded,
    trained,
    write_numbers,
)
from tests.small_data import write_strokes


@pytest.mark.parametrize(
    ("radii", "trend"),
    [
        ([0.1, 0.2, 0.9], 1.0),
        ([0.9, 0.2, 0.1], -1.0),
        ([0.1, 0.1, 0.2], math.sqrt(0.75)),
        ([0.1, 0.3, 0.2, 0.4], 0.8),
    ],
)
def test_the_trend_is_spearmans_correlation(radii, trend):
    assert rank_trend(torch.tensor(radii)) == pytest.approx(trend)


def test_no_trend_is_no_number():
    assert math.isnan(rank_trend(torch.tensor([0.5, 0.5])))
    assert math.isnan(rank_trend(torch.tensor([0.5])))
    assert mean_of([math.nan, 1.0, 0.0]) == 0.5
    assert math.isnan(mean_of([math.nan]))
    assert (plain(math.nan), plain(0.123456)) == (None, 0.12346)
    assert rounded(torch.tensor([0.123456789, 12345.678])) == [0.12346, 12346.0]


def test_a_network_is_trained_once_and_anew_when_anything_differs(tmp_path):
    write_strokes(tmp_path)
    data = PenStrokes(tmp_path, tmp_path / "labels.txt")
    settings = {"features": 4, "hidden": 3, "classes": 2, "cell": "lstm"}
    path = tmp_path / "net.ckpt"
    first = trained(settings, data, Training(1), path)
    changed = path.stat().st_mtime_ns
    assert fingerprint(trained(settings, data, Training(1), path)) == fingerprint(first)
    assert path.stat().st_mtime_ns == changed
    second = trained(settings, data, Training(2), path)
    assert path.stat().st_mtime_ns != changed
    assert fingerprint(second) != fingerprint(first)


def test_numbers_are_strict_json_with_command_and_versions(tmp_path):
    path = write_numbers(tmp_path / "new", "a.json", {"radii": [0.5]})
    found = json.loads(path.read_text())
    assert found["radii"] == [0.5]
    assert found["versions"]["torch"] == torch.__version__
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_numbers(tmp_path, "b.json", {"radii": [math.nan]})
