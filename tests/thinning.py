"""Which parametrisations of a test belong to the fast run.

A test over several parameters mostly repeats one path of the code. The fast run takes so many of
its combinations that each value is there at least once; `make test-all` runs all of them.
"""

from collections.abc import Mapping, Sequence

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
