"""Tuples, lists, dicts and slices inside each other."""

from collections.abc import Callable
from typing import Any


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
