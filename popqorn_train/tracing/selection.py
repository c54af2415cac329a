"""Which part of what a model returns holds the logits."""

from collections.abc import Callable, Mapping
from typing import Any

from popqorn_train.errors import UnsupportedModelError

Select = int | str | Callable[[Any], Any]


def check_select(select: Any) -> None:
    """Refuse what selects nothing.

    Raises:
        TypeError: it is no index, no key and no function.
    """
    whole = isinstance(select, int) and not isinstance(select, bool)
    if not (select is None or whole or isinstance(select, str) or callable(select)):
        raise TypeError(
            "`select` must be an index, a key or the name of a field, a function of what the model "
            f"returns, or None, got {select!r}."
        )


def selected(output: Any, select: Select | None) -> Any:
    """The logits in what a model returns.

    Args:
        output: a tensor, or a tuple, dict or dataclass with one.
        select: an index, a key or the name of a field, a function; None takes all of it.

    Raises:
        UnsupportedModelError: there is no such part.
    """
    if select is None:
        return output
    try:
        if not isinstance(select, int | str):
            return select(output)
        named = isinstance(select, str) and not isinstance(output, Mapping)
        return getattr(output, select) if named else output[select]  # type: ignore[arg-type]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise UnsupportedModelError(
            f"`select` must pick the logits from what the model returns, {described(output)}, got "
            f"{select!r} ({type(error).__name__}: {error})."
        ) from error


def described(output: Any) -> str:
    """What a model returns, in words."""
    name = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {name} with {', '.join(map(repr, output))}"
    if isinstance(output, tuple | list):
        return f"a {name} of {len(output)}"
    fields = [key for key in getattr(output, "__dict__", {}) if not key.startswith("_")]
    return f"a {name} with {', '.join(map(repr, fields))}" if fields else f"a {name}"


def way_to_select(output: Any) -> str:
    """How to pick a part of it."""
    if isinstance(output, Mapping):
        return f"select={next(iter(output), 'logits')!r}"
    return "select=0" if isinstance(output, tuple | list) else 'select="logits"'
