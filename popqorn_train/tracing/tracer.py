"""Run a model's forward on proxies that carry the values of a small example.

Every operation is recorded as a node of ``torch.fx``; because each proxy knows its value, sizes,
``len``, iteration over frames, ``x.dim()`` tests and shape asserts in the user's code are concrete.
Hooks are recorded as what they are, a part of what the module computes.
"""

import contextlib
import operator
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import TraceError
from torch.nn.utils.rnn import pack_padded_sequence

from popqorn_train.nested import map_nested
from popqorn_train.tracing.calls import check_own_code, set_weights, tied, with_hooks
from popqorn_train.tracing.in_place import (
    Call,
    Memory,
    out_of_place,
    place_of,
    tensors_in,
    without_write,
)
from popqorn_train.tracing.made_tensors import Overwritten
from popqorn_train.tracing.packed import REPLACED, call
from popqorn_train.tracing.packed_inputs import together
from popqorn_train.tracing.packed_rows import part_of
from popqorn_train.tracing.patches import Patches
from popqorn_train.tracing.proxy import ANSWERED, ValueProxy
from popqorn_train.tracing.selection import Select, selected
from popqorn_train.tracing.steps import IDENTITIES, called_name
from popqorn_train.tracing.user_lines import user_line
from popqorn_train.tracing.wrappers import inside

_PACK = pack_padded_sequence  # under a name that is not replaced while a model is recorded
_TRANSFORMERS = "torch.nn.modules.transformer"
SCRIPTED = "scripted by torch.jit, which hides its operations (use what it was scripted from)"
_OUT_OF_PLACE = "Use inplace=False, the operation without the underscore, or clone() before it."


