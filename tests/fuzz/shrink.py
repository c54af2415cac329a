"""A failure as a short script."""

from collections import Counter

from popqorn_train.errors import ContradictionError
from tests.fuzz.checks import check
from tests.fuzz.draws import Draw
from tests.fuzz.setting import FalseClaimError

FAILURES = (FalseClaimError, ContradictionError)


def fails(draw: Draw, methods: tuple[str, ...]) -> str | None:
    """What is false, or None; anything else that goes wrong counts as well."""
    try:
        check(draw, Counter(), methods)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def shrunk(draw: Draw, methods: tuple[str, ...]) -> tuple[Draw, tuple[str, ...]]:
    """The simplest draw that fails in the same way, and the methods that it needs."""
    kind = (fails(draw, methods) or ":").partition(":")[0]

    def same(draw: Draw, methods: tuple[str, ...]) -> bool:
        return (fails(draw, methods) or "-").startswith(f"{kind}:")

    alone = [(method,) for method in methods if same(draw, (method,))]
    methods = alone[0] if alone else methods
    going = True
    while going:
        simple = next((one for one in draw.simpler() if same(one, methods)), None)
        going, draw = simple is not None, simple or draw
    return draw, methods


def script(draw: Draw, methods: tuple[str, ...], what: str) -> str:
    """What reproduces a failure, from the root of the repository."""
    said = what.replace("\n", " ")[:80]
    return (
        f'"""{said}"""\n\n'
        "from collections import Counter\n\n"
        "from tests.fuzz.checks import check\n"
        "from tests.fuzz.draws import Draw\n\n"
        f"draw = {draw!r}\n"
        f"check(draw, Counter(), {methods!r})\n"
    )
