"""Tensors that forward makes, and writes into what is recorded: ``total += h`` on ``torch.zeros``.

Only the recording knows what such a tensor holds afterwards. Where it goes into an operation, that
is read instead, and the operation recorded; whatever else would read or write it is refused.
"""

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from popqorn_train.nested import map_nested
from popqorn_train.tracing.in_place import Call, is_same, may_write, place_of, tensors_in

_LAYOUT = frozenset(
    ("__get__", "__hash__", "__len__", "dim", "is_floating_point", "numel", "size", "stride")
)  # what reads no entries


class Overwritten(TorchFunctionMode):
    """Tensors that hold what a recorded result holds; enter it once there is one.

    Args:
        error: makes an error.
        proxy: stands for a recorded result.
    """

    def __init__(
        self, error: Callable[[str], Exception], proxy: Callable[[fx.Node], fx.Proxy]
    ) -> None:
        super().__init__()
        self._error, self._proxy = error, proxy
        self._looks = False
        self._held: dict[int, list[tuple[Tensor, fx.Node]]] = {}

    def add(self, tensor: Tensor, node: fx.Node) -> None:
        """A tensor holds what a node holds."""
        self._held.setdefault(place_of(tensor), []).append((tensor, node))

    def node_of(self, tensor: Tensor) -> fx.Node | None:
        """The node that holds what a tensor holds; None for the tensor itself."""
        self._looks = True
        try:
            held = self._held.get(place_of(tensor), [])
            same = [node for known, node in held if is_same(known, tensor)]
        finally:
            self._looks = False
        if same:
            return same[-1]
        if held:
            raise self._refusal()
        return None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse to read what only the recording knows."""
        kwargs = kwargs or {}
        proxies: list[fx.Proxy] = []
        map_nested((args, kwargs), fx.Proxy, proxies.append)
        harmless = self._looks or proxies or getattr(func, "__name__", "") in _LAYOUT
        read = [] if harmless else tensors_in((args, kwargs))
        if not any(place_of(tensor) in self._held for tensor in read):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if may_write(Call("call_function", func, args, kwargs)):
            raise self._refusal()
        args, kwargs = map_nested((args, kwargs), Tensor, self._now)
        if name == "__getitem__":
            return operator.getitem(*args)
        return fx.Proxy.__torch_function__(func, types, args, kwargs)

    def _now(self, tensor: Tensor) -> Any:
        """A proxy of what a tensor holds, or the tensor itself."""
        node = self.node_of(tensor)
        return tensor if node is None else self._proxy(node)

    def _refusal(self) -> Exception:
        return self._error(
            "it uses a tensor of its own under another name after a write into it in place, as "
            "total += h is one"
        )
