"""Run a user's forward and leave nothing of it behind."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.tracing.wrappers import uncompiled

_SMALL = 1_000_000  # entries of a buffer that is copied, so that writes to it can be undone


class _Place(NamedTuple):
    """Names or items that forward may change, compared by identity.

    Attributes:
        owner: what a message calls it, ``self.encoder``.
        now: the dict or list as it is.
        before: a copy.
    """

    owner: str
    now: Any
    before: Any

    def changed(self) -> list[str]:
        if isinstance(self.now, list):
            same = [*map(id, self.now)] == [*map(id, self.before)]
            return [] if same else [self.owner]
        names = self.now.keys() | self.before.keys()
        other = [n for n in names if self.now.get(n, self) is not self.before.get(n, self)]
        return [f"{self.owner}.{name}" for name in sorted(map(str, other))]

    def restore(self) -> None:
        self.now.clear()
        if isinstance(self.now, list):
            self.now.extend(self.before)
        else:
            self.now.update(self.before)


class Before:
    """What a model held before its forward ran: attributes, lists and dicts of them, tensors."""

    def __init__(self, model: nn.Module) -> None:
        self._places: list[_Place] = []
        self._tensors: list[tuple[str, Tensor, Tensor]] = []
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # which takes no attributes
                self._look(f"self.{path}" if path else "self", module)

    def _look(self, owner: str, module: nn.Module) -> None:
        own = [module._parameters, module._modules, module._buffers]
        found = [(owner, vars(module)), (owner, module._buffers)]
        for name, value in vars(module).items():
            if type(value) in (list, dict) and not any(value is one for one in own):
                found.append((f"{owner}.{name}", value))
        for name, place in found:
            self._places.append(_Place(name, place, copy.copy(place)))
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


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[Before]:
    """Run a model's own forward without a trace of it: attributes and buffers stay as they were."""
    before = Before(model)
    try:
        with uncompiled():
            yield before
    finally:
        before.restore()
