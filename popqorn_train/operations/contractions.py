"""How products of matrices, and other sums along an axis with constant weights, act on nodes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from popqorn_train.bounds.affine import Linear
from popqorn_train.bounds.contraction import Contraction
from popqorn_train.bounds.node import Node
from popqorn_train.operations.arithmetic import add, linear
from popqorn_train.operations.lift import Lifter, operation, unsupported
from popqorn_train.operations.shapes import affine_of, ndim
from popqorn_train.tracing.steps import Step

_WAY_OUT = "Only one factor may move: write the product of two that move entry by entry, x * y."


def _contracted(step: Step, function: Callable[..., Tensor], operands: Sequence[Any]) -> Node:
    """A product of several tensors of which one moves."""
    moving = [at for at, operand in enumerate(operands) if isinstance(operand, Node)]
    if len(moving) != 1:
        raise unsupported(step, "a product of matrices that both move", _WAY_OUT)
    if step.shape is None or step.batch_axis is None:
        raise unsupported(step, "a product across samples", "Keep the batch as an axis of its own.")
    (place,) = moving
    weights = [operand for operand in operands if not isinstance(operand, Node)]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return function(*weights[:place], x, *weights[place:])

    shape = (*step.shape[: step.batch_axis], *step.shape[step.batch_axis + 1 :])
    return Contraction(run, operands[place], weights, shape=shape, batch_axis=step.batch_axis)


@operation("matmul", "mm", "bmm")
def _matmul(lifter: Lifter, step: Step, x: Any, y: Any) -> Node:
    """``x @ weight`` is a linear layer."""
    if isinstance(x, Node) and isinstance(y, Tensor) and y.ndim == 2:
        return linear(lifter, step, x, y.T)
    return _contracted(step, torch.matmul, (x, y))


@operation("addmm", "baddbmm")
def _add_matmul(
    lifter: Lifter, step: Step, x: Any, one: Any, two: Any, *, beta: Any = 1, alpha: Any = 1
) -> Node:
    """``beta x + alpha one @ two``."""
    moves = isinstance(one, Node) or isinstance(two, Node)
    product = _matmul(lifter, step, one, two) if moves else one @ two
    return add(lifter, step, _times(x, beta), _times(product, alpha))


def _times(x: Any, factor: Any) -> Any:
    if not isinstance(x, Node) or factor == 1:
        return x if isinstance(x, Node) else x * factor
    return affine_of(torch.mul, (x, factor), {}, shape=x.shape, axis=x.batch_axis)


@operation("einsum")
def _einsum(lifter: Lifter, step: Step, equation: str, *operands: Any) -> Node:
    given = operands[0] if isinstance(operands[0], tuple | list) else operands

    def run(*values: Tensor) -> Tensor:
        return torch.einsum(equation, *values)

    return _contracted(step, run, given)


def along(lifter: Lifter, step: Step, x: Node, dim: int, weight: Tensor) -> Node:
    """A matrix times the entries along an axis of the user's layout."""
    dim, axis = dim % ndim(x), x.batch_axis
    if dim == axis:
        raise unsupported(step, "a sum along the batch")
    weight = weight.to(lifter.device, lifter.dtype)
    if dim == ndim(x) - 1:
        return Linear(x, weight)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return (x.movedim(dim, -1) @ weight.T).movedim(-1, dim)

    own = dim - (dim > axis)
    shape = (*x.shape[:own], len(weight), *x.shape[own + 1 :])
    return Contraction(run, x, [weight], shape=shape, batch_axis=axis)


def _length(x: Node, dim: int) -> int:
    """How many entries there are along an axis of the user's layout, which is not the batch."""
    dim = dim % ndim(x)
    return 1 if dim == x.batch_axis else x.shape[dim - (dim > x.batch_axis)]


@operation("cumsum")
def _cumulative(
    lifter: Lifter, step: Step, x: Node, dim: int, *, dtype: torch.dtype | None = None
) -> Node:
    if not step.floating:
        raise unsupported(step, "a sum in whole numbers")
    size = _length(x, dim)
    return along(lifter, step, x, dim, torch.ones(size, size).tril())


@operation("diff")
def _differences(
    lifter: Lifter,
    step: Step,
    x: Node,
    n: int = 1,
    dim: int = -1,
    prepend: Any = None,
    append: Any = None,
) -> Node:
    if prepend is not None or append is not None:
        raise unsupported(step, "a diff with prepend or append", "Join them with torch.cat first.")
    return along(lifter, step, x, dim, torch.eye(_length(x, dim)).diff(n, 0))
