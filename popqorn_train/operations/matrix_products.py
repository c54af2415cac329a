"""Products of two tensors, summed over the axes that they share and the result lacks.

Every axis has a label, as in ``torch.einsum``. Both are arranged as matrices

    x  (G, N, T)    G: labels of x, y and the result;    N: of x and the result
    y  (G, T, M)    T: of x and y alone;                 M: of y and the result

and where one of them is a softmax over T, the product is a mean of what the other one is.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from popqorn_train.bounds.constant import Constant
from popqorn_train.bounds.contraction import Contraction
from popqorn_train.bounds.matrix_product import MatrixProduct
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.softmax import Pooling
from popqorn_train.bounds.total import Total
from popqorn_train.operations.axis_labels import Groups, Labelled
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.registry import unsupported
from popqorn_train.operations.shapes import affine_of
from popqorn_train.operations.softmax_moves import scores_of
from popqorn_train.tracing.steps import Step

_MIXED = "Keep the batch as an axis of its own, of both factors and of the result."


def multiply(lifter: Lifter, step: Step, x: Labelled, y: Labelled, out: str) -> Node:
    """``einsum(x, y)`` of which one factor moves, or both; the result is in the user's layout."""
    batch = x.batch or y.batch
    moving = [part for part in (x, y) if isinstance(part.value, Node)]
    if batch not in out or any(part.batch != batch for part in moving):
        raise unsupported(step, "a product across samples", _MIXED)
    x, y = _summed(x, y.labels + out), _summed(y, x.labels + out)
    found = mean_of(lifter, step, (x, y), batch, out) or mean_of(lifter, step, (y, x), batch, out)
    if found is not None:
        return found
    if len(moving) == 2:
        groups = Groups.of(*_without(batch, x.labels, y.labels, out))
        one = _arranged(x, batch, (groups.both, groups.first, groups.inner))
        two = _arranged(y, batch, (groups.both, groups.inner, groups.second))
        return _restored(MatrixProduct(one, two), groups, batch, out, x.sizes() | y.sizes())
    return _contraction(x, y, batch, out)


def product_of(lifter: Lifter, step: Step, x: Labelled, y: Labelled, out: str) -> Any:
    """The same, of tensors too."""
    if isinstance(x.value, Node) or isinstance(y.value, Node):
        return multiply(lifter, step, x, y, out)
    return torch.einsum(f"{x.labels},{y.labels}->{out}", x.value, y.value)


def _without(batch: str, *labels: str) -> list[str]:
    return [part.replace(batch, "") for part in labels]


def _summed(part: Labelled, read: str) -> Labelled:
    """Without the axes that nothing else has."""
    left = "".join(label for label in part.labels if label in read)
    gone = [at for at, label in enumerate(part.labels) if label not in read]
    if not gone:
        return part
    if isinstance(part.value, Node):
        own = [at - (at > part.value.batch_axis) for at in gone]
        return Labelled(Total(part.value, own, 1.0, keepdim=False), left)
    return Labelled(part.value.sum(gone), left)


def mean_of(
    lifter: Lifter, step: Step, factors: tuple[Labelled, Labelled], batch: str, out: str
) -> Node | None:
    """The product where the first factor is a softmax over the axes that are summed over."""
    weights, values = factors
    if not isinstance(weights.value, Node):
        return None
    groups = Groups.of(*_without(batch, weights.labels, values.labels, out))
    axes = groups.both, groups.first, groups.inner
    scores = scores_of(
        lifter, step, weights.value, lambda: _arranged(weights, batch, axes), weights.labels + out
    )
    if scores is None:
        return None
    other = _arranged(values, batch, (groups.both, groups.inner, groups.second))
    sizes = weights.sizes() | values.sizes()
    return _restored(Pooling(scores, other), groups, batch, out, sizes)


def _arranged(part: Labelled, batch: str, axes: Sequence[str]) -> Node:
    """A node whose axes are each the labels of one group, with the batch first."""
    sizes = part.sizes()
    shape = tuple(math.prod(sizes[label] for label in group) for group in axes)
    order = [part.labels.index(label) for label in "".join([batch, *axes]) if label in part.labels]

    def arrange(x: Tensor) -> Tensor:
        x = x.permute(order)
        return x.reshape(len(x) if batch in part.labels else 1, *shape)

    if isinstance(part.value, Node):
        return affine_of(arrange, (part.value,), {}, shape=shape, axis=0)
    return Constant(arrange(part.value))


def _restored(node: Node, groups: Groups, batch: str, out: str, sizes: dict[str, int]) -> Node:
    """A product ``(G, N, M)`` in the user's layout."""
    labels = batch + groups.both + groups.first + groups.second
    lengths = [sizes[label] for label in labels[1:]]
    order = [labels.index(label) for label in out]

    def restore(x: Tensor) -> Tensor:
        return x.reshape(len(x), *lengths).permute(order)

    shape = tuple(sizes[label] for label in out if label != batch)
    return affine_of(restore, (node,), {}, shape=shape, axis=out.index(batch))


def _contraction(x: Labelled, y: Labelled, batch: str, out: str) -> Node:
    """The product with a tensor."""
    first = isinstance(x.value, Node)
    node, weight = (x, y) if first else (y, x)

    def run(value: Tensor, weight: Tensor) -> Tensor:
        return torch.einsum(f"{node.labels},{weight_labels}->{out}", value, weight)

    weight_labels, sizes = weight.labels, x.sizes() | y.sizes()
    shape = [sizes[label] for label in out if label != batch]
    axis = out.index(batch)
    return Contraction(run, node.value, [weight.value], shape=shape, batch_axis=axis)
