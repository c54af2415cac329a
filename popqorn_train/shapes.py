"""How operations that move, pick, join, mask or add up entries act on nodes.

They are told apart by whether every output reads a single coordinate ("exact").
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.affine import Affine, Join, frame, frames
from popqorn_train.largest import Largest
from popqorn_train.lift import Lifter, module, operation, unsupported
from popqorn_train.node import Node
from popqorn_train.steps import MOVES, REPEATS, Step, walk
from popqorn_train.tracer import called_name


def lifted(
    lifter: Lifter,
    step: Step,
    function: Callable[..., Tensor],
    args: Any,
    kwargs: Any,
    *,
    exact: bool,
) -> Node:
    """An affine node that applies ``function`` with the nodes among its arguments replaced."""
    if step.shape is None or step.batch_axis is None:
        raise unsupported(
            step,
            "an operation that mixes samples or merges the batch with another axis",
            "Keep the batch as an axis of its own.",
        )
    shape = (*step.shape[: step.batch_axis], *step.shape[step.batch_axis + 1 :])
    return affine_of(function, args, kwargs, shape=shape, axis=step.batch_axis, exact=exact)


def affine_of(
    function: Callable[..., Tensor],
    args: Any,
    kwargs: Any,
    *,
    shape: tuple[int, ...],
    axis: int,
    exact: bool,
) -> Node:
    """The same for a result of the given shape without the batch, which lies on ``axis``."""
    nodes: list[Node] = []
    walk((args, kwargs), Node, nodes.append)

    def run(*values: Tensor) -> Tensor:
        queue = iter(values)
        args_now, kwargs_now = walk((args, kwargs), Node, lambda _: next(queue))
        return function(*args_now, **kwargs_now)

    return Affine(run, nodes, shape, axis, exact=exact)


def function_of(step: Step) -> Callable[..., Tensor]:
    """What a step calls, as a function."""
    if isinstance(step.target, str):
        return lambda x, *args, **kwargs: getattr(x, str(step.target))(*args, **kwargs)
    return step.target


@operation(*MOVES, *REPEATS)
def _move(lifter: Lifter, step: Step, *args: Any, **kwargs: Any) -> Any:
    """Move coordinates; picking a known frame of a sequence picks the node."""
    picked = _pick(step, args)
    if picked is not None:
        return picked
    return lifted(lifter, step, function_of(step), args, kwargs, exact=True)


def _pick(step: Step, args: Any) -> Any:
    """An item of a tuple, or a frame of a node, if that is what ``x[index]`` asks for."""
    whole, *index = args
    if isinstance(whole, tuple | list):
        return whole[index[0]]
    if called_name(step.target) != "getitem" or not _is_sequence(whole):
        return None
    position = index[0] if isinstance(index[0], tuple) else (index[0],)
    time_axis = 1 if whole.batch_axis == 0 else 0
    rest = [part for axis, part in enumerate(position) if axis != time_axis]
    if len(position) <= time_axis or any(not _is_all(part) for part in rest):
        return None
    t = position[time_axis]
    plain = isinstance(t, int) and not isinstance(t, bool)
    return frame(whole, t % whole.shape[0]) if plain else None


def _is_all(part: Any) -> bool:
    return isinstance(part, slice) and part == slice(None)


def _is_sequence(x: Any) -> bool:
    """Whether frames can be taken from a node: ``(B, T, F)`` or ``(T, B, F)``.

    Only these: the slope on a sequence may cover its first frames, which does not nest.
    """
    return isinstance(x, Node) and len(x.shape) == 2 and x.batch_axis < 2


def _ndim(x: Node) -> int:
    return len(x.shape) + 1


def _pieces(x: Node, pieces: list[tuple[int, int]], dim: int) -> tuple[Node, ...]:
    """Neighbouring pieces ``(start, size)`` along an axis of the user's layout."""
    own = dim - (dim > x.batch_axis)
    return tuple(
        affine_of(
            torch.narrow,
            (x, dim, start, size),
            {},
            shape=(*x.shape[:own], size, *x.shape[own + 1 :]),
            axis=x.batch_axis,
            exact=True,
        )
        for start, size in pieces
    )


@operation("unbind")
def _unbind(lifter: Lifter, step: Step, x: Node, dim: int = 0) -> Any:
    dim = dim % _ndim(x)
    if dim == x.batch_axis:
        raise unsupported(step, "an unbind of the batch")
    if _is_sequence(x) and dim == (1 if x.batch_axis == 0 else 0):
        return tuple(frames(x))
    axis, own = x.batch_axis - (dim < x.batch_axis), dim - (dim > x.batch_axis)
    shape = (*x.shape[:own], *x.shape[own + 1 :])
    return tuple(
        affine_of(torch.select, (x, dim, index), {}, shape=shape, axis=axis, exact=True)
        for index in range(x.shape[own])
    )


@operation("split", "chunk")
def _split(
    lifter: Lifter, step: Step, x: Node, sizes: Any = None, dim: int = 0, **more: Any
) -> Any:
    sizes = more.get("split_size_or_sections", more.get("split_size", more.get("chunks", sizes)))
    dim = dim % _ndim(x)
    if dim == x.batch_axis:
        raise unsupported(step, "a split of the batch")
    length = x.shape[dim - (dim > x.batch_axis)]
    places = torch.arange(length)
    if called_name(step.target) == "chunk":
        parts = places.chunk(sizes)
    else:
        parts = torch.split(places, sizes if isinstance(sizes, int) else list(sizes))
    return _pieces(x, [(int(part[0]), len(part)) for part in parts], dim)


@operation("sum", "mean")
def _reduce(lifter: Lifter, step: Step, *args: Any, **kwargs: Any) -> Node:
    return lifted(lifter, step, function_of(step), args, kwargs, exact=False)


