"""Run a model's forward on proxies that carry the values of a small example.

Every operation is recorded as a node of ``torch.fx``; because each proxy knows its value, sizes,
``len``, iteration over frames, ``x.dim()`` tests and shape asserts in the user's code are concrete.
Hooks are recorded as what they are, a part of what the module computes.
"""

import inspect
import linecache
import operator
import sys
import traceback
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import TraceError

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.tracing.calls import check_own_code, with_hooks
from popqorn_train.tracing.packed import REPLACED, call
from popqorn_train.tracing.patches import RECORDING, patched
from popqorn_train.tracing.preserve import preserved
from popqorn_train.tracing.proxy import ValueProxy
from popqorn_train.tracing.wrappers import inside

_SPELLED = ("and_", "or_", "not_")  # operators that write nothing
_WRITES = ("iadd", "isub", "imul", "itruediv", "setitem")


def called_name(target: Any) -> str:
    """``add`` for ``torch.add``, ``operator.add`` and ``Tensor.add``."""
    return target if isinstance(target, str) else getattr(target, "__name__", "")


class Tracer(fx.Tracer):
    """Records operations and runs each one on the example as it goes."""

    proxy_buffer_attributes = True

    def __init__(self, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.inputs = inputs
        self.baked: dict[str, Tensor] = {}
        self.visited = {""}
        self._running = False
        self._refused: Exception | None = None

    def trace(self, root: nn.Module, concrete_args: Any = None) -> fx.Graph:  # type: ignore[override]
        """Record a call of a module, in this thread alone."""
        self.root, self.graph = root, fx.Graph(tracer_cls=type(self))
        self.submodule_paths = {module: path for path, module in root.named_modules()}
        self.tensor_attrs = {
            value: f"{path}.{name}".removeprefix(".")
            for path, module in root.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        }
        args = [
            self.create_proxy("placeholder", name, (), {}) if isinstance(value, Tensor) else value
            for name, value in self.inputs.items()
        ]
        parameters: dict[str, fx.Proxy] = {}
        original_call, original_read = nn.Module.__call__, nn.Module.__getattr__

        def call_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            def forward(*args: Any, **kwargs: Any) -> Any:
                return original_call(module, *args, **kwargs)

            return self.call_module(module, forward, args, kwargs)

        def read(module: nn.Module, name: str) -> Any:
            return self.getattr(name, original_read(module, name), parameters)

        with RECORDING, patched(call_module, read, _globals_of(root)):
            output = root(*args)
            if self._refused is not None:  # and user code went on without it
                raise self._refused
            self.create_node("output", "output", (self.create_arg(output),), {})
        return self.graph

    def refused(self, why: str) -> Exception:
        """The error for what cannot be recorded; it holds even where user code catches it."""
        if self._refused is None:
            self._refused = TraceError(why)
            self._refused.add_note(_user_line(sys._getframe()))
        return self._refused

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Proxies that know their value."""
        return ValueProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Keep tensors made by the user's code here, not as attributes of the model."""
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            path = self.tensor_attrs.get(a)
            name = path or f"baked:{len(self.baked)}"
            if path is None:
                a = self.baked[name] = a.detach().clone()  # it may be written to afterwards
            node = self.create_node("get_attr", name, (), {})
            node.meta.update(value=a, source=_user_line(sys._getframe()))
            return node
        return super().create_arg(a)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any
    ) -> Any:
        """Record an operation and run it on the example."""
        if kind == "call_function":
            target = REPLACED.get(target, target)
        name = called_name(target) if kind in ("call_function", "call_method") else ""
        in_place = name.endswith("_") and not name.endswith("__") and name not in _SPELLED
        if name.strip("_") in _WRITES or in_place:
            raise self.refused(f"it writes into a tensor in place ({name})")
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if "value" not in proxy.node.meta:
            proxy.node.meta["value"] = self._run(proxy.node)
            proxy.node.meta["source"] = _user_line(sys._getframe())
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
        """Record a leaf module, go through any other, with its hooks."""
        if self._running:
            return forward(*args, **kwargs)
        if (name := inside(m)) is not None:
            return with_hooks(m, name, m.get_submodule(name), args, kwargs)
        path = self.path_of_module(m) if m is not self.root else ""
        leaf = m is not self.root and self.is_leaf_module(m, path)
        check_own_code(m, path, whole=leaf)
        if leaf:

            def step(*args: Any, **kwargs: Any) -> Any:
                return self.create_proxy("call_module", path, args, kwargs)

            return with_hooks(m, path, step, args, kwargs)
        self.visited.add(path)
        return with_hooks(m, path, m.forward, args, kwargs)


def _globals_of(model: nn.Module) -> list[dict[str, Any]]:
    """Names that the user's forwards see."""
    found = {}
    for kind in {type(module) for module in model.modules()}:
        names = getattr(inspect.unwrap(kind.forward), "__globals__", {})
        if not str(names.get("__name__", "torch")).startswith("torch."):
            found[id(names)] = names
    return list(found.values())


def _user_line(frame: FrameType | None) -> str:
    """The innermost line of code that is neither torch's nor ours."""
    while frame is not None:
        if _is_users(frame.f_code):
            return _said(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return "unknown line"


def _is_users(code: CodeType) -> bool:
    name = code.co_filename.replace("\\", "/")
    return "/torch/" not in name and "/popqorn_train/" not in name and not name.startswith("<")


def _said(file: str, line: int) -> str:
    text = linecache.getline(file, line).strip()
    return f"{file.replace(chr(92), '/').rsplit('/', 1)[-1]}, line {line}: {text}"


def run_tracer(model: nn.Module, inputs: dict[str, Any]) -> tuple[fx.Graph, Tracer]:
    """Record a forward on an example.

    Raises:
        UnsupportedModelError: it cannot be recorded, with the user's line.
    """
    tracer = Tracer(inputs)
    try:
        with preserved(model):
            return tracer.trace(model), tracer
    except UnsupportedModelError:
        raise
    except Exception as error:
        line = next(iter(getattr(error, "__notes__", [])), None) or _innermost(error)
        raise UnsupportedModelError(
            f"The forward of {type(model).__name__} cannot be traced: {error} ({line}). Move what "
            "depends on data out of forward, or certify the part of the model after it."
        ) from error


def _innermost(error: Exception) -> str:
    """The innermost user's line that an error passed."""
    places = [(f.f_code, line) for f, line in traceback.walk_tb(error.__traceback__)]
    users = [(code.co_filename, line) for code, line in places if _is_users(code)]
    return _said(*users[-1]) if users else "unknown line"
