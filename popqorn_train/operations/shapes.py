"""How operations that move, pick, split or join entries act on nodes."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from popqorn_train.bounds.concatenation import Concat, frame, frames
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.single_reads import Affine
from popqorn_train.bounds.slices import split
from popqorn_train.nested import map_nested
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.registry import module, operation, unsupported
from popqorn_train.operations.spectrum import Places, Powers, is_magnitude, magnitude, placed
from popqorn_train.tracing.steps import MOVES, REPEATS, Step, called_name


def lifted(
    lifter: Lifter,
    step: Step,
    function: Callable[..., Tensor],
    args: Any,
    kwargs: Any,
) -> Node:
    """An affine node that applies ``function`` with the nodes among its arguments replaced.

    Every entry of the result may read a single entry of these nodes; else the node is refused.
    """
    if step.shape is None or step.batch_axis is None:
        raise unsupported(
            step,
            "an operation that mixes samples or merges the batch with another axis",
            "Keep the batch as an axis of its own.",
        )
    shape = (*step.shape[: step.batch_axis], *step.shape[step.batch_axis + 1 :])
    return affine_of(function, args, kwargs, shape=shape, axis=step.batch_axis)


def affine_of(
    function: Callable[..., Tensor],
    args: Any,
    kwargs: Any,
    *,
    shape: tuple[int, ...],
    axis: int,
) -> Node:
    """The same for a result of the given shape without the batch, which lies on ``axis``."""
    nodes: list[Node] = []
    map_nested((args, kwargs), Node, nodes.append)

    def run(*values: Tensor) -> Tensor:
        queue = iter(values)
        args_now, kwargs_now = map_nested((args, kwargs), Node, lambda _: next(queue))
        return function(*args_now, **kwargs_now)

    return Affine(run, nodes, shape, axis)


def without_infinity(values: Any, lifter: Lifter) -> Any:
    """Constants with numbers beyond all others in the place of infinity.

    A maximum over them is the same, and 0 times such a number is 0: what is not the greatest has
    no part in a bound.
    """
    far = torch.finfo(lifter.dtype).max / 4

    def near(value: Any) -> Any:
        if isinstance(value, float):
            return math.copysign(far, value) if math.isinf(value) else value
        if not value.is_floating_point() or not value.isinf().any():
            return value
        return torch.where(value.isinf(), value.sign() * far, value)

    return map_nested(values, (float, Tensor), near)


def function_of(step: Step) -> Callable[..., Tensor]:
    """What a step calls, as a function."""
    if isinstance(step.target, str):
        return lambda x, *args, **kwargs: getattr(x, str(step.target))(*args, **kwargs)
    return step.target


@operation(*MOVES, *REPEATS)
def _move(lifter: Lifter, step: Step, /, *args: Any, **kwargs: Any) -> Any:
    """Move coordinates; picking a known frame of a sequence picks the node."""
    whole, *rest = args
    if placed(whole) is not None:
        return moved(lifter, step, whole, lambda x: function_of(step)(x, *rest, **kwargs))
    picked = _pick(step, args)
    if picked is not None:
        return picked
    return lifted(lifter, step, function_of(step), args, kwargs)


def moved(lifter: Lifter, step: Step, x: Node, move: Callable[[Tensor], Tensor]) -> Node:
    """A node whose entries a step moves."""
    known = placed(x)
    if known is None:
        return lifted(lifter, step, move, (x,), {})
    found = type(known)(known.transform, placed_anew(lifter, step, known.places, move))
    return magnitude(found) if isinstance(found, Powers) and is_magnitude(x) else found


def placed_anew(
    lifter: Lifter, step: Step, places: Places, move: Callable[[Tensor], Tensor]
) -> Places:
    """Where the entries of a tensor are, behind a step that moves them."""
    axis = step.batch_axis
    found = None if axis is None else places.moved(move, axis, lifter.batch)
    if found is None:
        raise unsupported(
            step,
            "an operation that mixes samples or merges the batch with another axis",
            "Keep the batch as an axis of its own.",
        )
    return found


@operation("unfold")
def _unfold(lifter: Lifter, at: Step, /, x: Node, dimension: int, size: int, step: int) -> Node:
    """Windows, by index: the backward rule of torch's own function knows no batches."""
    dim = dimension % ndim(x)
    count = (x.shape[dim - (dim > x.batch_axis)] - size) // step + 1 if dim != x.batch_axis else 0
    places = torch.arange(count)[:, None] * step + torch.arange(size)

    def windows(x: Tensor) -> Tensor:
        return x.movedim(dim, -1)[..., places].movedim(-2, dim)

    return lifted(lifter, at, windows, (x,), {})


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


