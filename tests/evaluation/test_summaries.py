"""The few lines that a terminal shows."""

from pathlib import Path

import pytest

from popqorn_train import SampleRow, Status
from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.summaries import (
    PROMISE,
    TESTED,
    accuracy_rows,
    aligned,
    class_rows,
    facts,
    nice_epsilons,
    promise,
    statuses,
    summary,
    unit,
)

SETTINGS = {
    "model": "m:Net",
    "data": "d.npz",
    "p": "2.0",
    "scope": "frame",
    "low": 0.0,
    "high": None,
    "frames": None,
    "method": "popqorn",
    "confirm": "float64",
}


def certification(radii=(0.0, 0.012, 0.034, 0.05), empirical=None, **settings):
    rows = [
        SampleRow(
            at,
            at % 2,
            Status.CERTIFIED if r else Status.NOT_CERTIFIED,
            at % 2 if r else 9,
            r,
            empirical=None if empirical is None else empirical[at],
        )
        for at, r in enumerate(radii)
    ]
    return Certification(0, 0, tuple(rows), 1.5, settings={**SETTINGS, **settings}, weights="ab")


@pytest.mark.parametrize(
    ("radii", "epsilons"),
    [
        ((0.0, 0.012, 0.034, 0.05, 0.051), [0.01, 0.02, 0.03, 0.04, 0.05]),
        ((3.0, 7.0, 9.7), [2.0, 4.0, 6.0]),
        ((0.0, 0.0), []),
        ((1e-7,) * 3, [2e-8, 4e-8, 6e-8, 8e-8, 1e-7]),
    ],
)
def test_epsilons_are_round_and_reach_as_far_as_most_radii(radii, epsilons):
    assert nice_epsilons(certification(radii)) == pytest.approx(epsilons)


def test_the_table_has_the_shares_that_are_proved_and_that_no_attack_broke():
    found = certification(empirical=(0.0, 0.02, float("inf"), 0.1))
    assert accuracy_rows(found, [0.02, 0.05]) == [
        ["epsilon", "certified", "95 % interval", "attack failed"],
        ["0", "75.0 %", "30.1 to 95.4", "75.0 %"],
        ["0.02", "50.0 %", "15.0 to 85.0", "50.0 %"],
        ["0.05", "25.0 %", "4.6 to 69.9", "50.0 %"],
    ]
    assert accuracy_rows(certification(), [0.02])[0] == ["epsilon", "certified", "95 % interval"]


def test_classes_have_their_names_and_their_own_numbers():
    assert class_rows(certification(), ["cat"]) == [
        ["class", "samples", "accuracy", "median radius", "mean radius"],
        ["cat", "2", "50.0 %", "0", "0.017"],
        ["1", "2", "100.0 %", "0.012", "0.031"],
    ]


def test_every_status_and_every_setting_that_matters_is_said():
    text = summary(certification(), [0.02])
    assert "m:Net on 4 samples of d.npz" in text
    assert "l_2, a ball for every frame, inputs in [0, inf]; method popqorn" in text
    expected = "3 certified, 1 not certified (1 wrong predictions), 0 error, 0 not attempted"
    assert statuses(certification()) == expected
    assert expected in text
    assert facts(certification())["median radius"] == "0.012"
    assert unit({**SETTINGS, "p": "inf", "low": None, "scope": "sequence"}) == (
        "l_inf, one ball for the sequence"
    )
    assert "chosen frames" in unit({**SETTINGS, "frames": [True]})


def test_a_run_without_answers_has_no_numbers():
    rows = (SampleRow(0, 1, Status.NOT_ATTEMPTED),)
    text = summary(Certification(0, 0, rows, settings=SETTINGS), [])
    assert "1 not attempted" in text
    assert "%" not in text


def test_the_promise_says_whether_it_was_confirmed():
    assert "It was confirmed in float64" in promise(SETTINGS)
    assert "NOT confirmed" in promise({**SETTINGS, "confirm": None})
    for settings in (SETTINGS, {}):
        assert "tested against, but not proved for, the deployed kernel" in promise(settings)


def test_the_promise_is_that_of_the_page_about_trust():
    page = " ".join((Path(__file__).resolve().parents[2] / "TRUST.md").read_text().split())
    said = PROMISE.format(name="radius", within="it", confirmed=TESTED)
    assert ". ".join(said.split(". ")[:2]) in page


def test_columns_are_aligned():
    assert aligned([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc   d"
