"""A stand-in for a tensor while a model is recorded: it knows the example's value."""

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.proxy import Attribute

from popqorn_train.tracing.packed_rows import has_size_of

# Functions that ask for what a method of the same name answers at once.
ANSWERED = {torch.is_complex, torch.is_floating_point, torch.numel}


class ValueProxy(fx.Proxy):
    """A proxy whose shape is known, because it carries the example's value."""

    @property
    def value(self) -> Any:
        """The example's value."""
        return self.node.meta["value"]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.value, name)  # raises the usual AttributeError
        if name in ("ndim", "shape"):
            self._check_size(None)
        if isinstance(found, Tensor):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return Attribute(self, name) if callable(found) else found

    def size(self, dim: int | None = None) -> Any:
        """As a tensor's."""
        self._check_size(dim)
        return self.value.size() if dim is None else self.value.size(dim)

    def dim(self) -> int:
        """As a tensor's."""
        self._check_size(None)
        return int(self.value.dim())

    def numel(self) -> int:
        """As a tensor's."""
        self._check_size(None)
        return int(self.value.numel())

    def is_floating_point(self) -> bool:
        """As a tensor's."""
        return bool(self.value.is_floating_point())

    def is_complex(self) -> bool:
        """As a tensor's."""
        return bool(self.value.is_complex())

    def __len__(self) -> int:
        if isinstance(self.value, Tensor):
            self._check_size(0)
        return len(self.value)

    def __iter__(self) -> Any:
        return iter([operator.getitem(self, index) for index in range(len(self))])

    def __bool__(self) -> bool:
        raise self._refused(
            "its control flow depends on the data (the longest length is lengths.max().item(), or "
            "x.size(1) where x is padded to it)"
        )

    def __int__(self) -> int:
        raise self._refused(
            "it turns data into a Python number (a size may stay a tensor: x[:, :lengths.max()], "
            "or be lengths.max().item(), or x.size(1))"
        )

    __float__ = __index__ = __complex__ = __int__

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self._refused("it turns data into a NumPy array")

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def _written(self, name: str, other: Any) -> Any:
        """``x += y`` and the like, which write into a tensor."""
        write = getattr(operator, name)
        return self.tracer.create_proxy("call_function", write, (self, other), {})

    def _check_size(self, dim: int | None) -> None:
        """Refuse to count the rows of a packed sequence, of which the recording has others."""
        if not has_size_of(self.node.meta.get("packed"), dim):
            raise self._refused(
                "it reads the shape of packed rows, or of their order (the number of features is "
                "data.size(-1))"
            )

    def _refused(self, why: str) -> Exception:
        tracer: Any = self.tracer
        error: Exception = tracer.refused(why)
        return error


def _write(name: str) -> Any:
    def write(self: ValueProxy, other: Any) -> Any:
        return self._written(name, other)

    return write


for _name in ("iadd", "iand", "ifloordiv", "imod", "imul", "ior", "ipow", "isub", "itruediv"):
    setattr(ValueProxy, f"__{_name}__", _write(_name))
