"""A second device in name only, for machines that have one: what would fail on a GPU fails here.

Every tensor remembers where it was made. Numbers lie on the processor, but a tensor that was sent
to the other device says so, meets no tensor of the processor, and must come back before numpy reads
it. Tensors that C++ makes by itself, as gradients, are of no device and meet both; so is what is
made on theirs.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

NAME = "xpu"
_HERE, _THERE, _NOWHERE = torch.device("cpu"), torch.device(NAME, 0), torch.device("meta")
_GETTERS = {
    Tensor.device.__get__: lambda place: place or _NOWHERE,
    Tensor.is_cpu.__get__: lambda place: place != _THERE,
    Tensor.is_cuda.__get__: lambda place: False,
}
_TRANSFERS = {"to", "cpu", "xpu"}
_MAY_MIX = {
    "__getitem__",
    "__setitem__",
    "copy_",
    "index_put_",
    "index_put",
    "__set__",
    "set_",
    "_has_compatible_shallow_copy_type",
}
_OF_NO_DEVICE = {"item", "__bool__", "__int__", "__float__", "__index__", "tolist", "__len__"}
_PACKS = {"_pack_padded_sequence", "_pad_packed_sequence"}
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_ONLY_HERE = {"numpy", "__array__"}


class DeviceMixError(RuntimeError):
    """What a GPU would refuse."""


def place_of(x: Tensor) -> torch.device | None:
    """Where a tensor was made."""
    try:
        found: torch.device | None = getattr(x.untyped_storage(), "place", None)
    except NotImplementedError:  # a wrapper of torch.func
        return None
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _put(value: Any, place: torch.device) -> Any:
    for x in _tensors(value):
        with contextlib.suppress(NotImplementedError):
            if place_of(x) is None:
                x.untyped_storage().place = place
    return value


def _device(value: Any) -> torch.device | None:
    """The device that an argument names."""
    if isinstance(value, Tensor):
        return place_of(value)
    if isinstance(value, str) and value.split(":")[0] in ("cpu", NAME):
        return torch.device(value)
    return value if isinstance(value, torch.device) else None


class OtherDevice(TorchFunctionMode):
    """Inside, ``"xpu"`` is a device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        for kind in types:
            if not issubclass(kind, Tensor):  # a recorder, which calls the function itself
                with self:
                    return kind.__torch_function__(func, types, args, kwargs)
        if func in _GETTERS:
            return _GETTERS[func](place_of(args[0]))
        name = func.__name__
        if name in _TRANSFERS and args and isinstance(args[0], Tensor):
            return self._sent(func, name, args, kwargs)
        if name in _PACKS:
            return self._packed(func, args, kwargs)
        place = self._place(name, [*_tensors(args), *_tensors(kwargs)])
        if kwargs.get("device") is not None:
            named = torch.device(kwargs["device"])
            place, kwargs["device"] = (None if named == _NOWHERE else named), _HERE
        found = func(*args, **kwargs)
        if name in _OF_NO_DEVICE:
            return found
        return found if place is None else _put(found, _THERE if place.type == NAME else _HERE)

    def _packed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Frames lie with the input, lengths and sizes of batches on the processor."""
        frames, sizes, *_ = args
        if place_of(sizes) == _THERE:
            raise DeviceMixError("'lengths' argument should be a 1D CPU int64 tensor")
        found = func(*args, **kwargs)
        _put(found[0], place_of(frames) or _HERE)
        return _put(found, _HERE)

    def _place(self, name: str, tensors: list[Tensor]) -> torch.device | None:
        """Where the result lies."""
        if name in _RECURRENT:  # sizes of batches lie on the processor
            tensors = [x for x in tensors if x.is_floating_point()]
        places = [(place_of(x), x.ndim) for x in tensors]
        there = any(place == _THERE for place, _ in places)
        if there and name in _ONLY_HERE:
            raise DeviceMixError("can't convert a tensor of another device to numpy")
        if name in _MAY_MIX:
            return places[0][0]
        if there and any(place == _HERE and ndim for place, ndim in places):
            raise DeviceMixError(f"{name}: tensors of {_THERE} and of the cpu meet")
        if there:
            return _THERE
        return _HERE if not places or any(place == _HERE for place, _ in places) else None

    def _sent(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        before, rest = place_of(args[0]), [*args[1:], *kwargs.values()]
        named = [place for place in map(_device, rest) if place is not None]
        after = {"cpu": _HERE, "xpu": _THERE}.get(name) or (named[0] if named else before)
        plain = [_HERE if isinstance(_device(part), torch.device) else part for part in args[1:]]
        kwargs = {key: _HERE if key == "device" and v else v for key, v in kwargs.items()}
        like = next((part for part in rest if isinstance(part, Tensor)), None)
        if like is not None:
            plain, kwargs = [like.dtype], {}
        found: Tensor = args[0] if name != "to" else func(args[0], *plain, **kwargs)
        if after is None or after == _NOWHERE:
            return found
        if (before or _HERE).type != after.type:
            found = found.clone()
        return _put(found, _THERE if after.type == NAME else _HERE)
