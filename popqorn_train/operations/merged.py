"""Batch and time on one axis for row-wise work: ``layer(x.view(-1, F)).view(B, T, -1)``.

While both are merged, a node stays what it is with both apart, ``(B, R, *)`` or ``(R, B, *)``, and
what is computed row by row is computed on that: it is the same for every row. Which rows belong to
a sample is found by sending the numbers of all entries through the operation that merges or
splits, with the sizes of this very batch.

B: batch, R: rows of a sample.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.bounds.node import Node
from popqorn_train.bounds.single_reads import Affine
from popqorn_train.errors import MixedSamplesError, UnboundedStepError
from popqorn_train.nested import map_nested
from popqorn_train.operations.merged_recurrent import (
    LastStates,
    lift_sequences,
    other_than_by_layer,
)
from popqorn_train.relaxations.curves import CURVES
from popqorn_train.tracing.sample_axis import deals, moves_entries
from popqorn_train.tracing.steps import IDENTITIES, Step, called_name

if TYPE_CHECKING:
    from popqorn_train.operations.lift import Lifter

_ROW_WISE = (
    IDENTITIES
    | CURVES.keys()
    | frozenset(
        (
            "add", "addmm", "batch_norm", "clamp_max", "clamp_min", "div", "divide", "getattr",
            "layer_norm", "lerp", "linear", "masked_fill", "matmul", "maximum", "minimum", "mm",
            "mul", "multiply", "neg", "pow", "relu", "rms_norm", "rsub", "sigmoid", "sub",
            "subtract", "tanh", "true_divide", "truediv", "where",
        )
    )
)  # fmt: skip
_DIMS = {
    "amax": 1, "amin": 1, "cat": 1, "chunk": 2, "cumsum": 1, "glu": 1, "log_softmax": 1, "max": 1,
    "mean": 1, "min": 1, "softmax": 1, "split": 2, "sum": 1,
}  # where these operations take the axis that they work along  # fmt: skip
_OF_MATRICES = ("bmm", "matmul")
_LAST = {"glu": -1}  # the axis that they take without one
_LAYERS = (
    nn.Linear, nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm, nn.Identity, nn.PReLU, nn.Conv1d,
    nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d, nn.Conv2d,
    nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d,
    nn.modules.dropout._DropoutNd,
)  # fmt: skip
_WAY_OUT = "Split batch and time again before it, with view(B, T, -1)."


class Merged(NamedTuple):
    """What the code has with batch and rows on axis 0.

    Attributes:
        rows: the same with both apart, on axes 0 and 1 in the code's order.
    """

    rows: Node

    def of(self, value: Tensor) -> Tensor:
        """A value of ``rows``, in the user's layout, as the code has it."""
        return value.flatten(0, 1)


def concerns_rows(step: Step, args: Any, kwargs: Any) -> bool:
    """Whether a step merges batch and time, or reads what is merged."""
    found: list[Merged] = []
    map_nested((args, kwargs), Merged, found.append)
    merges = step.batch_axis is None and step.shape is not None and moves_entries(step)
    return bool(found) or (merges and isinstance(args[0], Node) and not deals(step))


def lift_rows(lifter: "Lifter", step: Step, args: Any, kwargs: Any) -> Any:
    """Lift a step that merges, splits, or works on rows.

    Raises:
        MixedSamplesError: it brings entries of different samples together.
        UnboundedStepError: it is no row-wise work that has a bound.
    """
    whole: Any = args[0] if args else None
    if moves_entries(step) and not deals(step):
        if isinstance(whole, Node | Merged):
            return _moved(lifter, step, whole, args[1:], kwargs)
        if isinstance(whole, LastStates):
            return whole.read(step, args[1:], lambda x: lifter.call(step, (x, *args[1:]), kwargs))
        return whole[args[1]]  # of several parts
    states: list[LastStates] = []
    map_nested((args, kwargs), LastStates, states.append)
    if states:
        raise other_than_by_layer(step)
    merged: list[Merged] = []
    map_nested((args, kwargs), Merged, merged.append)
    first = merged[0].rows
    if any((part.rows.shape[0], part.rows.batch_axis) != _layout(first) for part in merged):
        raise _refused(step, "an operation on rows in different orders")
    if _is_recurrent(lifter, step) and isinstance(whole, Merged):
        found = lift_sequences(lifter, step, whole.rows, args[1:], kwargs)
        return map_nested(found, Node, Merged)
    if not _is_row_wise(lifter, step, args, kwargs):
        raise _refused(step, "an operation on batch and time as one axis")
    args, kwargs = _shifted(step, args, kwargs)
    args, kwargs = map_nested((args, kwargs), Merged, lambda part: part.rows)
    found = lifter.lift(_apart(step, first), args, kwargs)
    return map_nested(found, Node, Merged)


def _layout(rows: Node) -> tuple[int, int]:
    return rows.shape[0], rows.batch_axis


def _apart(step: Step, rows: Node) -> Step:
    """The step with batch and rows on axes of their own."""
    if step.shape is None:
        return dataclasses.replace(step, merged=True)
    count, axis = _layout(rows)
    batch = step.shape[0] // count
    ends = (batch, count) if axis == 0 else (count, batch)
    return dataclasses.replace(step, shape=(*ends, *step.shape[1:]), batch_axis=axis, merged=True)


