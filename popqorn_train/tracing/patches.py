"""Calls of modules and of torch's packing, taken over in one thread while a model is recorded.

Torch keeps them as attributes of classes and modules, which all threads share. What stands there
meanwhile asks which thread calls: only the one that records is answered otherwise.
"""

import contextlib
import functools
import inspect
import math
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

from popqorn_train.tracing.packed import REPLACED, Packed, repack

RECORDING = threading.RLock()  # one model is recorded at a time
_open: list["Patches"] = []  # the recordings that run, one inside the other
_PACKING = {function.__name__: function for function in REPLACED}
_OF_PACKED = frozenset((*_PACKING, "PackedSequence"))
_MATH = {name: function for name, function in vars(math).items() if callable(function)}


class Patches:
    """Stand-ins for functions, for the thread that made this, until it is closed.

    Attributes:
        call: stands for ``nn.Module.__call__``, while there is one.
        read: stands for ``nn.Module.__getattr__``, likewise.
        originals: methods of modules that are replaced, by name.
    """

    def __init__(self) -> None:
        self.call: Callable[..., Any] | None = None
        self.read: Callable[..., Any] | None = None
        self.originals: dict[str, Callable[..., Any]] = {}
        self._thread = threading.get_ident()
        self._undo: list[Callable[[], None]] = []
        _open.append(self)

    def here(self) -> bool:
        """Whether the calling thread is the one that records."""
        return self in _open and threading.get_ident() == self._thread

    def method(self, name: str, own: Callable[[], Callable[..., Any] | None]) -> None:
        """Replace a method of modules for the thread that records, where it has one of its own."""
        original = self.originals[name] = getattr(nn.Module, name)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            return ((own() if self.here() else None) or original)(*args, **kwargs)

        setattr(nn.Module, name, call)
        self._undo.append(lambda: setattr(nn.Module, name, original))

    def value(self, names: dict[str, Any], name: str, own: Any) -> None:
        """Replace what asks itself which thread calls or reads it."""
        original = names[name]
        names[name] = own
        self._undo.append(lambda: names.__setitem__(name, original))

    def close(self) -> None:
        """Put everything back; a stand-in that was taken elsewhere calls the original."""
        _open.remove(self)
        while self._undo:
            self._undo.pop()()


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that becomes one step where a proxy is among its arguments."""

    def call(*args: Any, **kwargs: Any) -> Any:
        found: list[fx.Proxy] = []

        def look(value: Any) -> None:
            if isinstance(value, fx.Proxy):
                found.append(value)
            elif isinstance(value, tuple | list):
                for item in value:
                    look(item)

        look((*args, *kwargs.values()))
        if not found:
            return function(*args, **kwargs)
        return found[0].tracer.create_proxy("call_function", function, args, kwargs)

    return call


def _stand_in(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is recorded in the thread that records, and is the original elsewhere."""
    own = _recorded(original)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (own if _open and _open[-1].here() else original)(*args, **kwargs)

    return call


# By identity: callables of the user's own may be equal and yet compute something else.
_STAND_INS = {id(one): _stand_in(one) for one in (*REPLACED, *_MATH.values())}


def _packed_kind(patches: Patches) -> type:
    """A class that makes packed sequences of proxies, and knows them."""
    recorded = _recorded(repack)

    class Kind(type):
        def __instancecheck__(cls, value: Any) -> bool:
            known = value.node.meta["value"] if isinstance(value, fx.Proxy) else value
            return isinstance(known, PackedSequence | Packed)

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            proxies = patches.here() and isinstance(next(iter(args), None), fx.Proxy)
            return recorded(*args, **kwargs) if proxies else PackedSequence(*args, **kwargs)

    return Kind("PackedSequence", (), {})


@contextlib.contextmanager
def patched(model: nn.Module) -> Iterator[Patches]:
    """Let this thread record what a model calls; the next one waits.

    Functions to be recorded are found among the names that the model's forwards see under any
    name, and wherever else their own names were imported to.
    """
    with RECORDING:
        patches = Patches()
        try:
            _put(patches, _globals_of(model))
            yield patches
        finally:
            patches.close()


