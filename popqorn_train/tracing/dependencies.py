"""What a loss may reuse a trace for: the same modules, hooks and settings as when it was made.

Settings are those that recorded code names; a counter that only ``training_step`` touches is none.
What is read in another way (``getattr``, a nested object, a global) is not seen here: a loss traces
anew from time to time, and every other question does so at once.
"""

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn
from torch.jit import ScriptModule

_PLAIN = (int, float, str, bool, type(None), FunctionType)
_LIBRARIES = ("torch", "pytorch_lightning", "lightning")


def structure(model: nn.Module, visited: frozenset[str]) -> tuple[list[Any], dict[Any, Any]]:
    """Something that is equal while the trace holds.

    Args:
        model: what was traced.
        visited: paths of the modules whose code was recorded.
    """
    settings = {}
    for path in visited:
        module = model.get_submodule(path)
        own = vars(module)
        for name in _names_read(type(module)) & own.keys():  # type: ignore[arg-type]
            settings[path, name] = _comparable(own[name])
    modules = [
        (name, weakref.ref(module), *module._forward_hooks, *module._forward_pre_hooks)
        for name, module in model.named_modules()
    ]
    return modules, settings


def _comparable(value: Any) -> Any:
    """A value that can be compared; None for what cannot."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple):
        return tuple(_comparable(item) for item in value)
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    return None


@functools.cache
def _names_read(kind: type[nn.Module]) -> frozenset[str]:
    """Names in the code of forward, and of the class's own functions that it names."""
    names: set[str] = set()
    todo: list[Callable[..., Any]] = []
    if not issubclass(kind, ScriptModule):
        todo.append(kind.forward)
    seen: set[Callable[..., Any]] = set()
    while todo:
        function = inspect.unwrap(todo.pop())
        if function in seen or not isinstance(function, FunctionType):
            continue
        seen.add(function)
        for name in _names_in(function.__code__):
            names.add(name)
            found = inspect.getattr_static(kind, name, None)
            helper = found.fget if isinstance(found, property) else found
            if isinstance(helper, FunctionType) and _is_own(helper):
                todo.append(helper)
    return frozenset(names - {"training"})


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _is_own(function: FunctionType) -> bool:
    return (function.__module__ or "torch").split(".")[0] not in _LIBRARIES
