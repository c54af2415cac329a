"""How sums, means, maxima and masks act on nodes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.affine import Negative
from popqorn_train.bounds.coordinates import picks_input
from popqorn_train.bounds.maximum import Maximum
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.peak import Peak
from popqorn_train.bounds.total import Total
from popqorn_train.errors import MixedSamplesError
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.packing import data_of
from popqorn_train.operations.powers import sum_along
from popqorn_train.operations.registry import OPERATIONS, operation, unsupported
from popqorn_train.operations.shapes import affine_of, lifted, moved, ndim, without_infinity
from popqorn_train.operations.summed_products import summed_product
from popqorn_train.relaxations.curves import CURVES
from popqorn_train.tracing.packed import Packed
from popqorn_train.tracing.steps import Step, called_name


@operation("sum", "mean")
def _reduce(
    lifter: Lifter,
    step: Step,
    x: Node,
    dim: Any = None,
    keepdim: bool = False,
    *,
    axis: Any = None,
    dtype: torch.dtype | None = None,
) -> Node:
    """Sums keep the precision of the bounds, whatever the dtype that forward asks for."""
    if not step.floating:
        raise unsupported(step, "a sum in whole numbers")
    dims = axes_of(step, x, dim if axis is None else axis)
    own = [dim - (dim > x.batch_axis) for dim in dims]
    count = math.prod(x.shape[axis] for axis in own)
    factor = 1 / count if called_name(step.target) == "mean" else 1.0
    if factor == 1 and len(dims) == 1 and (powers := sum_along(x, dims[0], keepdim=keepdim)):
        return powers
    pooled = summed_product(lifter, step, x, dims)
    if pooled is None:
        return Total(x, own, factor, keepdim=keepdim)
    return _as_reduced(pooled, x, dims, factor, keepdim=keepdim)


def axes_of(step: Step, x: Node, given: Any) -> list[int]:
    """The axes of the user's layout that an operation names; None for all.

    Raises:
        MixedSamplesError: the batch is among them.
    """
    dims = [given] if isinstance(given, int) else [*(given or range(ndim(x)))]
    dims = [dim % ndim(x) for dim in dims]
    if x.batch_axis in dims:
        name = called_name(step.target)
        raise MixedSamplesError(
            f"node {step.name!r} is a {name} over the batch, which mixes samples ({step.source}). "
            "Name other axes."
        )
    return dims


def _as_reduced(
    pooled: Node, x: Node, dims: Sequence[int], factor: float, *, keepdim: bool
) -> Node:
    """A sum times a factor, with the axes that were summed over if they are kept."""
    if factor == 1 and not keepdim:
        return pooled
    places = sorted(dims) if keepdim else []

    def scaled(x: Tensor) -> Tensor:
        for place in places:
            x = x.unsqueeze(place)
        return x * factor

    own = [dim - (dim > x.batch_axis) for dim in places]
    shape = [1 if at in own else size for at, size in enumerate(x.shape)]
    axis = x.batch_axis if keepdim else pooled.batch_axis
    return affine_of(
        scaled, (pooled,), {}, shape=tuple(shape) if keepdim else pooled.shape, axis=axis
    )


@operation("where")
def _where(lifter: Lifter, step: Step, condition: Any, one: Any, other: Any) -> Node:
    if step.kind == "method":  # ``one.where(condition, other)``
        condition, one = one, condition
    if isinstance(condition, Node):
        raise unsupported(step, "a choice that depends on the perturbed tensor")
    return lifted(
        lifter, step, torch.where, (condition, *without_infinity((one, other), lifter)), {}
    )


@operation("masked_fill")
def _masked_fill(lifter: Lifter, step: Step, x: Node, mask: Any, value: Any) -> Node:
    """A mask that does not move."""
    value = without_infinity(value.item() if isinstance(value, Tensor) else value, lifter)
    return lifted(lifter, step, torch.masked_fill, (x, mask, value), {})


@operation("max", "amax", "min", "amin")
def _extreme(lifter: Lifter, step: Step, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Over one axis; ``max`` gives a pair, of which the indices have no bound, or takes two."""
    name = called_name(step.target)
    if isinstance(dim, Node | Tensor):
        twin = "maximum" if name == "max" else "minimum"
        return OPERATIONS[twin](lifter, step, x, dim)
    if isinstance(dim, tuple | list) and len(dim) == 1:
        dim = dim[0]
    if not isinstance(dim, int):
        raise unsupported(step, f"a {name} over several axes", "Name one axis.")
    least = name.endswith("min")
    found = largest_over(step, Negative(x) if least else x, dim % ndim(x), keepdim=keepdim)
    found = Negative(found) if least else found
    return found if name.startswith("a") else _Values(found)


class _Values(NamedTuple):
    """What ``max`` and ``min`` return, without the indices, which have no bound."""

    values: Node


@operation("getattr")
def _field(lifter: Lifter, step: Step, x: Any, name: str) -> Any:
    if isinstance(x, _Values) and name == "values":
        return x.values
    if isinstance(x, Packed):
        return data_of(x) if name == "data" else getattr(x, name)
    if name == "data":
        return x
    if name in ("mT", "T") and step.floating:
        return moved(lifter, step, x, lambda x: getattr(x, name))
    raise unsupported(step, f"the field {name!r}")


def largest_over(step: Step, x: Node, dim: int, *, keepdim: bool) -> Node:
    """Greatest entry along an axis of the user's layout."""
    if dim == x.batch_axis:
        raise unsupported(step, "a maximum over the batch")
    return reduced_over(x, [dim], lambda rows: _peak(x) or Maximum(rows), keepdim=keepdim)


def reduced_over(
    x: Node, dims: Sequence[int], reduce: Callable[[Node], Node], *, keepdim: bool
) -> Node:
    """What a function makes of the entries along some axes of the user's layout.

    Args:
        x: node.
        dims: not the batch.
        reduce: from the entries as frames ``(T, F)`` to ``(F,)``.
        keepdim: whether the axes stay, of size 1.
    """
    own = [dim - (dim > x.batch_axis) for dim in dims]
    kept = [1 if axis in own else size for axis, size in enumerate(x.shape)]
    rest = [size for axis, size in enumerate(x.shape) if axis not in own]
    shape = tuple(kept if keepdim else rest)
    axis = x.batch_axis - (0 if keepdim else sum(dim < x.batch_axis for dim in dims))
    best = reduce(_rows(x, dims, own))
    if (shape, axis) == (best.shape, 0):
        return best

    def back(value: Tensor) -> Tensor:
        return value.reshape(len(value), *shape).movedim(0, axis)

    return affine_of(back, (best,), {}, shape=shape, axis=axis)


def _peak(x: Node) -> Peak | None:
    """The greatest absolute value of a wave."""
    if not isinstance(x, Activation) or x.curve != CURVES["abs"]() or len(x.shape) != 1:
        return None
    (wave,) = x.inputs
    return Peak(wave) if wave.batch_axis == 0 and picks_input(wave) else None


def _rows(x: Node, dims: Sequence[int], own: Sequence[int]) -> Node:
    """The entries along some axes as frames ``(T, F)``."""
    if x.batch_axis == 0 and list(dims) == [1] and len(x.shape) == 2:
        return x
    ends = x.batch_axis, *dims
    count = math.prod(x.shape[axis] for axis in own)
    size = math.prod(x.shape) // count

    def rows(value: Tensor) -> Tensor:
        return value.movedim(ends, (*range(len(ends)),)).reshape(-1, count, size)

    return affine_of(rows, (x,), {}, shape=(count, size), axis=0)
