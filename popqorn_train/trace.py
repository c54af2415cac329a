"""Record what a model's forward does, with the caller's shapes.

``torch.fx`` runs the user's code on proxies. Here every proxy carries the value of a small example,
so sizes, ``len``, iteration over frames, ``x.dim()`` tests and shape asserts are concrete. The
code is recorded twice, with batches of 2 and 3: a number that grew with the batch is a multiple of
it, an axis that grew is the batch axis. One recording then serves every batch size.
"""

import operator
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import Attribute, TraceError

_BATCHES = (2, 3)


class UnsupportedModelError(ValueError):
    """The model does something that cannot be bounded; the message says where and what to do."""


@dataclass(frozen=True, eq=False)
class Ref:
    """The result of another step, by name."""

    name: str


@dataclass(frozen=True, eq=False)
class Multiple:
    """A number recorded as ``per_sample * batch + rest``."""

    per_sample: int
    rest: int


@dataclass(frozen=True, eq=False)
class Baked:
    """A tensor that the code made while it was recorded, and the axis along which it repeats."""

    value: Tensor
    batch_axis: int | None


@dataclass(frozen=True)
class Step:
    """One recorded operation.

    Attributes:
        name: unique name.
        kind: ``input``, ``weight``, ``function``, ``method`` or ``module``.
        target: argument name, attribute path, function, method name or module path.
        args: arguments, with ``Ref``, ``Multiple`` and ``Baked`` inside.
        kwargs: the same by name.
        shape: of the result in the example; None if it is not a tensor.
        floating: whether the result is a floating tensor.
        batch_axis: of the result; None if it has none.
        source: file, line and text of the user's code.
    """

    name: str
    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...] | None
    floating: bool
    batch_axis: int | None
    source: str

    def refs(self) -> list[str]:
        """Names of the steps this one reads."""
        found: list[str] = []
        walk((self.args, self.kwargs), Ref, lambda ref: found.append(ref.name))
        return found


class Trace(NamedTuple):
    """A recorded forward.

    Attributes:
        steps: in order.
        output: name of the step that is returned.
        visited: paths of the modules whose code was recorded.
    """

    steps: tuple[Step, ...]
    output: str
    visited: frozenset[str]

    @property
    def output_step(self) -> Step:
        """The step that is returned."""
        return next(step for step in self.steps if step.name == self.output)


