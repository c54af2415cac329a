"""How ``nn.MultiheadAttention`` acts on nodes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from popqorn_train.bounds.node import Node
from popqorn_train.bounds.total import Total
from popqorn_train.operations.arithmetic import linear
from popqorn_train.operations.attention import Heads, Mask, attend, bias_of, causal_bias
from popqorn_train.operations.axis_labels import Labelled
from popqorn_train.operations.lift import Lifter, has_node
from popqorn_train.operations.registry import module, unsupported
from popqorn_train.operations.shapes import affine_of
from popqorn_train.tracing.steps import Step


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
        raise unsupported(step, "an attention with a perturbed mask")
    sides = "b{}" if layer.batch_first else "{}b"
    parts = [
        Labelled(part, sides.format(axis) + "h" + last)
        for part, axis, last in zip(
            _projected(lifter, step, layer, (query, key, value)), "lss", "eem", strict=True
        )
    ]
    heads = Heads(parts[0], parts[1], parts[2], "bhls", sides.format("l") + "hm")
    if is_causal and key_padding_mask is None and not need_weights:
        bias: Tensor | None = causal_bias(lifter, heads)
    else:
        bias = _merged_bias(lifter, layer, key_padding_mask, attn_mask)
    scale = 1 / math.sqrt(layer.head_dim)
    pooled, shares = attend(lifter, step, heads, scale, Mask(bias, math.nan))
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
        found = functional.pad(bias_of(lifter, mask), (0, more))
        if found.ndim == 3:
            found = found.view(-1, layer.num_heads, *found.shape[1:])
    if padding is not None:
        hidden = functional.pad(bias_of(lifter, padding), (0, more))[:, None, None]
        found = hidden if found is None else found + hidden
    return found


def _projected(
    lifter: Lifter, step: Step, layer: nn.MultiheadAttention, given: Sequence[Any]
) -> list[Any]:
    """Queries, keys and values ``(..., heads, size)``, with the keys that the layer adds."""
    path, size = step.target, layer.embed_dim
    joined, bias = (lifter.weight(path, f"in_proj_{name}") for name in ("weight", "bias"))
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    parts: Any = [lifter.weight(path, name) for name in names]
    weights = parts if joined is None else torch.split(joined, size)
    biases = [None] * 3 if bias is None else torch.split(bias, size)
    added = [None, lifter.weight(path, "bias_k"), lifter.weight(path, "bias_v")]
    zeros = [False, layer.add_zero_attn, layer.add_zero_attn]
    found = []
    for x, weight, own, more, zero in zip(given, weights, biases, added, zeros, strict=True):
        moves = isinstance(x, Node)
        x = linear(lifter, step, x, weight, own) if moves else functional.linear(x, weight, own)
        rows = [] if more is None else [more]
        rows += [torch.zeros(1, 1, size, dtype=lifter.dtype, device=lifter.device)] if zero else []
        found.append(_in_heads(lifter, layer, x, rows))
    return found


def _in_heads(lifter: Lifter, layer: nn.MultiheadAttention, x: Any, rows: Sequence[Tensor]) -> Any:
    """Rows added behind all others, and features split into heads."""
    time = 1 if layer.batch_first else 0
    ends = (lifter.batch, 1) if layer.batch_first else (1, lifter.batch)

    def split(x: Tensor) -> Tensor:
        x = torch.cat([x, *[row.expand(*ends, -1) for row in rows]], time)
        return x.view(*x.shape[:-1], layer.num_heads, layer.head_dim)

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
