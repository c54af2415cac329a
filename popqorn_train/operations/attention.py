"""How softmax, and attention as one operation or layer, act on nodes."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from popqorn_train.bounds.node import Node
from popqorn_train.bounds.softmax import Softmax
from popqorn_train.bounds.total import Total
from popqorn_train.operations.arithmetic import linear
from popqorn_train.operations.lift import Lifter, has_node, module, operation, unsupported
from popqorn_train.operations.matrix_products import Labelled, product_of, with_leading
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
    dim = layer.dim
    if dim is not None and step.merged:  # counted without the axis that batch and rows have apart
        dim = dim % (ndim(x) - 1) + 1
        if dim == 1:
            raise unsupported(step, "a softmax over batch and time as one axis")
    return _softmax(lifter, step, x, dim)


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
        what = "grouped queries" if enable_gqa else "a mask that moves"
        raise unsupported(step, f"an attention with {what}")
    count, hidden = query.shape[-1], None
    if attn_mask is not None:
        hidden = _bias(lifter, ~attn_mask if attn_mask.dtype == torch.bool else attn_mask)
    parts, lead = with_leading(lifter, (query, key, value), ("le", "se", "sm"))
    heads = _Heads(*parts, lead + "ls", lead + "lm")
    if is_causal:
        hidden = _causal(lifter, heads)
    scale = 1 / math.sqrt(count) if scale is None else scale
    return _attend(lifter, step, heads, scale, _Mask(hidden, 0.0))[0]


class _Heads(NamedTuple):
    """Queries ``...le``, keys ``...se`` and values ``...sm``, and the labels of both results."""

    query: Labelled
    key: Labelled
    value: Labelled
    scores: str
    pooled: str


class _Mask(NamedTuple):
    """What is added to the scores, and what a query gets that sees no key."""

    bias: Tensor | None
    unseen: float


def _bias(lifter: Lifter, mask: Tensor) -> Tensor:
    """What a mask adds to the scores: minus infinity where it is true."""
    if mask.dtype != torch.bool:
        return mask
    zeros = torch.zeros(mask.shape, dtype=lifter.dtype, device=mask.device)
    return zeros.masked_fill(mask, -math.inf)


def _causal(lifter: Lifter, heads: _Heads) -> Tensor:
    """The bias of a mask that hides later keys."""
    sizes = heads.query.sizes() | heads.key.sizes()
    ones = torch.ones(sizes["l"], sizes["s"], dtype=torch.bool, device=lifter.device)
    return _bias(lifter, ones.triu(1))


def _attend(
    lifter: Lifter, step: Step, heads: _Heads, scale: float, mask: _Mask
) -> tuple[Any, Any]:
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


def _unseen(lifter: Lifter, step: Step, found: Node, heads: _Heads, mask: _Mask) -> Node:
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


@module(nn.MultiheadAttention)
def _multihead_attention(
    lifter: Lifter,
    step: Step,
    layer: nn.MultiheadAttention,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """Projections, heads, and the projection of all heads side by side."""
    if has_node((key_padding_mask, attn_mask)):
        raise unsupported(step, "an attention with a mask that moves")
    sides = "b{}" if layer.batch_first else "{}b"
    parts = [
        Labelled(part, sides.format(axis) + "h" + last)
        for part, axis, last in zip(
            _projected(lifter, step, layer, (query, key, value)), "lss", "eem", strict=True
        )
    ]
    heads = _Heads(*parts, "bhls", sides.format("l") + "hm")
    if is_causal and key_padding_mask is None and not need_weights:
        bias: Tensor | None = _causal(lifter, heads)
    else:
        bias = _merged_bias(lifter, layer, key_padding_mask, attn_mask)
    scale = 1 / math.sqrt(layer.head_dim)
    pooled, shares = _attend(lifter, step, heads, scale, _Mask(bias, math.nan))
    found = _out(lifter, step, pooled)
    if not need_weights:
        return found, None
    if average_attn_weights and isinstance(shares, Node):
        shares = Total(shares, [0], 1 / layer.num_heads, keepdim=False)
    elif average_attn_weights:
        shares = shares.mean(1)
    return found, shares


def _merged_bias(
    lifter: Lifter, layer: nn.MultiheadAttention, padding: Tensor | None, mask: Tensor | None
) -> Tensor | None:
    """What both masks add to the scores ``(B, heads, L, S)``; 0 for keys that the layer adds."""
    more = (layer.bias_k is not None) + layer.add_zero_attn
    found: Tensor | None = None
    if mask is not None:
        found = functional.pad(_bias(lifter, mask), (0, more))
        if found.ndim == 3:
            found = found.unflatten(0, (-1, layer.num_heads))
    if padding is not None:
        hidden = functional.pad(_bias(lifter, padding), (0, more))[:, None, None]
        found = hidden if found is None else found + hidden
    return found


def _projected(
    lifter: Lifter, step: Step, layer: nn.MultiheadAttention, given: Sequence[Any]
) -> list[Any]:
    """Queries, keys and values ``(..., heads, size)``, with the keys that the layer adds."""
    path, size = step.target, layer.embed_dim
    joined, bias = (lifter.weight(path, f"in_proj_{name}") for name in ("weight", "bias"))
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    weights = [lifter.weight(path, n) for n in names] if joined is None else joined.split(size)
    biases = [None] * 3 if bias is None else bias.split(size)
    added = [None, lifter.weight(path, "bias_k"), lifter.weight(path, "bias_v")]
    zeros = [False, layer.add_zero_attn, layer.add_zero_attn]
    found = []
    for x, weight, own, more, zero in zip(given, weights, biases, added, zeros, strict=True):
        x = linear(lifter, step, x, weight, own) if isinstance(x, Node) else x @ weight.T + own
        rows = [] if more is None else [more]
        rows += [torch.zeros(1, 1, size, dtype=lifter.dtype, device=lifter.device)] if zero else []
        found.append(_in_heads(lifter, layer, x, rows))
    return found


def _in_heads(
    lifter: Lifter, layer: nn.MultiheadAttention, x: Any, rows: Sequence[Tensor]
) -> Any:
    """Rows added behind all others, and features split into heads."""
    time = 1 if layer.batch_first else 0
    ends = (lifter.batch, 1) if layer.batch_first else (1, lifter.batch)

    def split(x: Tensor) -> Tensor:
        x = torch.cat([x, *[row.expand(*ends, -1) for row in rows]], time)
        return x.unflatten(-1, (layer.num_heads, layer.head_dim))

    if isinstance(x, Tensor):
        return split(x)
    length = x.shape[0] + len(rows)
    return affine_of(
        split, (x,), {}, shape=(length, layer.num_heads, layer.head_dim), axis=x.batch_axis
    )


def _out(lifter: Lifter, step: Step, pooled: Node) -> Node:
    """All heads side by side, projected."""
    weight, bias = (lifter.weight(f"{step.target}.out_proj", n) for n in ("weight", "bias"))
    length, *heads = pooled.shape
    shape = (length, math.prod(heads))
    side = affine_of(lambda x: x.flatten(-2), (pooled,), {}, shape=shape, axis=pooled.batch_axis)
    return linear(lifter, step, side, weight, bias)
