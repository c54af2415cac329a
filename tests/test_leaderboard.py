"""The files of the leaderboard are whole, and its page shows them."""

import copy

import pytest

from tests import leaderboard

SOURCES = leaderboard.sources()
GOOD = SOURCES["popqorn_train"]


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_of_the_leaderboard_is_whole(name):
    assert leaderboard.problems(SOURCES[name]) == []
    assert (leaderboard.ROOT / SOURCES[name]["reference"]).is_file()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("certified", 99.9, "must not exceed"),
        ("epsilon", 0, "must be positive"),
        ("epsilon", "0.1", "must be positive"),
        ("p", 0.5, "from 1 or 'inf'"),
        ("domain", [1, 0], "must be [low, high]"),
        ("samples", 0, "positive number"),
        ("counted", "some", "'all'"),
        ("command", "", "must reproduce"),
        ("network", None, "must be text"),
        ("colour", "red", "unknown `colour`"),
    ],
)
def test_a_wrong_entry_is_named(key, value, said):
    source = copy.deepcopy(GOOD)
    source["entries"][1][key] = value
    [found] = leaderboard.problems(source)
    assert found.startswith("entry 1: ")
    assert said in found


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("source", "the paper", "arXiv:NUMBER"),
        ("source", "arXiv:1905.07387", "where in it"),
        ("quantity", "accuracy", "must be one of certified accuracy"),
        ("note", "", "`note` must be text"),
        ("figure", 12.0, "`figure` must be text"),
        ("certified", 12.0, "unknown `certified`"),
    ],
)
def test_a_published_figure_says_where_it_is_read_and_why_it_stands_apart(key, value, said):
    source = copy.deepcopy(SOURCES["published"])
    source["entries"][0][key] = value
    [found] = leaderboard.problems(source)
    assert said in found


def test_published_figures_stand_in_a_list_of_their_own():
    ours, _, published = leaderboard.tables().partition("## Published, not rerun by us")
    for entry in SOURCES["published"]["entries"]:
        assert entry["source"] in published
        assert entry["source"] not in ours


def test_a_source_says_what_it_is_and_how_it_differs():
    source = {**GOOD, "kind": "measured"}
    assert any("differences" in text for text in leaderboard.problems(source))
    assert any("`kind`" in text for text in leaderboard.problems({**GOOD, "kind": "heard"}))
    assert any("`entries`" in text for text in leaderboard.problems({**GOOD, "entries": []}))


def test_the_page_shows_the_files():
    page = leaderboard.PAGE.read_text()
    assert page == leaderboard.renewed(page)
