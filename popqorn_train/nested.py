"""Tuples, lists, dicts and slices inside each other."""

from collections.abc import Callable, Sequence
from typing import Any


def cut_nested(value: Any, kind: type, cut: Callable[[Any], Sequence[Any]]) -> list[Any]:
    """Cut every ``kind`` in nested tuples into as many pieces, for one such nest of each piece."""
    if isinstance(value, kind):
        return list(cut(value))
    columns = zip(*[cut_nested(item, kind, cut) for item in value], strict=True)
    if hasattr(value, "_fields"):
        return [type(value)(*column) for column in columns]
    return list(columns)


def map_nested(value: Any, kind: type | tuple[type, ...], replace: Callable[[Any], Any]) -> Any:
    """Rebuild nested tuples, lists, dicts and slices with every ``kind`` replaced."""
    if isinstance(value, kind):
        return replace(value)
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return slice(*[map_nested(part, kind, replace) for part in parts])
    if isinstance(value, dict):
        return {key: map_nested(item, kind, replace) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [map_nested(item, kind, replace) for item in value]
        if isinstance(value, list):
            return items
        if hasattr(value, "_fields"):
            return type(value)(*items)
        named = type(value).__module__ == "torch.return_types"  # x.max(1).values, for one
        return type(value)(items) if named else tuple(items)
    return value
