"""Run a model's forward on proxies that carry the values of a small example.

``torch.fx`` records every operation; because each proxy knows its value, sizes, ``len``, iteration
over frames, ``x.dim()`` tests and shape asserts in the user's code are concrete.
"""

import operator
import sys
import traceback
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import Attribute, TraceError

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.tracing.packed import REPLACED, call
from popqorn_train.tracing.preserve import preserved
from popqorn_train.tracing.wrappers import inside

_PACKING = {function.__name__: function for function in REPLACED}
_WRITES = ("iadd", "isub", "imul", "itruediv", "setitem")


def called_name(target: Any) -> str:
    """``add`` for ``torch.add``, ``operator.add`` and ``Tensor.add``."""
    return target if isinstance(target, str) else getattr(target, "__name__", "")


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
        raise TraceError(
            "it turns data into a Python number (a size may stay a tensor: x[:, :lengths.max()])"
        )

    __float__ = __index__ = __int__


class Tracer(fx.Tracer):
    """Records operations and runs each one on the example as it goes."""

    proxy_buffer_attributes = True

    def __init__(self, inputs: dict[str, Any]) -> None:
        super().__init__(autowrap_functions=tuple(REPLACED))
        # Wherever a name of torch's packing was imported to, it is recorded.
        self._autowrap_search += [place for place in [*sys.modules.values()] if _packs(place)]
        self.inputs = inputs
        self.baked: dict[str, Tensor] = {}
        self.visited = {""}
        self._running = False

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Make the given tensors inputs; every other argument keeps its value or default."""
        args = [
            self.create_proxy("placeholder", name, (), {}) if isinstance(value, Tensor) else value
            for name, value in self.inputs.items()
        ]
        return root_fn, [self.root, *args]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Proxies that know their value."""
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Keep tensors made by the user's code here, not as attributes of the model."""
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            path = self.tensor_attrs.get(a)
            name = path or f"baked:{len(self.baked)}"
            if path is None:
                a = self.baked[name] = a.detach().clone()  # it may be written to afterwards
            node = self.create_node("get_attr", name, (), {})
            node.meta.update(value=a, source=_user_line(traceback.extract_stack()))
            return node
        return super().create_arg(a)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any
    ) -> Any:
        """Record an operation and run it on the example."""
        if kind == "call_function":
            target = REPLACED.get(target, target)
        name = called_name(target) if kind in ("call_function", "call_method") else ""
        if name.strip("_") in _WRITES or (name.endswith("_") and not name.endswith("__")):
            raise TraceError(f"it writes into a tensor in place ({name})")
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if "value" not in proxy.node.meta:
            proxy.node.meta["value"] = self._run(proxy.node)
            proxy.node.meta["source"] = _user_line(traceback.extract_stack())
        if type(proxy.node.meta["value"]) is tuple:  # as a tuple, so that isinstance sees one
            return tuple(iter(proxy))
        return proxy

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Torch's layers, and classes of the user's own that only inherit their forward."""
        inherited = type(m).forward.__module__.startswith("torch.nn.modules")
        return super().is_leaf_module(m, module_qualified_name) or (
            inherited and not isinstance(m, nn.Sequential)
        )

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.inputs[str(node.target)]
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        self._running = True  # a leaf module runs as it is, unrecorded
        try:
            if node.op == "get_attr":
                return operator.attrgetter(str(node.target))(self.root)
            if node.op == "call_module":
                return call(self.root.get_submodule(str(node.target)).forward, args, kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]
        finally:
            self._running = False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """Record reads of weights, except those of a leaf module that runs."""
        if self._running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record a leaf module, go through any other; hooks are left to fidelity.py."""
        if self._running:
            return forward(*args, **kwargs)
        if (name := inside(m)) is not None:
            return m.get_submodule(name)(*args, **kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        self.visited.add(path)
        return m.forward(*args, **kwargs)


def _packs(module: Any) -> bool:
    names = getattr(module, "__dict__", {})
    return any(names.get(name) is function for name, function in _PACKING.items())


def _user_line(stack: traceback.StackSummary) -> str:
    """The innermost line of code that is neither torch's nor ours."""
    for frame in reversed(stack):
        name = frame.filename.replace("\\", "/")
        if "/torch/" not in name and "/popqorn_train/" not in name and frame.line:
            return f"{name.rsplit('/', 1)[-1]}, line {frame.lineno}: {frame.line}"
    return "unknown line"


def run_tracer(model: nn.Module, inputs: dict[str, Any]) -> tuple[fx.Graph, Tracer]:
    """Record a forward on an example.

    Raises:
        UnsupportedModelError: it cannot be recorded, with the user's line.
    """
    tracer = Tracer(inputs)
    try:
        with preserved(model):
            return tracer.trace(model), tracer
    except Exception as error:
        line = _user_line(traceback.extract_tb(error.__traceback__))
        raise UnsupportedModelError(
            f"The forward of {type(model).__name__} cannot be traced: {error} ({line}). Move what "
            "depends on data out of forward, or certify the part of the model after it."
        ) from error
