"""Which parametrisations of a test belong to the fast run.

A test over several parameters mostly repeats one path of the code. The fast run takes so many of
its combinations that each value is there at least once; `make test-all` runs all of them. Of a test
that repeats a path of another one, as over all operations or models, the mark `one_in(n)` leaves
every n-th combination in the fast run.
"""

from collections.abc import Mapping, Sequence

import pytest

LEAST = 6  # combinations from which on a test is thinned

Combination = Mapping[str, int]  # names of parameters, and what tells their values apart


def cover(rows: Sequence[Combination]) -> list[int]:
    """Positions of combinations that hold every value of every parameter.

    Greedy: next comes the one with the most values that are missing, the first among equals.
    """
    missing = {value for row in rows for value in row.items()}
    chosen: list[int] = []
    while missing:
        gains = [len(missing.intersection(row.items())) for row in rows]
        best = max(range(len(rows)), key=gains.__getitem__)
        chosen.append(best)
        missing -= set(rows[best].items())
    return sorted(chosen)


def repeating(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Those parametrisations of one test that the fast run leaves out."""
    kept = list(items)
    if len(items[0].callspec.params) > 1 and not items[0].get_closest_marker("every_combination"):
        rows = [{n: id(v) for n, v in item.callspec.params.items()} for item in items]
        kept = [items[at] for at in cover(rows)] if len(rows) >= LEAST else kept
    if mark := items[0].get_closest_marker("one_in"):
        kept = kept[mark.kwargs.get("first", 0) :: mark.args[0]]
    return [item for item in items if item not in kept]
