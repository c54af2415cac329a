"""The bounding methods: which ranges, and which last step.

    name              ranges of what nonlinearities read        bound on the output
    ibp               intervals                                 intervals
    crown-ibp         intervals                                 one backward pass
    popqorn-fast      affine forms, cut with intervals          one backward pass
    popqorn           a backward pass each, cut with intervals  one backward pass
    popqorn-tight     as popqorn, then of the last frame, as if the class flipped (rebound.py),
                      then one joint quadratic bound of all gaps, where it may decide (joint.py),
                      and one with multipliers that are learned, where there are no gates
    popqorn-tightest  the same, then joint bounds on smaller and smaller ranges, then ranges of all
                      frames, as if the class flipped

Every margin is at least the interval one. That of popqorn-fast is at least that of crown-ibp, and
that of a tight method at least that of popqorn; nothing else is promised.
"""

from collections.abc import Mapping

from popqorn_train.bounds.method import IBP, CrownIBP, Method
from popqorn_train.bounds.popqorn import FastPopqorn, Popqorn
from popqorn_train.bounds.tight import EVERYTHING, LAST_FRAME, SHRINKING, TightPopqorn

__all__ = [
    "IBP",
    "METHODS",
    "TRAINING",
    "CrownIBP",
    "FastPopqorn",
    "Method",
    "Popqorn",
    "TightPopqorn",
    "method_named",
    "name_of",
]

METHODS: dict[str, Method] = {
    "ibp": IBP(),
    "crown-ibp": CrownIBP(),
    "popqorn-fast": FastPopqorn(),
    "popqorn": Popqorn(),
    "popqorn-tight": TightPopqorn(),
    "popqorn-tightest": TightPopqorn(budgets=(LAST_FRAME, SHRINKING, EVERYTHING)),
}
# For losses: closed forms, through which gradients are exact.
TRAINING = {
    "ibp": IBP(),
    "crown-ibp": CrownIBP(),
    "popqorn-fast": FastPopqorn("chords", "lambda", own_lines=False),
    "popqorn": Popqorn("lambda", (), own_lines=False),
}


def method_named(method: str | Method, known: Mapping[str, Method] = METHODS) -> Method:
    """Look a method up.

    Args:
        method: a name, or a method, which is returned.
        known: methods by name.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a ``Method``.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(f"`method` must be a name or a Method, got {type(method).__name__}.")
    if method not in known:
        names = ", ".join(repr(name) for name in known)
        raise ValueError(f"`method` must be one of {names}, got {method!r}.")
    return known[method]


def name_of(method: Method) -> str:
    """The name of a method, or how it is made where its options have no name."""
    return next((name for name, known in METHODS.items() if known == method), repr(method))