@operation("cat", "concat", "concatenate")
def _join(
    lifter: Lifter, step: Step, tensors: Any, dim: int = 0, *, axis: int | None = None
) -> Node:
    dim = dim if axis is None else axis
    if all(isinstance(part, Node) and _ndim(part) > 1 for part in tensors):
        first = tensors[0]
        last, axes = _ndim(first) - 1, {part.batch_axis for part in tensors}
        if dim % (last + 1) == last and len(axes) == 1 and last not in axes:
            return Join(tensors)
    return lifted(lifter, step, torch.cat, (tensors, dim), {}, exact=True)


@operation("hstack", "column_stack")
def _hstack(lifter: Lifter, step: Step, tensors: Any) -> Node:
    if len(step.shape or ()) < 2:
        raise unsupported(step, "a stack of single numbers")
    return _join(lifter, step, tensors, 1)


@operation("stack")
def _stack(lifter: Lifter, step: Step, *args: Any, **kwargs: Any) -> Node:
    return lifted(lifter, step, torch.stack, args, kwargs, exact=True)


@operation("where")
def _where(lifter: Lifter, step: Step, condition: Any, one: Any, other: Any) -> Node:
    if isinstance(condition, Node):
        raise unsupported(step, "a choice that depends on what moves")
    return lifted(lifter, step, torch.where, (condition, one, other), {}, exact=True)


@operation("masked_fill")
def _masked_fill(lifter: Lifter, step: Step, x: Node, mask: Any, value: Any) -> Node:
    """A mask that does not move; -inf becomes a number below all others, which a maximum needs."""
    if isinstance(value, Tensor):
        value = value.item()
    if value == -math.inf:
        value = torch.finfo(lifter.dtype).min / 4
    return lifted(lifter, step, torch.masked_fill, (x, mask, value), {}, exact=True)


@operation("max", "amax")
def _max(lifter: Lifter, step: Step, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Maximum over one axis; ``max`` gives a pair, of which the indices have no bound."""
    if isinstance(dim, Node):
        raise unsupported(step, "a maximum of two tensors", "Stack them and take max(0).")
    if isinstance(dim, tuple | list) and len(dim) == 1:
        dim = dim[0]
    if not isinstance(dim, int):
        raise unsupported(step, "a maximum over several axes", "Name one axis.")
    found = largest_over(lifter, step, x, dim % _ndim(x), keepdim=keepdim)
    return _Values(found) if called_name(step.target) == "max" else found


class _Values(NamedTuple):
    """What ``max`` returns, without the indices, which have no bound."""

    values: Node


@operation("getattr")
def _field(lifter: Lifter, step: Step, x: Any, name: str) -> Any:
    if isinstance(x, _Values) and name == "values":
        return x.values
    if name == "data":
        return x
    raise unsupported(step, f"the field {name!r}")


def largest_over(lifter: Lifter, step: Step, x: Node, dim: int, *, keepdim: bool) -> Node:
    """Greatest entry along an axis of the user's layout."""
    if dim == x.batch_axis:
        raise unsupported(step, "a maximum over the batch")
    own = dim - (dim > x.batch_axis)
    rest = (*x.shape[:own], *x.shape[own + 1 :])
    rows = affine_of(
        lambda value: value.movedim((x.batch_axis, dim), (0, 1)).flatten(2),
        (x,),
        {},
        shape=(x.shape[own], math.prod(rest)),
        axis=0,
        exact=True,
    )
    if x.batch_axis == 0 and dim == 1 and len(rest) == 1:
        rows = x
    shape = (*rest[:own], 1, *rest[own:]) if keepdim else rest
    axis = x.batch_axis - (dim < x.batch_axis and not keepdim)
    best = Largest(rows)
    if (shape, axis) == (best.shape, 0):
        return best

    def back(value: Tensor) -> Tensor:
        return value.reshape(len(value), *shape).movedim(0, axis)

    return affine_of(back, (best,), {}, shape=shape, axis=axis, exact=True)


@operation("expand_as")
def _expand_as(lifter: Lifter, step: Step, x: Any, like: Any) -> Any:
    """The other tensor gives its shape only."""
    shape, axis = list(step.shape or ()), step.batch_axis or 0
    shape[axis] = lifter.batch
    if not isinstance(x, Node):
        return x.expand(shape)
    return lifted(lifter, step, torch.Tensor.expand, (x, *shape), {}, exact=True)


@operation("new_zeros", "new_ones", "zeros_like", "ones_like")
def _constant(lifter: Lifter, step: Step, x: Node, *args: Any, **kwargs: Any) -> Tensor:
    """A constant that takes only its shape from what moves."""
    shape = [*x.shape[: x.batch_axis], lifter.batch, *x.shape[x.batch_axis :]]
    like = torch.zeros(shape, dtype=lifter.dtype, device=lifter.device)
    name = called_name(step.target)
    maker = getattr(like if name.startswith("new") else torch, name)
    made = maker(*args, **kwargs) if name.startswith("new") else maker(like, *args, **kwargs)
    return lifter.cast(made)


@module(nn.Flatten)
def _flatten_module(lifter: Lifter, step: Step, layer: nn.Flatten, x: Node) -> Node:
    ends = (x, layer.start_dim, layer.end_dim)
    return lifted(lifter, step, torch.flatten, ends, {}, exact=True)


@module(nn.Unflatten)
def _unflatten_module(lifter: Lifter, step: Step, layer: nn.Unflatten, x: Node) -> Node:
    sizes = (x, layer.dim, layer.unflattened_size)
    return lifted(lifter, step, torch.unflatten, sizes, {}, exact=True)