def ndim(x: Node) -> int:
    """Number of axes in the user's layout."""
    return len(x.shape) + 1


def pieces(x: Node, places: list[tuple[int, int]], dim: int) -> tuple[Node, ...]:
    """Neighbouring pieces ``(start, size)`` along an axis of the user's layout."""
    own = dim - (dim > x.batch_axis)
    sizes = [size for _, size in places]
    if (len(x.shape), x.batch_axis) == (1, 0) and sum(sizes) == x.shape[0]:
        return tuple(split(x, *sizes))
    return tuple(
        affine_of(
            torch.narrow,
            (x, dim, start, size),
            {},
            shape=(*x.shape[:own], size, *x.shape[own + 1 :]),
            axis=x.batch_axis,
        )
        for start, size in places
    )


@operation("unbind")
def _unbind(lifter: Lifter, step: Step, x: Node, dim: int = 0) -> Any:
    dim = dim % ndim(x)
    if dim == x.batch_axis:
        raise unsupported(step, "an unbind of the batch")
    if _is_sequence(x) and dim == (1 if x.batch_axis == 0 else 0):
        return tuple(frames(x))
    axis, own = x.batch_axis - (dim < x.batch_axis), dim - (dim > x.batch_axis)
    shape = (*x.shape[:own], *x.shape[own + 1 :])
    return tuple(
        affine_of(torch.select, (x, dim, index), {}, shape=shape, axis=axis)
        for index in range(x.shape[own])
    )


@operation("split", "chunk")
def _split(
    lifter: Lifter, step: Step, x: Node, sizes: Any = None, dim: int = 0, **more: Any
) -> Any:
    sizes = more.get("split_size_or_sections", more.get("split_size", more.get("chunks", sizes)))
    dim = dim % ndim(x)
    if dim == x.batch_axis:
        raise unsupported(step, "a split of the batch")
    length = x.shape[dim - (dim > x.batch_axis)]
    places = torch.arange(length)
    if called_name(step.target) == "chunk":
        parts = places.chunk(sizes)
    else:
        parts = torch.split(places, sizes if isinstance(sizes, int) else list(sizes))
    return pieces(x, [(int(part[0]), len(part)) for part in parts], dim)


@operation("cat", "concat", "concatenate")
def _join(
    lifter: Lifter, step: Step, tensors: Any, dim: int = 0, *, axis: int | None = None
) -> Node:
    dim = dim if axis is None else axis
    if all(isinstance(part, Node) and ndim(part) > 1 for part in tensors):
        first = tensors[0]
        last, axes = ndim(first) - 1, {part.batch_axis for part in tensors}
        if dim % (last + 1) == last and len(axes) == 1 and last not in axes:
            return Concat(tensors)
    tensors = without_infinity(tensors, lifter)
    return lifted(lifter, step, torch.cat, (tensors, dim), {})


@operation("hstack", "column_stack")
def _hstack(lifter: Lifter, step: Step, tensors: Any) -> Node:
    if len(step.shape or ()) < 2:
        raise unsupported(step, "a stack of single numbers")
    return _join(lifter, step, tensors, 1)


@operation("stack")
def _stack(lifter: Lifter, step: Step, *args: Any, **kwargs: Any) -> Node:
    return lifted(lifter, step, torch.stack, without_infinity(args, lifter), kwargs)


def broadcast(lifter: Lifter, step: Step, x: Node) -> Node:
    """A node in the shape of the result of a step that broadcasts it."""
    shape = list(step.shape or ())
    if step.batch_axis is not None:
        shape[step.batch_axis] = lifter.batch
        own = (*shape[: step.batch_axis], *shape[step.batch_axis + 1 :])
        if (x.shape, x.batch_axis) == (own, step.batch_axis):
            return x
    return lifted(lifter, step, torch.broadcast_to, (x, shape), {})


@operation("expand_as")
def _expand_as(lifter: Lifter, step: Step, x: Any, like: Any) -> Any:
    """The other tensor gives its shape only."""
    shape, axis = list(step.shape or ()), step.batch_axis or 0
    shape[axis] = lifter.batch
    if not isinstance(x, Node):
        return x.expand(shape)
    return lifted(lifter, step, torch.Tensor.expand, (x, *shape), {})


@operation("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
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
    return lifted(lifter, step, torch.flatten, ends, {})


@module(nn.Unflatten)
def _unflatten_module(lifter: Lifter, step: Step, layer: nn.Unflatten, x: Node) -> Node:
    sizes = (x, layer.dim, layer.unflattened_size)
    return lifted(lifter, step, torch.unflatten, sizes, {})
