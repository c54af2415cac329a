"""When training counts as collapsed, from looks at it."""

import math

import pytest
import torch

from popqorn_train import LpBall, bound
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.training.collapse import Collapse, LossSample, merged, sampled
from tests.problems import build, sequences


def seen(ratio=0.5, bound=0.6, predicted=(25, 25, 25, 25), labels=(25, 25, 25, 25)):
    widths = {} if ratio is None else {"ratio_last": ratio}
    return LossSample(list(predicted), list(labels), bound, widths)


HEALTHY = seen()
DROWNED = seen(ratio=100.0, bound=3.0)
CONSTANT = seen(ratio=100.0, bound=1.0, predicted=(95, 5, 0, 0))
LEARNING = seen(ratio=0.4, bound=1.0, predicted=(100, 0, 0, 0))
BLIND = seen(ratio=None, bound=math.nan, predicted=(100, 0, 0, 0))
CLEAN = seen(ratio=None, bound=math.nan)


def told(samples, *, patience=20, steps=5):
    """How many looks it takes to call it a collapse; None if they do not suffice."""
    collapse = Collapse(ratio=5.0, constancy=0.7, patience=patience)
    for count, part in enumerate(samples, 1):
        if collapse.tell(part, steps) is not None:
            return count
    return None


@pytest.mark.parametrize("bad", [DROWNED, CONSTANT, BLIND])
def test_a_collapse_is_what_looks_bad_for_as_long_as_the_patience(bad):
    assert told([HEALTHY, *[bad] * 3]) is None
    assert told([HEALTHY, *[bad] * 4]) == 5
    assert told([HEALTHY, *[bad] * 3, HEALTHY, *[bad] * 3]) is None


@pytest.mark.parametrize("fine", [HEALTHY, LEARNING, CLEAN])
def test_what_looks_fine_never_collapses(fine):
    assert told([HEALTHY, *[fine] * 50]) is None


def test_what_never_learned_has_nothing_to_lose_unless_intervals_drown_it():
    assert told([BLIND] * 50) is None
    assert told([DROWNED] * 50) == 4
    assert told([seen(ratio=9.0, bound=0.5)] * 50) is None  # wide intervals that tell something


def test_a_collapse_is_told_once():
    collapse = Collapse(ratio=5.0, constancy=0.7, patience=10)
    assert [collapse.tell(DROWNED, 5) is None for _ in range(6)] == [True, False, *[True] * 4]
    collapse.forget()
    assert collapse.tell(DROWNED, 5) is None
    assert collapse.tell(DROWNED, 5) is not None


def test_the_reason_names_what_was_seen():
    collapse = Collapse(ratio=5.0, constancy=0.7, patience=5)
    reason = collapse.tell(CONSTANT, 5)
    assert reason == (
        "95% of predictions are one class, intervals are 100 times as wide as states lie apart, "
        "the bound loss is 1.00 ln C, for 5 steps"
    )


def test_state_is_kept():
    first, second = (Collapse(ratio=5.0, constancy=0.7, patience=10) for _ in range(2))
    first.tell(HEALTHY, 5)
    first.tell(BLIND, 5)
    second.restore(first.state())
    assert second.tell(BLIND, 5) == first.tell(BLIND, 5) is not None


@pytest.mark.parametrize(
    ("part", "good"),
    [(HEALTHY, True), (CLEAN, True), (DROWNED, False), (CONSTANT, False), (LEARNING, False)],
)
def test_good_weights_predict_and_their_bounds_tell_something(part, good):
    assert Collapse(ratio=5.0, constancy=0.7, patience=10).good(part) == good


def test_constancy_is_measured_beyond_the_labels():
    assert seen(predicted=(100, 0, 0, 0)).constancy == 1
    assert HEALTHY.constancy == 0
    skewed = seen(predicted=(92, 8, 0, 0), labels=(90, 10, 0, 0))
    assert skewed.modal_share == 0.92
    assert skewed.constancy == pytest.approx(0.2)
    assert seen(predicted=(4,), labels=(4,)).constancy == 0  # one class alone says nothing


def test_looks_are_joined_by_samples():
    one = LossSample([3, 1], [2, 2], 0.5, {"ratio_last": 1.0, "radius": 0.1})
    two = LossSample([0, 12], [6, 6], 1.5, {"ratio_last": 3.0})
    blind = LossSample([0, 1, 3], [0, 1, 3])
    both = merged([one, two, blind, LossSample([0, 0], [0, 0])])
    assert (both.predicted, both.labels) == ([3, 14, 3], [8, 9, 3])
    assert both.bound == pytest.approx((4 * 0.5 + 12 * 1.5) / 16)
    assert both.widths == {"ratio_last": pytest.approx(2.5), "radius": pytest.approx(0.1)}
    assert merged([]) is None
    assert math.isnan(merged([blind]).bound)


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_a_look_counts_predictions_and_measures_states(cell):
    model, x = build(cell), sequences(6, 4)
    y = torch.tensor([0, 0, 1, 1, 1, 2])
    found = enclose(bound(model).instance(x).graph(LpBall(0.1)))
    part = sampled(model(x), y, 2.0, found)
    assert part.labels == [2, 3, 1]
    assert sum(part.predicted) == part.samples == 6
    assert part.predicted == model(x).argmax(1).bincount(minlength=3).tolist()
    assert part.bound == pytest.approx(2 / math.log(3))
    names = {"hidden_radius", "wide", "ratio_first", "ratio_middle", "ratio_last"}
    assert set(part.widths) == names | ({"cell_radius"} if cell == "lstm" else set())
    assert all(isinstance(value, float) for value in part.widths.values())
    assert sampled(model(x), y, math.nan, None).widths == {}
