"""The fast run has every value of every parameter; the slow one has all combinations."""

import itertools

import pytest

from tests.thinning import cover

SIZES = [(2, 3), (4, 3, 3), (5, 2, 2, 2)]


@pytest.mark.every_combination
@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("sizes", SIZES)
def test_every_value_is_there_and_hardly_more_combinations_than_values(sizes, order):
    rows = [
        {str(at): value for at, value in enumerate(values)}
        for values in itertools.product(*map(range, sizes))
    ]
    rows = rows if order == "first" else rows[::-1]
    chosen = cover(rows)
    assert len(chosen) == max(sizes)
    assert {v for at in chosen for v in rows[at].items()} == {v for r in rows for v in r.items()}


def test_combinations_that_are_left_out_of_a_table_are_not_asked_for():
    rows = [{"a": 0, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 1}, {"a": 2, "b": 0}]
    assert cover(rows) == [0, 2, 3]
