"""Which parametrisations of a test belong to the fast run.

A test over several parameters mostly repeats one path of the code. The fast run takes so many of
its combinations that each value is there at least once; `make test-all` runs all of them. A test
that repeats a path of another one, as over all operations or models, runs for `some` of its values.
"""

from collections.abc import Iterable, Mapping, Sequence

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


def some(values: Iterable, every: int, first: int = 0) -> list:
    """Parameters: every so many-th value is in the fast run, and all are in the slow one."""
    return [
        value if at % every == first else pytest.param(value, marks=pytest.mark.slow)
        for at, value in enumerate(values)
    ]