class Tracer(fx.Tracer):
    """Records operations and runs each one on the example as it goes."""

    proxy_buffer_attributes = True

    def __init__(
        self, inputs: dict[str, Any], patches: Patches, select: Select | None = None
    ) -> None:
        super().__init__()
        self.inputs, self.select, self._patches = inputs, select, patches
        self.returned: Any = None
        self.baked: dict[str, Tensor] = {}
        self.visited = {""}
        self.tied: dict[tuple[str, str], str] = {}
        self._memory, self._overwritten = (
            Memory(self.refused_write),
            Overwritten(self.refused_write, self.proxy),
        )
        self._modes = contextlib.ExitStack()
        self._path = ""
        self._running = False
        self._refused: Exception | None = None
        self.write: Exception | None = None
        self.way_out = _OUT_OF_PLACE  # for the write that is refused

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
        own = [*root.parameters(), *root.buffers(), *self.tensor_attrs]
        self._places = set(map(place_of, tensors_in(own)))
        proxies = {
            name: self.create_proxy("placeholder", name, (), {})
            if isinstance(value, Tensor)
            else value
            for name, value in self.inputs.items()
        }
        args = together(proxies, self._pack)
        parameters: dict[str, fx.Proxy] = {}
        original = self._patches.originals

        def call_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            def forward(*args: Any, **kwargs: Any) -> Any:
                return original["__call__"](module, *args, **kwargs)

            return self.call_module(module, forward, args, kwargs)

        def read(module: nn.Module, name: str) -> Any:
            return self.getattr(name, original["__getattr__"](module, name), parameters)

        self._patches.call, self._patches.read = call_module, read
        try:
            with self._modes:
                self._record(root, args)
        finally:
            self._patches.call = self._patches.read = None
        return self.graph

    def _record(self, root: nn.Module, args: Sequence[Any]) -> None:
        self.returned = root(*args)
        output = selected(self.returned, self.select)
        if self._refused is not None:  # and user code went on without it
            raise self._refused
        one = isinstance(output, fx.Proxy | Tensor)
        found = self.create_arg(output) if one else None
        self.create_node("output", "output", (found,), {})

    def _pack(self, *args: Any) -> Any:
        return self.create_proxy("call_function", _PACK, args, {})

    def refused(self, why: str) -> Exception:
        """The error for what cannot be recorded; it holds even where user code catches it."""
        if self._refused is None:
            self._refused = TraceError(why)
            self._refused.add_note(user_line(sys._getframe()))
        return self._refused

    def refused_write(self, why: str) -> Exception:
        """The same for a write in place."""
        self.write = self.refused(why)
        return self.write

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Proxies that know their value."""
        return ValueProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Keep tensors made by the user's code here, not as attributes of the model."""
        if isinstance(a, fx.Proxy):
            return self._memory.read(a.node)
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            if (known := self._overwritten.node_of(a)) is not None:
                return self._memory.read(known)
            path = self.tensor_attrs.get(a)
            name = path or f"baked:{len(self.baked)}"
            if path is None:
                a = self.baked[name] = a.detach().clone()  # it may be written to afterwards
            node = self.create_node("get_attr", name, (), {})
            node.meta.update(value=a, source=user_line(sys._getframe()))
            return node
        return super().create_arg(a)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any
    ) -> Any:
        """Record an operation and run it on the example."""
        if kind == "call_function":
            target = REPLACED.get(target, target)
            if target in ANSWERED:
                return getattr(next(iter((*args, *kwargs.values()))), target.__name__)()
        call = Call(kind, target, args, kwargs)
        try:
            write = without_write(call, self.root)
        except NotImplementedError as error:
            self.way_out = getattr(error, "way_out", self.way_out)
            raise self.refused_write(f"it writes into a tensor in place ({error})") from None
        if write is not None:
            return self._write(*write)
        return self._recorded(call, *rest, **more)

    def _recorded(self, call: Call, *rest: Any, **more: Any) -> Any:
        proxy = super().create_proxy(*call, *rest, **more)
        if "value" not in proxy.node.meta:
            try:
                part = part_of(proxy.node, self.root, called_name(call.target))
            except ValueError as error:
                raise self.refused(str(error)) from None
            proxy.node.meta.update(packed=part, value=self._run(proxy.node))
            proxy.node.meta["source"] = user_line(sys._getframe())
            self._memory.note(proxy.node, self.root)
        if type(proxy.node.meta["value"]) is tuple:  # as a tuple, so that isinstance sees one
            return tuple(iter(proxy))
        return proxy

    def _write(self, call: Call, name: str) -> Any:
        """Record what a write computes, as the new value of what it writes into."""
        path = str(call.target) if call.kind == "call_module" else self._path
        where = f"module {path!r}, " if path else ""
        what = f"{name} ({where}{user_line(sys._getframe())})"
        whole = call.args[0] if call.args else call.kwargs.get("input")
        if isinstance(whole, fx.Proxy):
            old = self._memory.read(whole.node)
            proxy = self._recorded(call)
            self._memory.overwrite(old, proxy.node, what)
            return proxy
        if not isinstance(whole, Tensor) or place_of(whole) in self._places:
            raise self.refused_write(f"{what} works in place on what is not forward's own")
        proxy = self._recorded(call)
        self._overwritten.add(whole, proxy.node)
        self._modes.enter_context(self._overwritten)
        return proxy

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Torch's layers, and classes of the user's own that only inherit their forward.

        Those of transformers consist of other layers.
        """
        home = type(m).forward.__module__
        if home == _TRANSFORMERS:
            return False
        inherited = home.startswith("torch.nn.modules")
        return super().is_leaf_module(m, module_qualified_name) or (
            inherited and not isinstance(m, nn.Sequential)
        )

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.inputs[str(node.target)]
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        read = [tensor for tensor in tensors_in((args, kwargs)) if not tensor.is_inference()]
        versions = [tensor._version for tensor in read]
        self._running = True  # a leaf module runs as it is, unrecorded
        try:
            value = self._called(node, args, kwargs)
        finally:
            self._running = False
        if versions != [tensor._version for tensor in read]:
            raise self.refused_write(
                f"it writes into a tensor in place ({called_name(node.target)})"
            )
        return value

    def _tie(self, module: nn.Module, path: str) -> None:
        """Note the weights that forward gives to a layer, as a weight drop does."""
        for name, given in {**module._parameters, **vars(module)}.items():
            if isinstance(given, fx.Proxy):
                node = self._memory.read(given.node)
                while called_name(node.target) in IDENTITIES and node.op != "get_attr":
                    node = node.all_input_nodes[0]
                known = self.tied.setdefault((path, name), str(node.target))
                same = torch.equal(given.node.meta["value"], node.meta["value"])
                if node.op != "get_attr" or not same or known != node.target:
                    raise self.refused(
                        f"module {path!r} gets its weight {name!r} from what forward computes. "
                        "Compute it with torch.nn.utils.parametrize.register_parametrization"
                    )

    def _called(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        if node.op == "call_module":
            layer = out_of_place(tied(self.root, str(node.target), self.tied))
            set_weights(layer)
            return call(layer.forward, args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """Record reads of weights, except those of a leaf module that runs."""
        if self._running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record a leaf module, go through any other, with its hooks."""
        if self._running:
            return forward(*args, **kwargs)
        if isinstance(m, torch.jit.ScriptModule):
            return self._call_scripted(m, forward, args, kwargs)
        if (name := inside(m)) is not None:
            return with_hooks(m, name, m.get_submodule(name), args, kwargs)
        path = self.path_of_module(m) if m is not self.root else ""
        leaf = m is not self.root and self.is_leaf_module(m, path)
        check_own_code(m, path, whole=leaf)
        if leaf:
            self._tie(m, path)

            def step(*args: Any, **kwargs: Any) -> Any:
                return self.create_proxy("call_module", path, args, kwargs)

            return with_hooks(m, path, step, args, kwargs, whole=True)
        self.visited.add(path)
        before, self._path = self._path, path
        try:
            return with_hooks(m, path, m.forward, args, kwargs)
        finally:
            self._path = before

    def _call_scripted(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Run what is scripted on what is known alone: its operations do not show."""
        found: list[fx.Proxy] = []
        map_nested((args, kwargs), fx.Proxy, found.append)
        if found:
            raise self.refused(f"it calls {self.path_of_module(m)!r}, which is {SCRIPTED}")
        return forward(*args, **kwargs)
