"""How softmax, and attention as one operation, act on nodes; the layer is in multihead.py."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.bounds.node import Node
from popqorn_train.bounds.softmax import Softmax
from popqorn_train.operations.axis_labels import Labelled, with_leading
from popqorn_train.operations.lift import Lifter, has_node
from popqorn_train.operations.matrix_products import product_of
from popqorn_train.operations.registry import module, operation, unsupported
from popqorn_train.operations.shapes import affine_of, ndim, without_infinity
from popqorn_train.tracing.steps import Step


@operation("softmax")
def _softmax(
    lifter: Lifter,
    step: Step,
    x: Node,
    dim: int | None = None,
    *_: Any,
    dtype: torch.dtype | None = None,
    **__: Any,
) -> Node:
    """Along an axis; casts keep the precision of the bounds."""
    if dim is None:
        raise unsupported(step, "a softmax without an axis", "Name it: softmax(x, dim=1).")
    return softmax(step, x, dim)


@module(nn.Softmax)
def _softmax_module(lifter: Lifter, step: Step, layer: nn.Softmax, x: Node) -> Node:
    return _softmax(lifter, step, x, axis_of_layer(step, layer, x))


def axis_of_layer(step: Step, layer: nn.Softmax | nn.LogSoftmax, x: Node) -> int | None:
    """The axis of a layer in the user's layout."""
    dim = layer.dim
    if dim is not None and step.merged:  # counted without the axis that batch and rows have apart
        dim = dim % (ndim(x) - 1) + 1
        if dim == 1:
            raise unsupported(step, "a softmax over batch and time as one axis")
    return dim


def softmax(step: Step, x: Node, dim: int) -> Node:
    """Softmax along an axis of the user's layout."""
    dim = dim % ndim(x)
    if dim == x.batch_axis:
        raise unsupported(step, "a softmax over the batch")
    own, ends = dim - (dim > x.batch_axis), (x.batch_axis, dim)
    length, rest = x.shape[own], (*x.shape[:own], *x.shape[own + 1 :])

    def rows(x: Tensor) -> Tensor:
        x = x.movedim(ends, (0, -1))
        return x.reshape(len(x), -1, length)

    def back(x: Tensor) -> Tensor:
        return x.reshape(len(x), *rest, length).movedim((0, -1), ends)

    shape = (math.prod(rest), length)
    found = Softmax(affine_of(rows, (x,), {}, shape=shape, axis=0))
    return affine_of(back, (found,), {}, shape=x.shape, axis=x.batch_axis)


@operation("scaled_dot_product_attention")
def _scaled_dot_product(
    lifter: Lifter,
    step: Step,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Node:
    """A mask of truth values says which keys take part; a query that sees none gets 0."""
    if has_node(attn_mask) or enable_gqa:
        what = "grouped queries" if enable_gqa else "a perturbed mask"
        raise unsupported(step, f"an attention with {what}")
    count, hidden = query.shape[-1], None
    if attn_mask is not None:
        hidden = bias_of(lifter, ~attn_mask if attn_mask.dtype == torch.bool else attn_mask)
    parts, lead = with_leading(lifter, (query, key, value), ("le", "se", "sm"))
    heads = Heads(parts[0], parts[1], parts[2], lead + "ls", lead + "lm")
    if is_causal:
        hidden = causal_bias(lifter, heads)
    scale = 1 / math.sqrt(count) if scale is None else scale
    return attend(lifter, step, heads, scale, Mask(hidden, 0.0))[0]


class Heads(NamedTuple):
    """Queries ``...le``, keys ``...se`` and values ``...sm``, and the labels of both results."""

    query: Labelled
    key: Labelled
    value: Labelled
    scores: str
    pooled: str


class Mask(NamedTuple):
    """What is added to the scores, and what a query gets that sees no key."""

    bias: Tensor | None
    unseen: float


def bias_of(lifter: Lifter, mask: Tensor) -> Tensor:
    """What a mask adds to the scores: minus infinity where it is true."""
    if mask.dtype != torch.bool:
        return mask
    zeros = torch.zeros(mask.shape, dtype=lifter.dtype, device=mask.device)
    return zeros.masked_fill(mask, -math.inf)


def causal_bias(lifter: Lifter, heads: Heads) -> Tensor:
    """The bias of a mask that hides later keys."""
    sizes = heads.query.sizes() | heads.key.sizes()
    ones = torch.ones(sizes["l"], sizes["s"], dtype=torch.bool, device=lifter.device)
    return bias_of(lifter, ones.triu(1))


def attend(lifter: Lifter, step: Step, heads: Heads, scale: float, mask: Mask) -> tuple[Any, Any]:
    """Pooled values and the shares of the keys, by the labels of the heads."""
    scores = _scaled(product_of(lifter, step, heads.query, heads.key, heads.scores), scale)
    if mask.bias is not None:
        bias = without_infinity(mask.bias, lifter)
        scores = scores + bias if isinstance(scores, Tensor) else _added(scores, bias)
    moves = isinstance(scores, Node)
    shares = softmax(step, scores, -1) if moves else scores.softmax(-1)
    found = product_of(lifter, step, Labelled(shares, heads.scores), heads.value, heads.pooled)
    return _unseen(lifter, step, found, heads, mask), shares


def _scaled(x: Any, factor: float) -> Any:
    if isinstance(x, Tensor):
        return x * factor
    return affine_of(torch.mul, (x, factor), {}, shape=x.shape, axis=x.batch_axis)


def _added(x: Node, bias: Tensor) -> Node:
    return affine_of(torch.add, (x, bias), {}, shape=x.shape, axis=x.batch_axis)


def _unseen(lifter: Lifter, step: Step, found: Node, heads: Heads, mask: Mask) -> Node:
    """Another value for queries that see no key."""
    if mask.bias is None:
        return found
    none = (mask.bias == -math.inf).all(-1)
    if not lifter.choose(step, "unseen queries", lambda: bool(none.any())):
        return found
    labels = heads.scores[-1 - none.ndim : -1]  # the axes of the mask, without that of the keys
    order = [heads.pooled.index(label) for label in labels]
    lengths = [1] * len(heads.pooled)
    for at, size in zip(order, none.shape, strict=True):
        lengths[at] = size
    there = none.permute(sorted(range(none.ndim), key=order.__getitem__)).reshape(lengths)

    def replaced(x: Tensor) -> Tensor:
        return x.masked_fill(there, mask.unseen)

    return affine_of(replaced, (found,), {}, shape=found.shape, axis=found.batch_axis)
