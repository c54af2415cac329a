"""What a user passes to a model: checked, and by the names of forward's arguments."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from popqorn_train.tracing.packed_inputs import apart

Inputs = Tensor | PackedSequence | tuple[Any, ...]


def as_tuple(inputs: Inputs) -> tuple[Any, ...]:
    """The arguments of forward."""
    if isinstance(inputs, tuple) and not isinstance(inputs, PackedSequence):
        return inputs
    return (inputs,)


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """Precision of the weights; None without any."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def named_inputs(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The arguments of forward by name; packed sequences as ``packed_inputs.apart`` gives them.

    Raises:
        ValueError, TypeError: what no model of this kind can read.
    """
    values = as_tuple(inputs)
    names = _arguments(type(model).forward)
    names = names + [f"argument_{index}" for index in range(len(names), len(values))]
    named = apart(dict(zip(names, values, strict=False)))
    tensors = tensors_of(named)
    if not tensors:
        raise TypeError(
            f"`inputs` must be a tensor or a tuple with one, got {type(inputs).__name__}."
        )
    for name, tensor in tensors.items():
        if 0 in tensor.shape or tensor.ndim == 0:
            raise ValueError(
                f"`inputs` must hold at least one sample and one frame, got {name} of shape "
                f"{tuple(tensor.shape)}."
            )
        _check_dtype(model, name, tensor)
    return {name: _usable(value) for name, value in named.items()}


def _check_dtype(model: nn.Module, name: str, tensor: Tensor) -> None:
    own = dtype_of(model)
    if tensor.is_floating_point() and own is not None and tensor.dtype != own:
        raise TypeError(
            f"`inputs` ({name}) must be {own} as the model's weights are, got {tensor.dtype}. "
            f"Convert it with .to({own}), or the model."
        )


def tensors_of(named: dict[str, Any]) -> dict[str, Tensor]:
    """Those of the arguments that are tensors."""
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def lengths_along(named: dict[str, Any], axis: int) -> set[int]:
    """How many samples the tensors hold if the batch is this axis of them."""
    return {value.shape[min(axis, value.ndim - 1)] for value in tensors_of(named).values()}


@functools.cache
def _arguments(forward: Callable[..., Any]) -> list[str]:
    """Names of what a forward takes."""
    return list(inspect.signature(forward).parameters)[1:]


def _usable(value: Any) -> Any:
    """Autograd cannot save an inference tensor: take a normal copy."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
