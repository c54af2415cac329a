"""Modules in the precision of the bounds, without a change to the user's own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from popqorn_train.tracing.calls import set_weights, sets_weight


def eps_of(model: nn.Module, dtype: torch.dtype) -> float:
    """What a norm without an ``eps`` adds: a unit of rounding of the precision it runs in."""
    return torch.finfo(next((p.dtype for p in model.parameters()), dtype)).eps


def cast_copy(module: nn.Module, cast: Callable[[Any], Any]) -> nn.Module:
    """A copy of a module with other tensors, so that nobody who runs it sees them."""
    tensors = [*module.parameters(), *module.buffers()]
    hooks = [hook for inner in module.modules() for hook in inner._forward_pre_hooks.values()]
    if all(cast(tensor) is tensor for tensor in tensors) and not any(map(sets_weight, hooks)):
        return module
    shadow: nn.Module = object.__new__(type(module))  # a parametrised one cannot be copied
    own: dict[str, Any] = {**vars(module)}
    for kind in ("_parameters", "_buffers"):
        own[kind] = {name: cast(tensor) for name, tensor in own[kind].items()}
    own["_modules"] = {
        name: None if child is None else cast_copy(child, cast)
        for name, child in module._modules.items()
    }
    shadow.__dict__ = own
    if isinstance(module, nn.RNNBase):
        names = module._flat_weights_names
        own["_flat_weights"] = [getattr(shadow, name, None) for name in names]
    set_weights(shadow)
    return shadow