def walk(value: Any, kind: type | tuple[type, ...], replace: Callable[[Any], Any]) -> Any:
    """Rebuild nested tuples, lists, dicts and slices with every ``kind`` replaced."""
    if isinstance(value, kind):
        return replace(value)
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return slice(*[walk(part, kind, replace) for part in parts])
    if isinstance(value, dict):
        return {key: walk(item, kind, replace) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [walk(item, kind, replace) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


class _Proxy(fx.Proxy):
    """A proxy whose shape is known, because it carries the example's value."""

    @property
    def value(self) -> Any:
        return self.node.meta["value"]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.value, name)  # raises the usual AttributeError
        if isinstance(found, Tensor):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return Attribute(self, name) if callable(found) else found

    def size(self, dim: int | None = None) -> Any:
        return self.value.size() if dim is None else self.value.size(dim)

    def dim(self) -> int:
        return int(self.value.dim())

    def numel(self) -> int:
        return int(self.value.numel())

    def is_floating_point(self) -> bool:
        return bool(self.value.is_floating_point())

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Any:
        return iter([operator.getitem(self, index) for index in range(len(self))])

    def __bool__(self) -> bool:
        raise TraceError("its control flow depends on the data")

    def __int__(self) -> int:
        raise TraceError("it turns data into a Python number")

    __float__ = __index__ = __int__


class _Tracer(fx.Tracer):
    """Records operations and runs each one on the example as it goes."""

    proxy_buffer_attributes = True

    def __init__(self, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.inputs = inputs
        self.baked: dict[str, Tensor] = {}
        self.visited = {""}
        self._running = False

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        args = [
            self.create_proxy("placeholder", name, (), {}) if isinstance(value, Tensor) else value
            for name, value in self.inputs.items()
        ]
        return root_fn, [self.root, *args]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            path = self.tensor_attrs.get(a)
            name = path or f"baked:{len(self.baked)}"
            if path is None:
                self.baked[name] = a
            node = self.create_node("get_attr", name, (), {})
            node.meta["value"] = a
            return node
        return super().create_arg(a)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any
    ) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if "value" not in proxy.node.meta:
            proxy.node.meta["value"] = self._run(proxy.node)
            proxy.node.meta["source"] = _user_line(traceback.extract_stack())
        return proxy

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.inputs[str(node.target)]
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        self._running = True  # a leaf module runs as it is, unrecorded
        try:
            if node.op == "get_attr":
                return operator.attrgetter(str(node.target))(self.root)
            if node.op == "call_module":
                return self.root.get_submodule(str(node.target)).forward(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]
        finally:
            self._running = False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if self._running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        self.visited.add(path)
        return m.forward(*args, **kwargs)


def _user_line(stack: traceback.StackSummary) -> str:
    """The innermost line of code that is neither torch's nor ours."""
    for frame in reversed(stack):
        name = frame.filename.replace("\\", "/")
        if "/torch/" not in name and "/popqorn_train/" not in name and frame.line:
            return f"{name.rsplit('/', 1)[-1]}, line {frame.lineno}: {frame.line}"
    return "unknown line"


def _record(model: nn.Module, inputs: dict[str, Any]) -> tuple[fx.Graph, _Tracer]:
    tracer = _Tracer(inputs)
    try:
        return tracer.trace(model), tracer
    except Exception as error:
        line = _user_line(traceback.extract_tb(error.__traceback__))
        raise UnsupportedModelError(
            f"The forward of {type(model).__name__} cannot be traced: {error} ({line}). Move what "
            "depends on data out of forward, or certify the part of the model after it."
        ) from error


def record(model: nn.Module, inputs: dict[str, Any], batch_axis: int = 0) -> Trace:
    """Trace a model in eval mode.

    Args:
        model: any module whose forward takes ``inputs`` in this order.
        inputs: example arguments by name; tensors have the batch on ``batch_axis``.
        batch_axis: axis of the batch in every input.

    Raises:
        UnsupportedModelError: control flow that depends on data, sizes that are not multiples of
            the batch, or a recording that does not reproduce the model.
    """
    recordings = []
    for batch in _BATCHES:
        example = {name: _resized(value, batch, batch_axis) for name, value in inputs.items()}
        recordings.append(_record(model, example))
    _check_faithful(model, example, recordings[-1][0])
    (first, one), (second, two) = recordings
    pairs = list(zip(first.nodes, second.nodes, strict=False))
    if len(first.nodes) != len(second.nodes) or any(a.target != b.target for a, b in pairs):
        raise UnsupportedModelError(
            f"The forward of {type(model).__name__} takes another path for another batch size. "
            "Write it so that it treats every sample alike."
        )
    steps = [_step(a, b, one.baked, two.baked) for a, b in pairs if a.op != "output"]
    output = pairs[-1][0].args[0]
    if not isinstance(output, fx.Node):
        raise UnsupportedModelError(
            f"{type(model).__name__} returns {type(output).__name__}, expected one tensor of "
            "logits (B, C). Return the logits alone, or wrap the model to pick them."
        )
    return Trace(tuple(steps), output.name, frozenset(one.visited))


def pick_samples(value: Any, chosen: Tensor, batch_axis: int) -> Any:
    """Some samples of an input; what is not a tensor belongs to all."""
    if not isinstance(value, Tensor):
        return value
    return value.index_select(min(batch_axis, value.ndim - 1), chosen.to(value.device))


def _resized(value: Any, batch: int, axis: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    size = value.shape[min(axis, value.ndim - 1)]
    return pick_samples(value.detach(), torch.arange(batch) % size, axis)


def _check_faithful(model: nn.Module, example: dict[str, Any], graph: fx.Graph) -> None:
    """Compare the recording with the model itself: hooks, for one, are not recorded."""
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    expected = model(*example.values())
    if not isinstance(output, fx.Node) or not isinstance(expected, Tensor):
        return  # refused with a sentence of its own
    if not torch.allclose(output.meta["value"], expected, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise UnsupportedModelError(
            f"The recorded forward of {type(model).__name__} does not reproduce its output. A "
            "forward hook, or randomness in forward, changes it; remove that, then certify."
        )


def _step(a: fx.Node, b: fx.Node, baked_2: dict[str, Tensor], baked_3: dict[str, Tensor]) -> Step:
    kinds = {"placeholder": "input", "get_attr": "weight"}
    kind = kinds.get(a.op, a.op.removeprefix("call_"))
    target: Any = a.target
    source = a.meta.get("source", "unknown line")
    if isinstance(target, str) and target in baked_2:
        kind, target = "baked", _merge_baked(baked_2[target], baked_3[str(b.target)], source)
    one, two = a.meta["value"], b.meta["value"]
    shape = tuple(one.shape) if isinstance(one, Tensor) else None
    floating = isinstance(one, Tensor) and one.is_floating_point()
    axis = _batch_axis(one, two) if isinstance(one, Tensor) else None
    args, kwargs = _merge(a.args, b.args), _merge(a.kwargs, b.kwargs)
    return Step(a.name, kind, target, tuple(args), kwargs, shape, floating, axis, source)


def _batch_axis(one: Tensor, two: Tensor) -> int | None:
    """The axis that grew with the batch; None if none did, or if it is mixed with another."""
    grown = [
        axis
        for axis, pair in enumerate(zip(one.shape, two.shape, strict=True))
        if len(set(pair)) > 1
    ]
    single = len(grown) == 1 and (one.shape[grown[0]], two.shape[grown[0]]) == _BATCHES
    return grown[0] if single else None


def _merge_baked(one: Tensor, two: Tensor, source: str) -> Baked:
    axis = _batch_axis(one, two) if one.ndim == two.ndim else None
    if axis is not None:
        one, two = one.narrow(axis, 0, 1), two
    try:
        same = bool((one == two).all())
    except RuntimeError:
        same = False
    if not same:
        raise UnsupportedModelError(
            f"forward makes a tensor that is not the same for every sample ({source}). Make it a "
            "buffer, or build it from constants."
        )
    return Baked(one.detach().clone(), axis)


def _merge(one: Any, two: Any) -> Any:
    """Combine the arguments of the two recordings."""
    if isinstance(one, fx.Node):
        return Ref(one.name)
    if isinstance(one, bool) or isinstance(two, bool):
        return one
    if isinstance(one, int) and isinstance(two, int) and one != two:
        per_sample = (two - one) // (_BATCHES[1] - _BATCHES[0])
        return Multiple(per_sample, one - per_sample * _BATCHES[0])
    if isinstance(one, slice):
        ends = zip((one.start, one.stop, one.step), (two.start, two.stop, two.step), strict=True)
        return slice(*[_merge(a, b) for a, b in ends])
    if isinstance(one, dict):
        return {key: _merge(value, two[key]) for key, value in one.items()}
    if isinstance(one, tuple | list):
        return tuple(_merge(a, b) for a, b in zip(one, two, strict=True))
    return one
