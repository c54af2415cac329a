"""Writes in place, recorded as what they compute: ``x.relu_()`` is ``x = x.relu()``.

That is the same as long as nobody reads the memory of x by another name afterwards. So every
recorded result is kept with the memory that it lies in, and a write

- names x anew: whoever reads x from then on reads the result;
- makes all other results that overlap x unreadable: a view, or what x is a view of;
- is refused where x is an argument of forward, a weight or a buffer.

Whoever has read x before has read what was there before, as in the user's own run.
"""

import copy
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from popqorn_train.nested import map_nested
from popqorn_train.relaxations.curves import CURVES

_WRITTEN = CURVES.keys() | frozenset(
    (
        "add", "addcmul", "addmm", "alpha_dropout", "baddbmm", "bitwise_and", "bitwise_or",
        "clamp_max", "clamp_min", "cumsum", "div", "divide", "dropout", "exp",
        "feature_alpha_dropout", "feature_dropout", "lerp", "log", "logical_and", "logical_not",
        "logical_or", "masked_fill", "mul", "multiply", "neg", "negative", "pow", "reciprocal",
        "relu", "rsqrt", "sigmoid", "sqrt", "sub", "subtract", "tanh", "true_divide",
    )
)  # fmt: skip
_OPERATORS = {
    f"i{name}": getattr(operator, f"{name}_" if name in ("and", "or") else name)
    for name in ("add", "and", "floordiv", "mod", "mul", "or", "pow", "sub", "truediv", "xor")
}
_FILLS = {"zero_": torch.zeros_like, "fill_": torch.full_like}
_SPELLED = ("and_", "or_", "not_")  # operators that write nothing
_COPIES = frozenset(
    (
        "bfloat16", "contiguous", "cpu", "cuda", "double", "flatten", "float", "half", "ravel",
        "reshape", "reshape_as", "to", "type", "type_as",
    )
)  # what may give a copy or not, perhaps by the number of samples  # fmt: skip

_PARTS = frozenset(("chunk", "hsplit", "split", "tensor_split", "unbind", "vsplit"))


class Call(NamedTuple):
    """What is called, as ``fx`` has it."""

    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def without_write(call: Call, model: nn.Module) -> tuple[Call, str] | None:
    """The same call without its write, and the name of the write; None if it writes nothing.

    Raises:
        NotImplementedError: it writes in a way that has no such twin.
    """
    if call.kind == "call_module":
        layer = model.get_submodule(call.target)
        return (call, type(layer).__name__) if writes(layer) else None
    name = call.target if isinstance(call.target, str) else getattr(call.target, "__name__", "")
    bare = name.strip("_")
    if bare in _OPERATORS:
        return call._replace(kind="call_function", target=_OPERATORS[bare]), name
    if name in _FILLS:
        return call._replace(kind="call_function", target=_FILLS[name]), name
    if name.endswith("_") and not name.endswith("__") and name not in _SPELLED:
        if bare not in _WRITTEN:
            raise NotImplementedError(name)
        if isinstance(call.target, str):
            return call._replace(target=bare), name
        return call._replace(target=_function(bare)), name
    if bare == "setitem":
        whole, index, value = call.args
        if not is_basic(index):
            raise IndexedWriteError("x[...] = ... by an index that is a tensor or a list")
        args = whole, index if isinstance(index, tuple) else (index,), value
        return Call("call_function", written, args, {}), "x[...] = ..."
    return _told(call, name)


class IndexedWriteError(NotImplementedError):
    """A write into the entries that a tensor or a list picks."""

    way_out = (
        "Choose between the old and the new values instead: x = torch.where(mask, value, x), where "
        "the mask has as many axes as x, like mask[:, :, None] for frames of (B, T, N)."
    )


def may_write(call: Call) -> bool:
    """Whether a function writes into an argument."""
    try:
        return "out" in call.kwargs or without_write(call, nn.Identity()) is not None
    except NotImplementedError:
        return True


def written(x: Tensor, index: tuple[Any, ...], value: Any) -> Tensor:
    """``x[index] = value`` in a copy."""
    x = x.clone()
    x[index] = value
    return x


def is_basic(index: Any) -> bool:
    """Whether an index consists of numbers and slices."""
    parts = index if isinstance(index, tuple) else (index,)
    plain = (part for part in parts if not isinstance(part, slice) and part is not ...)
    return all(isinstance(part, int) and not isinstance(part, bool) for part in plain)


def _function(name: str) -> Any:
    """``functional.relu`` for ``functional.relu_``."""
    return getattr(functional, name, None) or getattr(torch, name)


def _told(call: Call, name: str) -> tuple[Call, str] | None:
    """The same for a function that is told ``inplace=True``, by name or by place."""
    code = getattr(call.target, "__code__", None)
    if code is None or "inplace" not in code.co_varnames[: code.co_argcount]:
        return None
    place = code.co_varnames.index("inplace")
    args, kwargs = list(call.args), {**call.kwargs}
    told = args[place] if place < len(args) else kwargs.get("inplace", False)
    if not told:
        return None
    if place < len(args):
        args[place] = False
    else:
        kwargs["inplace"] = False
    return call._replace(args=tuple(args), kwargs=kwargs), f"{name}(inplace=True)"


