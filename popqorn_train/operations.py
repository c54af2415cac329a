"""How operations and modules act on nodes: the tables that lift.py looks things up in.

Shape operations are told apart by whether every output reads a single coordinate ("exact").
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from popqorn_train.activation import Activation
from popqorn_train.affine import Affine, Linear, Negative, Sum, frame, frames
from popqorn_train.lift import Lifter, has_node, module, operation, unsupported
from popqorn_train.node import Node
from popqorn_train.steps import IDENTITIES, MOVES, Step, walk
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
    nodes: list[Node] = []
    walk((args, kwargs), Node, nodes.append)

    def run(*values: Tensor) -> Tensor:
        queue = iter(values)
        args_now, kwargs_now = walk((args, kwargs), Node, lambda _: next(queue))
        return function(*args_now, **kwargs_now)

    shape = (*step.shape[: step.batch_axis], *step.shape[step.batch_axis + 1 :])
    return Affine(run, nodes, shape, step.batch_axis, exact=exact)


def _function_of(step: Step) -> Callable[..., Tensor]:
    if isinstance(step.target, str):
        return lambda x, *args, **kwargs: getattr(x, str(step.target))(*args, **kwargs)
    return step.target


@operation(*MOVES)
def _move(lifter: Lifter, step: Step, *args: Any, **kwargs: Any) -> Any:
    """Move coordinates; picking a known frame of a sequence picks the node."""
    picked = _pick(step, args)
    if picked is not None:
        return picked
    return lifted(lifter, step, _function_of(step), args, kwargs, exact=True)


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
    if len(position) <= time_axis or any(part != slice(None) for part in rest):
        return None
    t = position[time_axis]
    plain = isinstance(t, int) and not isinstance(t, bool)
    return frame(whole, t % whole.shape[0]) if plain else None


def _is_sequence(x: Any) -> bool:
    """Whether frames can be taken from a node: ``(B, T, F)`` or ``(T, B, F)``.

    Only these: the slope on a sequence may cover its first frames, which does not nest.
    """
    return isinstance(x, Node) and len(x.shape) == 2 and x.batch_axis < 2


@operation("unbind")
def _unbind(lifter: Lifter, step: Step, x: Node, dim: int = 0) -> Any:
    if not _is_sequence(x) or dim != (1 if x.batch_axis == 0 else 0):
        raise unsupported(step, "an unbind of an axis that is not time")
    return tuple(frames(x))


@operation("sum", "mean")
def _reduce(lifter: Lifter, step: Step, *args: Any, **kwargs: Any) -> Node:
    return lifted(lifter, step, _function_of(step), args, kwargs, exact=False)


@operation("cat", "concat", "concatenate", "stack")
def _join(lifter: Lifter, step: Step, *args: Any, **kwargs: Any) -> Node:
    return lifted(lifter, step, step.target, args, kwargs, exact=True)


@operation("add")
def _add(lifter: Lifter, step: Step, x: Any, y: Any, **kwargs: Any) -> Node:
    if isinstance(x, Node) and isinstance(y, Node):
        if kwargs:
            raise unsupported(step, f"an addition with {sorted(kwargs)}")
        if (x.shape, x.batch_axis) == (y.shape, y.batch_axis):
            return Sum([x, y])
        return lifted(lifter, step, torch.add, (x, y), {}, exact=False)
    return lifted(lifter, step, _function_of(step), (x, y), kwargs, exact=True)


@operation("sub")
def _subtract(lifter: Lifter, step: Step, x: Any, y: Any, **kwargs: Any) -> Node:
    if isinstance(x, Node) and isinstance(y, Node):
        return _add(lifter, step, x, Negative(y), **kwargs)
    return lifted(lifter, step, torch.sub, (x, y), kwargs, exact=True)


@operation("mul", "div", "truediv", "rsub")
def _scale(lifter: Lifter, step: Step, x: Any, y: Any, **kwargs: Any) -> Node:
    both = isinstance(x, Node) and isinstance(y, Node)
    if both or ("div" in str(step.target) and isinstance(y, Node)):
        raise unsupported(step, "a product or quotient of two things that move")
    if kwargs:
        raise unsupported(step, f"a scaling with {sorted(kwargs)}")
    return lifted(lifter, step, _function_of(step), (x, y), kwargs, exact=True)


@operation("neg")
def _negate(lifter: Lifter, step: Step, x: Node) -> Node:
    return Negative(x)


@operation(*IDENTITIES)
def _same(lifter: Lifter, step: Step, x: Node, *args: Any, **kwargs: Any) -> Node:
    """Nothing in eval mode, and nothing to real numbers."""
    if not step.floating:
        raise unsupported(step, "a cast to whole numbers")
    return x


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


@operation("tanh", "sigmoid", "relu")
def _activate(lifter: Lifter, step: Step, x: Node, *args: Any, **kwargs: Any) -> Node:
    return Activation(called_name(step.target), x)


def _activation_module(name: str, lifter: Lifter, step: Step, layer: nn.Module, x: Node) -> Node:
    return Activation(name, x)


for _name, _kind in {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}.items():
    module(_kind)(partial(_activation_module, _name))


@module(nn.Dropout, nn.Identity)
def _identity_module(lifter: Lifter, step: Step, layer: nn.Module, x: Node) -> Node:
    return x


@module(nn.Flatten)
def _flatten_module(lifter: Lifter, step: Step, layer: nn.Flatten, x: Node) -> Node:
    ends = (x, layer.start_dim, layer.end_dim)
    return lifted(lifter, step, torch.flatten, ends, {}, exact=True)


@operation("linear")
def _linear(lifter: Lifter, step: Step, x: Node, weight: Any, bias: Any = None) -> Node:
    if has_node((weight, bias)):
        raise unsupported(step, "a linear map whose weight moves")
    if x.batch_axis > len(x.shape) - 1:
        raise unsupported(step, "a linear layer across samples", "Keep the features last.")
    return Linear(x, weight, bias)


@module(nn.Linear)
def _linear_module(lifter: Lifter, step: Step, layer: nn.Linear, x: Node) -> Node:
    weight, bias = (lifter.weight(step.target, name) for name in ("weight", "bias"))
    return _linear(lifter, step, x, weight, bias)
