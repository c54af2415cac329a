"""The same graph of nodes over other tensors, and what tells one kind of graph from another.

What works out a bound from a graph is a function of its tensors: two graphs of one kind differ in
nothing else. What a model brings along, as an object of its own class, has no kind that could be
compared, and is refused.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from types import BuiltinFunctionType, CellType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from popqorn_train.bounds.affine import Matrix
from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.node import Logits, Node
from popqorn_train.relaxations.products import Product

_PLAIN = (
    *(type(None), bool, int, float, str, torch.dtype, torch.device, type),
    *(type(...), range, BuiltinFunctionType, Product),
)
_KNOWN = ("popqorn_train.", "torch.")  # functions of others may read anything
# What is worked out when it is first asked for, and what picks samples of a batch.
_FRESH: Sequence[tuple[type, str, Callable[[], Any]]] = (
    (Node, "slices", dict),
    (Logits, "pick", lambda: None),
    (Logits, "anew", lambda: None),
    (Matrix, "_halves", lambda: None),
    (Matrix, "_turned", lambda: None),
)


class UnlikeError(TypeError):
    """A graph holds what cannot be compared with that of another one."""


class Copied(NamedTuple):
    """A copy of a graph.

    Attributes:
        graph: the copy.
        kind: equal for graphs that differ in the numbers of their tensors alone.
        tensors: of the original, each once.
    """

    graph: Node
    kind: tuple[Hashable, ...]
    tensors: list[Tensor]


def copied(graph: Node, replace: Callable[[Tensor], Tensor] = lambda x: x) -> Copied:
    """Copy a graph.

    Args:
        graph: its last node.
        replace: tells what stands for a tensor in the copy.

    Raises:
        UnlikeError: naming what has no kind.
    """
    copy = _Copy(replace)
    nodes = ancestors(graph)
    for node in nodes:  # first to last, so that no path is followed deep into the graph
        copy.of(node)
    found: Node = copy.of(graph)
    # Walks visit nodes by their indices, which no two graphs share, so their order counts.
    order = sorted(range(len(copy.nodes)), key=lambda place: copy.nodes[place].index)
    return Copied(found, (*copy.kind, *order), copy.tensors)


class _Copy:
    """Copies values, every object once; what it meets, in order, is the kind."""

    def __init__(self, replace: Callable[[Tensor], Tensor]) -> None:
        self._replace = replace
        self._known: dict[int, tuple[int, Any]] = {}
        self._kept: list[Any] = []  # so that no other object gets the identity of a known one
        self.kind: list[Any] = []
        self.tensors: list[Tensor] = []
        self.nodes: list[Node] = []

    def of(self, value: Any) -> Any:
        """The copy of a value."""
        if isinstance(value, _PLAIN):
            self.kind += [type(value), value]
            return value
        if id(value) in self._known:
            place, known = self._known[id(value)]
            self.kind.append(place)
            return known
        copy = self._new(value)
        self._known[id(value)] = len(self._known), copy
        self._kept.append(value)
        if isinstance(value, Node):
            self.nodes.append(value)
        return copy

    def _new(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, tuple | list):
            self.kind += [type(value), len(value)]
            items = [self.of(item) for item in value]
            if isinstance(value, list):
                return items
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, slice):
            self.kind += [slice]
            return slice(*[self.of(part) for part in (value.start, value.stop, value.step)])
        if isinstance(value, dict):
            self.kind += [dict, len(value)]
            return {self.of(key): self.of(item) for key, item in value.items()}
        if isinstance(value, partial):
            self.kind += [partial]
            return partial(self.of(value.func), *self.of(value.args), **self.of(value.keywords))
        if isinstance(value, FunctionType) and (value.__module__ or "").startswith(_KNOWN):
            return self._function(value)
        if type(value).__module__.startswith(_KNOWN[0]):
            return self._object(value)
        raise UnlikeError(f"a {type(value).__name__} is a part of the graph that is bounded")

    def _tensor(self, value: Tensor) -> Tensor:
        if type(value) not in (Tensor, Parameter) or value.layout is not torch.strided:
            raise UnlikeError(f"a tensor of type {type(value).__name__}")
        form = value.shape, value.stride(), value.dtype, value.device, value.requires_grad
        self.kind += [Tensor, *form]
        self.tensors.append(value)
        return self._replace(value)

    def _function(self, value: FunctionType) -> FunctionType:
        """What a function does is told by its code and by what it remembers."""
        self.kind += [value.__code__]
        cells = value.__closure__ or ()
        if not cells and value.__defaults__ is None and value.__kwdefaults__ is None:
            return value
        held = tuple(CellType(self.of(cell.cell_contents)) for cell in cells)
        defaults = self.of(value.__defaults__)
        copy = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, held)
        copy.__kwdefaults__ = self.of(value.__kwdefaults__)
        return copy

    def _object(self, value: Any) -> Any:
        self.kind += [type(value)]
        copy = object.__new__(type(value))
        fresh = {name: new for owner, name, new in _FRESH if isinstance(value, owner)}
        for name, item in _fields(value).items():
            if name in fresh:
                new = fresh[name]()
            elif name == "index" and isinstance(value, Node):  # its order counts, see ``copied``
                new = item
            else:
                self.kind += [name]
                new = self.of(item)
            object.__setattr__(copy, name, new)  # frozen dataclasses too
        return copy


def _fields(value: Any) -> dict[str, Any]:
    """What an object is made of; what a dataclass remembers beside its fields is left out."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return vars(value)