def _is_row_wise(lifter: "Lifter", step: Step, args: Any, kwargs: Any) -> bool:
    """Whether every row of the result comes from that row alone."""
    nodes: list[Any] = []
    map_nested((args, kwargs), (Merged, Node), nodes.append)
    if any(isinstance(node, Node) for node in nodes):
        return False
    if any(lifter.steps[name].grows and not _is_rows(lifter, name) for name in step.refs):
        return False
    if step.kind == "module":
        layer = lifter.model.get_submodule(step.target)
        curve = type(layer).forward.__module__ == "torch.nn.modules.activation"
        return isinstance(layer, _LAYERS) or (
            curve and not isinstance(layer, nn.MultiheadAttention)
        )
    name = called_name(step.target)
    if name in _OF_MATRICES and all(isinstance(arg, Merged) for arg in args[:2]):
        return all(len(arg.rows.shape) > 2 for arg in args[:2])  # matrices, one a row
    if name == "scaled_dot_product_attention":
        return all(isinstance(arg, Merged) for arg in args[:3])
    if name in ("addmm", "linear", "matmul", "mm"):
        at = 1 if name == "addmm" else 0
        return isinstance(args[at], Merged) and not isinstance(args[at + 1], Merged)
    return name in _ROW_WISE or name in _DIMS


def _is_rows(lifter: "Lifter", name: str) -> bool:
    found: list[Merged] = []
    map_nested(lifter.values[name], Merged, found.append)
    return bool(found)


def _shifted(step: Step, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Axes of the code counted where batch and rows are apart."""
    name = called_name(step.target)
    if step.kind == "module" or name not in _DIMS:
        return args, kwargs
    place, key = _DIMS[name], "axis" if "axis" in kwargs else "dim"
    given = args[place] if place < len(args) else kwargs.get(key, _LAST.get(name))
    if isinstance(given, Merged):  # torch.max(a, b)
        return args, kwargs
    dims = given if isinstance(given, tuple | list) else (given,)
    size = len(_first(args).rows.shape)
    if any(not isinstance(dim, int) or dim % size == 0 for dim in dims):
        raise _refused(step, f"a {name} over batch and time as one axis")
    moved = [dim % size + 1 for dim in dims]
    new = moved if isinstance(given, tuple | list) else moved[0]
    if place < len(args):
        return (*args[:place], new, *args[place + 1 :]), kwargs
    return args, {**kwargs, key: new}


def _first(args: Any) -> Merged:
    found: list[Merged] = []
    map_nested(args, Merged, found.append)
    return found[0]


def _moved(lifter: "Lifter", step: Step, x: Any, rest: Any, kwargs: Any) -> Any:
    """Merge, split, or move entries of every row."""
    node = x.rows if isinstance(x, Merged) else x

    def run(value: Tensor) -> Tensor:
        value = x.of(value) if isinstance(x, Merged) else value
        result: Tensor = lifter.call(step, (value.contiguous(), *rest), kwargs)
        return result

    size, batch = math.prod(node.shape), lifter.batch
    numbers = torch.arange(batch * size, device=lifter.device).view(batch, *node.shape)
    places = run(numbers.movedim(0, node.batch_axis))
    axis = step.batch_axis
    if axis is not None:
        _check(step, places.movedim(axis, 0).flatten(1) // size)
        shape = tuple(length for at, length in enumerate(step.shape or ()) if at != axis)
        same = _is_same(node, shape, axis, places)
        return node if same else Affine(run, [node], shape, axis)
    return Merged(_rows(lifter, step, node, run, places))


def _rows(
    lifter: "Lifter", step: Step, node: Node, run: Callable[[Tensor], Tensor], places: Tensor
) -> Node:
    """The node of a merged result."""
    size, batch = math.prod(node.shape), lifter.batch
    count = len(places) // batch
    ends = {0: (batch, count), 1: (count, batch)}

    def order() -> int:
        first = places.flatten(1)[:, 0] // size
        every = torch.arange(batch, device=first.device)
        repeated = {0: every.repeat_interleave(count), 1: every.repeat(count)}
        fits = [at for at in ends if torch.equal(first, repeated[at])]
        return node.batch_axis if node.batch_axis in fits else (fits or [0])[0]

    axis = lifter.choose(step, "rows", order)
    apart = places.reshape(*ends[axis], *places.shape[1:])
    _check(step, apart.movedim(axis, 0).flatten(1) // size)
    shape = (count, *places.shape[1:])
    if _is_same(node, shape, axis, apart):
        return node
    sizes = (-1, count) if axis == 0 else (count, -1)
    return Affine(lambda value: _parted(run(value), sizes), [node], shape, axis)


def _parted(value: Tensor, sizes: tuple[int, int]) -> Tensor:
    return value.reshape(*sizes, *value.shape[1:])


def _is_same(node: Node, shape: tuple[int, ...], axis: int, places: Tensor) -> bool:
    """Whether every entry is where it was."""
    if (node.shape, node.batch_axis) != (shape, axis):
        return False
    there = torch.arange(places.numel(), device=places.device)
    return torch.equal(places.movedim(axis, 0).flatten(), there)


def _check(step: Step, samples: Tensor) -> None:
    """Refuse rows ``(B, M)`` that hold entries of other samples."""
    every = torch.arange(len(samples), device=samples.device)
    if (samples != every[:, None]).any():
        raise MixedSamplesError(
            f"{step.name!r} mixes the entries of different samples ({step.source}). "
            "Permute the axes before reshaping, so that the rows of a sample stay its own."
        )


def _is_recurrent(lifter: "Lifter", step: Step) -> bool:
    """Whether a step calls a recurrent layer."""
    return step.kind == "module" and isinstance(lifter.model.get_submodule(step.target), nn.RNNBase)


def _refused(step: Step, what: str) -> UnboundedStepError:
    where = f"module {step.target!r}" if step.kind == "module" else f"node {step.name!r}"
    what = f"{where} is {what}, which has no bound ({step.source})."
    return UnboundedStepError(what, _WAY_OUT)
