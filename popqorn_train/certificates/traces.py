"""Traces that were made, and what they were made for."""

import weakref
from typing import Any, NamedTuple

from torch import Tensor, nn

from popqorn_train.certificates.whole_batch import numbers_of
from popqorn_train.tracing.input_path import Plan

_KEPT = 32  # for batches of equal shapes, but of other numbers of the whole batch


class Known(NamedTuple):
    """A trace, and what it was made for.

    Attributes:
        plan: what moves in it.
        hold: the question it was made for, see ``hold_of``.
        seen: the inputs that it was compared on.
        structure: of the model then.
    """

    plan: Plan
    hold: int
    seen: tuple[int, ...]
    structure: Any


_traces: "weakref.WeakKeyDictionary[nn.Module, dict[Any, dict[Any, Known]]]" = (
    weakref.WeakKeyDictionary()
)


def remembered(model: nn.Module, asked: tuple[Any, ...], named: dict[str, Any]) -> list[Known]:
    """Traces for inputs of these shapes, whatever their batch axis and numbers.

    Args:
        model: what was traced.
        asked: what plans of the same trace differ by.
        named: inputs by argument.
    """
    known = _traces.setdefault(model, {})
    keys = [(*asked, axis, _shapes(named, axis)) for axis in (0, 1)]
    return [last for key in keys for last in known.get(key, {}).values()]


def remember(model: nn.Module, asked: tuple[Any, ...], named: dict[str, Any], known: Known) -> None:
    """Keep a trace, in the place of an older one for the same shapes and numbers."""
    axis = known.plan.batch_axis
    kept = _traces.setdefault(model, {}).setdefault((*asked, axis, _shapes(named, axis)), {})
    kept[numbers_of(known.plan)] = known
    while len(kept) > _KEPT:
        del kept[next(iter(kept))]


_runs: "weakref.WeakKeyDictionary[nn.Module, tuple[int, tuple[Any, ...], Any]]" = (
    weakref.WeakKeyDictionary()
)


def last_run(model: nn.Module, hold: int, named: dict[str, Any]) -> tuple[Any] | None:
    """What a model returned last, if for these inputs and in this hold."""
    at, inputs, output = _runs.get(model, (None, (), None))
    given = tuple(named.values())
    if at != hold or len(inputs) != len(given):
        return None
    pairs = zip(inputs, given, strict=True)
    same = all((one() if isinstance(one, weakref.ref) else one) is two for one, two in pairs)
    return (output,) if same else None


def remember_run(model: nn.Module, hold: int, named: dict[str, Any], output: Any) -> None:
    """Keep what a model returned, but not the inputs."""
    inputs = [weakref.ref(v) if isinstance(v, Tensor) else v for v in named.values()]
    _runs[model] = (hold, tuple(inputs), output)


def _shapes(named: dict[str, Any], axis: int) -> tuple[Any, ...]:
    """Names, and shapes with the size of the batch left out; other arguments as text."""

    def shape(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return repr(value)
        at = min(axis, value.ndim - 1)
        return (*value.shape[:at], None, *value.shape[at + 1 :], value.dtype)

    return tuple((name, shape(value)) for name, value in named.items())
