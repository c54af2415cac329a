"""Run a user's forward and leave nothing of it behind."""

import contextlib
import copy
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.tracing.wrappers import uncompiled

_LIBRARIES = frozenset(("builtins", "lightning", "pytorch_lightning", "torch", "torchmetrics"))
_SMALL = 1_000_000  # entries of a tensor that is copied, so that writes to it can be undone


class _Place(NamedTuple):
    """Names or items that forward may change, compared by identity.

    Attributes:
        owner: what a message calls it, ``self.encoder``.
        now: the dict, list or deque as it is.
        before: a copy.
        of_object: it is an object of the user's, which other threads may use too: left as it is.
    """

    owner: str
    now: Any
    before: Any
    of_object: bool

    def changed(self) -> list[str]:
        if not isinstance(self.now, dict):
            same = [*map(id, self.now)] == [*map(id, self.before)]
            return [] if same else [self.owner]
        names = self.now.keys() | self.before.keys()
        other = [n for n in names if self.now.get(n, self) is not self.before.get(n, self)]
        return [f"{self.owner}.{name}" for name in sorted(map(str, other))]

    def restore(self) -> None:
        if self.of_object or not self.changed():
            return
        self.now.clear()
        if isinstance(self.now, dict):
            self.now.update(self.before)
        else:
            self.now.extend(self.before)


class Before:
    """What a model held before its forward ran: attributes, what is in them, and tensors."""

    def __init__(self, model: nn.Module) -> None:
        self._places: list[_Place] = []
        self._tensors: list[tuple[str, Tensor, Tensor]] = []
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # which takes no attributes
                self._look(f"self.{path}" if path else "self", module)

    def _look(self, owner: str, module: nn.Module) -> None:
        own = [module._parameters, module._modules, module._buffers]
        found = [(owner, vars(module), False), (owner, module._buffers, False)]
        for name, value in vars(module).items():
            inside = _inside(value)
            if inside is not None and not any(inside is one for one in own):
                found.append((f"{owner}.{name}", inside, inside is not value))
        for name, place, of_object in found:
            self._places.append(_Place(name, place, copy.copy(place), of_object))
            items = place.items() if isinstance(place, dict) else enumerate(place)
            for key, value in items:
                if isinstance(value, Tensor) and value.numel() <= _SMALL:
                    self._tensors.append((f"{name}.{key}", value, value.clone()))

    def changed(self) -> list[str]:
        """Names of what is otherwise now."""
        names = [name for place in self._places for name in place.changed()]
        names += [name for name, now, before in self._tensors if not torch.equal(now, before)]
        return list(dict.fromkeys(names))

    def restore(self) -> None:
        """Make everything as it was."""
        for place in self._places:
            place.restore()
        with torch.no_grad():
            for _, now, before in self._tensors:
                if not torch.equal(now, before):
                    now.copy_(before)


def _inside(value: Any) -> Any:
    """What an attribute holds: the items of a container, the names of an object of the user's."""
    if isinstance(value, list | dict | deque):
        return value
    home = type(value).__module__.partition(".")[0]
    of_user = home not in _LIBRARIES and not isinstance(value, nn.Module | Tensor | type)
    return getattr(value, "__dict__", None) if of_user else None


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[Before]:
    """Run a model's own forward without a trace of it: attributes and buffers stay as they were."""
    before = Before(model)
    try:
        with uncompiled():
            yield before
    finally:
        before.restore()
