"""Ranges of affine nodes, from their matrices: by columns from the input on, or by rows back to it.

    node = M x + c:     range = c + extremes of M x,    one matrix for all samples if no sample
                                                        has coefficients of its own

Columns are the image of every coordinate of the input, and serve all nodes after it; rows are
walked back from each node alone.

B: batch, K: entries of a node, n: coordinates of the input.
"""

import math
from collections.abc import Mapping, Sequence
from functools import singledispatch
from types import MappingProxyType

import torch
from torch import Tensor

from popqorn_train.bounds.affine import Linear, Negative, Scale, Sum
from popqorn_train.bounds.backward import BLOCK, ROWS_AT_ONCE, ancestors, visits
from popqorn_train.bounds.concatenation import Concat, Stack
from popqorn_train.bounds.contraction import Contraction
from popqorn_train.bounds.linear_map import LinearMap
from popqorn_train.bounds.node import Logits, Node, Nonlinear, Root
from popqorn_train.bounds.single_reads import Affine
from popqorn_train.bounds.slices import NodeSlice
from popqorn_train.bounds.total import Total
from popqorn_train.perturbations.region import Bounds, Region, around, dot
from popqorn_train.perturbations.substitutions import Choices

_MOST = 2**26  # numbers that the columns of all nodes may hold together


def affine_ranges(nodes: Sequence[Node]) -> dict[Node, Bounds]:
    """Ranges of every coordinate of nodes that are affine functions of what moves; exact."""
    quick = {node: node.range_from_ball() for node in nodes}
    found = {node: bounds for node, bounds in quick.items() if bounds is not None}
    left = [node for node in nodes if node not in found]
    columns = _columns(left) if left else {}
    for node in left:
        own = columns.get(node)
        found[node] = affine_range(node) if own is None else own
    return found


def affine_range(node: Node, ranges: Mapping[Node, Bounds] = MappingProxyType({})) -> Bounds:
    """The same of one node, by rows.

    Args:
        node: an affine function of what moves, or of nonlinear nodes too.
        ranges: of these.
    """
    assert node.region is not None, "a node that does not move"
    size, like = math.prod(node.shape), node.region.value
    step, blocks = _rows_at_once(size, like), []
    for start in range(0, size, step):
        rows = like.new_zeros(min(step, size - start), size)
        rows.diagonal(start).fill_(1.0)
        blocks.append(_extremes(node, rows.view(1, -1, *node.shape), node.region, ranges))
    lower, upper = (torch.cat(e, 1).reshape(-1, *node.shape) for e in zip(*blocks, strict=True))
    return Bounds(lower, upper)


def _rows_at_once(size: int, value: Tensor) -> int:
    """How many rows have slopes of about ``BLOCK`` bytes on the wider of both ends."""
    if torch.is_grad_enabled() or value.is_cuda:
        return ROWS_AT_ONCE
    return max(1, BLOCK // (max(size, value[0].numel()) * value.element_size()))


def _extremes(
    node: Node, slope: Tensor, region: Region | Choices, ranges: Mapping[Node, Bounds]
) -> Bounds:
    """Least and greatest value of ``sum(slope * node)``, ``(B, K)`` each."""
    batch, constant = len(region.value), slope.new_zeros(())
    ends = Bounds(*[slope.new_zeros(batch, slope.shape[1])] * 2)
    for at, weight, tape in visits([(node, slope)], batch):
        if isinstance(at, Root | Nonlinear):
            own = region.extremes(weight) if isinstance(at, Root) else _of_box(weight, ranges[at])
            ends = Bounds(ends.lower + own.lower, ends.upper + own.upper)
        else:
            more = at.backward(weight, tape, None)
            constant = constant if more is None else constant + more
    return Bounds(*(end + constant for end in ends))


def _of_box(slope: Tensor, box: Bounds) -> Bounds:
    """Extremes over a box, of which slopes may cover the first frames only."""
    lower, upper = (end if end.ndim < 3 else end[:, : slope.shape[2]] for end in box)
    center, half = ((lower + upper) / 2, (upper - lower) / 2)
    if len(slope) > 1:
        return around(dot(slope, center), dot(slope.abs(), half))
    rows = slope.reshape(slope.shape[1], -1)  # the same for all samples: a product of matrices
    center, half = (part.reshape(len(part), -1) for part in (center, half))
    return around(center @ rows.T, half @ rows.abs().T)


def _columns(nodes: Sequence[Node]) -> dict[Node, Bounds | None]:
    """Ranges by columns, where they are fewer than rows; None for nodes that have none."""
    region = nodes[0].region
    assert region is not None, "a node that does not move"
    coordinates = region.value[0].numel()
    passed = sorted({p for node in nodes for p in ancestors(node)}, key=lambda node: node.index)
    if sum(math.prod(node.shape) for node in nodes) <= coordinates:
        return {}
    if coordinates * sum(math.prod(node.shape) for node in passed) > _MOST:
        return {}
    images: dict[Node, Tensor | None] = {}
    for node in passed:
        own = [images[parent] for parent in node.inputs]
        known = [x for x in own if x is not None]
        images[node] = _linear(node, *known) if len(known) == len(own) else None
    constants = _values(passed, torch.zeros_like(region.value))
    return {node: _range(images[node], constants[node], region) for node in nodes}


def _values(nodes: Sequence[Node], x: Tensor) -> dict[Node, Tensor]:
    """What affine nodes, in order, are worth where the input has this value."""
    found: dict[Node, Tensor] = {}
    for node in nodes:
        values = [found[parent] for parent in node.inputs]
        points = [Bounds(value, value) for value in values]
        found[node] = x if isinstance(node, Root) else node.range(*points).lower
    return found


def _range(image: Tensor | None, constant: Tensor, region: Region | Choices) -> Bounds | None:
    """Range from the images ``(n, *shape)`` of all coordinates and of 0."""
    if image is None:
        return None
    rows = image.flatten(1).T.reshape(1, -1, *region.value.shape[1:])
    shape = -1, *image.shape[1:]
    return Bounds(*(end.reshape(shape) + constant for end in region.extremes(rows)))


@singledispatch
def _linear(node: Node, *x: Tensor) -> Tensor | None:
    """The linear part of a node, of any number of values; None if samples have their own."""
    return None


@_linear.register
def _(node: Root) -> Tensor:
    value = node.region.value
    unit = torch.eye(value[0].numel(), dtype=value.dtype, device=value.device)
    return unit.view(-1, *node.shape)


@_linear.register
def _(node: Linear, x: Tensor) -> Tensor:
    return x @ node.weight.T


@_linear.register
def _(node: LinearMap, x: Tensor) -> Tensor:
    return node.apply(x, node.weight, None)


@_linear.register
def _(node: Contraction, x: Tensor) -> Tensor | None:
    return node.linear(x)


@_linear.register
def _(node: Affine, *x: Tensor) -> Tensor | None:
    return node.linear(*x)


@_linear.register
def _(node: Sum, *x: Tensor) -> Tensor:
    return sum(x[1:], x[0])


@_linear.register
def _(node: Scale, x: Tensor) -> Tensor | None:
    return x * node.weight if len(node.weight) == 1 else None


@_linear.register(Total)
@_linear.register(Logits)
@_linear.register(NodeSlice)
@_linear.register(Stack)
@_linear.register(Concat)
@_linear.register(Negative)
def _(node: Node, *x: Tensor) -> Tensor:
    return node.range(*[Bounds(one, one) for one in x]).lower  # they have no constant
