"""How products of matrices, and other sums along an axis with constant weights, act on nodes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from popqorn_train.bounds.affine import Linear
from popqorn_train.bounds.contraction import Contraction
from popqorn_train.bounds.node import Node
from popqorn_train.operations.arithmetic import add, linear
from popqorn_train.operations.axis_labels import Labelled, labelled, with_leading
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.matrix_products import multiply, product_of
from popqorn_train.operations.registry import module, operation, unsupported
from popqorn_train.operations.shapes import affine_of, ndim
from popqorn_train.operations.softmax_moves import softmax_behind
from popqorn_train.operations.spectrum import Powers
from popqorn_train.tracing.steps import Step

_WAY_OUT = "Multiply two of them at a time."


def _contracted(step: Step, function: Callable[..., Tensor], operands: Sequence[Any]) -> Node:
    """A product of several tensors of which one moves."""
    if step.shape is None or step.batch_axis is None:
        raise unsupported(step, "a product across samples", "Keep the batch as an axis of its own.")
    (place,) = (at for at, operand in enumerate(operands) if isinstance(operand, Node))
    weights = [operand for operand in operands if not isinstance(operand, Node)]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return function(*weights[:place], x, *weights[place:])

    shape = (*step.shape[: step.batch_axis], *step.shape[step.batch_axis + 1 :])
    return Contraction(run, operands[place], weights, shape=shape, batch_axis=step.batch_axis)


def _ndim(x: Any) -> int:
    return ndim(x) if isinstance(x, Node) else x.ndim


def _needs_labels(operands: Sequence[Any]) -> bool:
    """Whether several factors move, or one that is a softmax."""
    moving = [operand for operand in operands if isinstance(operand, Node)]
    return len(moving) > 1 or softmax_behind(moving[0]) is not None


@operation("matmul", "mm", "bmm")
def _matmul(lifter: Lifter, step: Step, x: Any, y: Any) -> Node:
    """``x @ weight`` is a linear layer."""
    if min(map(_ndim, (x, y))) > 1 and _needs_labels((x, y)):
        (x, y), lead = with_leading(lifter, (x, y), ("nt", "tm"))
        return multiply(lifter, step, x, y, lead + "nm")
    if isinstance(x, Node) and isinstance(y, Tensor) and y.ndim == 2:
        return linear(lifter, step, x, y.T)
    if isinstance(y, Powers) and isinstance(x, Tensor) and x.ndim == 2:
        sums = y.across(x)
        if sums is not None:
            return sums
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
    filtered = _filtered_powers(equation, given)
    if filtered is not None:
        return filtered
    if _needs_labels(given) and len(given) > 1:
        return _labelled_einsum(lifter, step, equation, given)

    def run(*values: Tensor) -> Tensor:
        return torch.einsum(equation, *values)

    return _contracted(step, run, given)


def _filtered_powers(equation: str, operands: Sequence[Any]) -> Node | None:
    """Filters ``(K, F)`` or ``(F, K)`` of the powers of a spectrum, as one function each."""
    given, _, out = equation.replace(" ", "").partition("->")
    parts = [Labelled(*pair) for pair in zip(operands, given.split(","), strict=True)]
    powers = [part for part in parts if isinstance(part.value, Powers)]
    filters = [part for part in parts if isinstance(part.value, Tensor) and part.value.ndim == 2]
    if len(parts) != 2 or len(powers) != 1 or len(filters) != 1 or not out.isalpha():
        return None
    (x,), (weight,) = powers, filters
    summed = {*x.labels} & {*weight.labels} - {*out}
    sums = {*x.labels} ^ {*weight.labels} == {*out} and len(summed) == 1
    if not sums or len({*weight.labels}) < 2 or len({*x.labels}) != len(x.labels):
        return None
    (f,), order = summed, x.labels
    k = weight.labels.replace(f, "")
    last = order.replace(f, "") + f
    if order.index(f) == x.value.batch_axis:
        return None
    found = x.value.permuted([order.index(label) for label in last]).filtered(
        weight.value if weight.labels == k + f else weight.value.T
    )
    return None if found is None else _permuted(found, last[:-1] + k, out)


def _permuted(x: Node, labels: str, out: str) -> Node:
    """A node in another order of its axes."""
    if labels == out:
        return x
    order, batch = [labels.index(label) for label in out], labels[x.batch_axis]
    sizes = dict(zip(labels.replace(batch, ""), x.shape, strict=True))
    shape = tuple(sizes[label] for label in out if label != batch)
    return affine_of(torch.permute, (x, order), {}, shape=shape, axis=out.index(batch))


def _labelled_einsum(lifter: Lifter, step: Step, equation: str, operands: Sequence[Any]) -> Node:
    """An einsum of which two factors move; all others are multiplied into the first."""
    parts, out = labelled(step, equation, operands)
    moving = [part for part in parts if isinstance(part.value, Node)]
    still = [part for part in parts if not isinstance(part.value, Node)]
    if len(moving) > 2:
        raise unsupported(step, f"a product of {len(moving)} perturbed tensors", _WAY_OUT)
    first, second = (moving[0], moving[1] if len(moving) > 1 else still.pop())
    for part in still:
        union = first.labels + "".join(x for x in part.labels if x not in first.labels)
        first = Labelled(multiply(lifter, step, first, part, union), union)
    return multiply(lifter, step, first, second, out)


@operation("bilinear")
def _bilinear(lifter: Lifter, step: Step, x: Any, y: Any, weight: Any, bias: Any = None) -> Any:
    """``sum_ij x_i weight_oij y_j + bias_o``: a linear layer of one, times the other."""
    (x, y), lead = with_leading(lifter, (x, y), ("i", "j"))
    rows = product_of(lifter, step, x, Labelled(weight, "oij"), lead + "oj")
    found = product_of(lifter, step, Labelled(rows, lead + "oj"), y, lead + "o")
    return found if bias is None else add(lifter, step, found, bias)


@module(nn.Bilinear)
def _bilinear_module(lifter: Lifter, step: Step, layer: nn.Bilinear, x: Any, y: Any) -> Any:
    weight, bias = (lifter.weight(step.target, name) for name in ("weight", "bias"))
    return _bilinear(lifter, step, x, y, weight, bias)


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
