"""Tensors that forward makes, and writes into what is recorded: ``total += h`` on ``torch.zeros``.

Only the recording knows what such a tensor holds afterwards. Where it goes into a recorded
operation, that is read instead; whatever else would read it is refused.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from popqorn_train.nested import map_nested
from popqorn_train.tracing.in_place import is_same, place_of, tensors_in

_LAYOUT = frozenset(
    ("__get__", "__hash__", "__len__", "dim", "is_floating_point", "numel", "size", "stride")
)  # what reads no entries


class Overwritten(TorchFunctionMode):
    """Tensors that hold what a recorded result holds; enter it once there is one.

    Args:
        error: makes an error.
    """

    def __init__(self, error: Callable[[str], Exception]) -> None:
        super().__init__()
        self._error = error
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
        if any(place_of(tensor) in self._held for tensor in read):
            raise self._refusal()
        return func(*args, **kwargs)

    def _refusal(self) -> Exception:
        return self._error(
            "it reads a tensor of its own under another name after a write into it in place, as "
            "total += h is one"
        )