def writes(layer: nn.Module) -> bool:
    """Whether a layer of torch's overwrites what it reads; dropout does nothing in eval mode."""
    plain = not isinstance(layer, nn.modules.dropout._DropoutNd)
    return plain and getattr(layer, "inplace", False) is True


def out_of_place(layer: nn.Module) -> nn.Module:
    """A layer that computes the same and overwrites nothing."""
    if not writes(layer):
        return layer
    layer = copy.copy(layer)
    layer.inplace = False  # type: ignore[assignment]
    return layer


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of a nested value."""
    found: list[Tensor] = []
    map_nested(value, Tensor, found.append)
    return found


class Memory:
    """Which recorded results lie in the same memory, and what writes made of them.

    Args:
        error: makes an error.
    """

    def __init__(self, error: Callable[[str], Exception]) -> None:
        self._error = error
        self._holders: dict[int, list[fx.Node]] = {}
        self._shared: dict[fx.Node, set[int]] = {}
        self._now: dict[fx.Node, fx.Node] = {}
        self._lost: dict[fx.Node, str] = {}

    def note(self, node: fx.Node, model: nn.Module) -> None:
        """Keep where a result lies."""
        places = set(map(place_of, tensors_in(node.meta["value"])))
        may_copy = _may_copy(node, model)
        for read in node.all_input_nodes:
            of_read = self._shared.get(read, set())
            if may_copy or not places.isdisjoint(of_read):
                places |= of_read
        self._shared[node] = places
        for place in places:
            self._holders.setdefault(place, []).append(node)

    def read(self, node: fx.Node) -> fx.Node:
        """The result that a name stands for now.

        Raises:
            Exception: it was overwritten by another name.
        """
        while node in self._now:
            node = self._now[node]
        if node in self._lost:
            raise self._error(
                f"{self._lost[node]} works in place on memory that {node.name!r} shares, which is "
                "read afterwards"
            )
        return node

    def overwrite(self, node: fx.Node, new: fx.Node, what: str) -> None:
        """A write gave a result a new value.

        Args:
            node: the result as it was.
            new: as it is.
            what: the write, for messages.

        Raises:
            Exception: it lies in memory that is not forward's own.
        """
        old, value = node.meta["value"], new.meta["value"]
        if not isinstance(old, Tensor) or (old.shape, old.dtype) != (value.shape, value.dtype):
            raise self._error(f"{what} works in place on what it does not fit")
        if _is_part(node):
            raise self._error(f"{what} works in place on one of several parts of a tensor")
        for other in [other for other in self._overlapping(node) if other is not new]:
            if other.op in ("placeholder", "get_attr"):
                kind = "an argument" if other.op == "placeholder" else "a weight or a buffer"
                raise self._error(f"{what} works in place on {kind} of forward, {other.target!r}")
            if is_same(other.meta["value"], old):
                self._now[other] = new
            else:
                self._lost[other] = what

    def _overlapping(self, node: fx.Node) -> Iterator[fx.Node]:
        own = self._shared[node]
        found = dict.fromkeys(other for place in own for other in self._holders[place])
        for other in found:
            known = other not in self._now and other not in self._lost
            if known and (other is node or any(_overlap(node, other, place) for place in own)):
                yield other


def _overlap(one: fx.Node, two: fx.Node, place: int) -> bool:
    """Whether two results overlap in some memory."""
    first, second = _entries(one, place), _entries(two, place)
    return first is None or second is None or not first.isdisjoint(second)


def _entries(node: fx.Node, place: int) -> set[int] | None:
    """Entries of the memory that a result holds; None if that is not known."""
    found: set[int] = set()
    parts = [part for part in tensors_in(node.meta["value"]) if place_of(part) == place]
    for part in parts:
        whole = torch.arange(part.untyped_storage().nbytes() // part.element_size())
        own = whole.as_strided(part.shape, part.stride(), part.storage_offset())
        found |= {*own.flatten().tolist()}
    return found if parts else None


def _is_part(node: fx.Node) -> bool:
    """Whether it is one of several views at once, into which autograd lets nobody write."""
    whole = node.args[0] if node.target is operator.getitem else None
    return isinstance(whole, fx.Node) and _name(whole) in _PARTS


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def place_of(value: Tensor) -> int:
    """The memory that a tensor lies in."""
    place: int = value.untyped_storage()._cdata
    return place


def is_same(one: Any, two: Tensor) -> bool:
    """Whether two values are one tensor, perhaps by two names."""
    return isinstance(one, Tensor) and (
        (one.data_ptr(), one.shape, one.stride(), one.dtype)
        == (two.data_ptr(), two.shape, two.stride(), two.dtype)
    )


def _may_copy(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), nn.Flatten | nn.Unflatten)
    return node.op in ("call_function", "call_method") and _name(node) in _COPIES