def _put(patches: Patches, globals_: list[dict[str, Any]]) -> None:
    keeping = _keeping_proxies(nn.Module.__setattr__)
    patches.method("__call__", lambda: patches.call)
    patches.method("__getattr__", lambda: patches.read)
    patches.method("__setattr__", lambda: keeping)
    naming, kind = _naming(), _packed_kind(patches)
    for names, name, function in _places(globals_, naming):
        patches.value(names, name, _STAND_INS.get(id(function)) or _stand_in(function))
    for names, name in _packed_names(globals_, naming):
        patches.value(names, name, kind)


def _globals_of(model: nn.Module) -> list[dict[str, Any]]:
    """Names that the user's forwards see."""
    found = {}
    kinds = {type(m) for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)}
    for kind in kinds:
        names = getattr(inspect.unwrap(kind.forward), "__globals__", {})
        if not str(names.get("__name__", "torch")).startswith("torch."):
            found[id(names)] = names
    return list(found.values())


def _keeping_proxies(original: Callable[..., None]) -> Callable[..., None]:
    """Sets attributes as modules do, and takes what is recorded in the place of a parameter."""

    def write(module: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, fx.Proxy) and name in module._parameters:
            vars(module)[name] = value
        else:
            original(module, name, value)

    return write


class _Seen(NamedTuple):
    """Modules, how many names each of them has, and which name functions of packed sequences."""

    modules: list[Any]
    places: list[dict[str, Any]]
    sizes: list[int]
    naming: list[dict[str, Any]]


_seen = _Seen([], [], [], [])


def _naming() -> list[dict[str, Any]]:
    """Modules with names of functions and classes of packed sequences.

    There are thousands, so they are looked at again only where some have come, gone, or gained or
    lost names. Those that the user's code reads are looked at each time in any case. A name that
    is missed, because its module has lost another one at once, leaves a model refused, not wrong.
    """
    global _seen
    modules = [*sys.modules.values()]
    same = len(modules) == len(_seen.modules) and all(map(operator.is_, modules, _seen.modules))
    if same and [*map(len, _seen.places)] == _seen.sizes:
        return _seen.naming
    every = [getattr(module, "__dict__", None) for module in modules]
    places = [names for names in every if names]
    naming = [names for names in places if not names.keys().isdisjoint(_OF_PACKED)]
    _seen = _Seen(modules, places, [*map(len, places)], naming)
    return naming


def _places(
    globals_: list[dict[str, Any]], naming: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Where functions stand that are recorded as one step."""
    seen: set[tuple[int, str]] = set()
    ours = {id(function): function for function in (*REPLACED, *_MATH.values())}
    found: list[tuple[dict[str, Any], str, Callable[..., Any] | None]] = [
        *((names, name, f) for names in naming for name, f in _PACKING.items()),
        *((vars(math), name, f) for name, f in _MATH.items()),
        *((names, name, ours.get(id(f))) for names in globals_ for name, f in [*names.items()]),
        *((names, key[1], names.get(key[1])) for key, names in _wrapped().items()),
    ]
    for names, name, function in found:
        if function is not None and names.get(name) is function and (id(names), name) not in seen:
            seen.add((id(names), name))
            yield names, name, function


def _packed_names(
    globals_: list[dict[str, Any]], naming: list[dict[str, Any]]
) -> list[tuple[dict[str, Any], str]]:
    """Where user's code names ``PackedSequence``; elsewhere torch's code means its own class."""
    own = ("torch", "popqorn_train")
    others = [
        names
        for names in naming
        if names.get("PackedSequence") is PackedSequence
        and str(names.get("__name__")).split(".")[0] not in own
    ]
    users = {id(names): names for names in (*globals_, *others, vars(rnn))}.values()
    return [(n, name) for n in users for name, value in [*n.items()] if value is PackedSequence]


def _wrapped() -> dict[tuple[int, str], dict[str, Any]]:
    """Functions that the user registered with ``torch.fx.wrap``."""
    found: dict[tuple[int, str], dict[str, Any]] = fx._symbolic_trace._wrapped_fns_to_patch
    return dict(found)
