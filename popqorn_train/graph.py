"""The graph that is bounded: nodes, interval ranges forward, linear bounds backward.

A lower bound on ``sum(slope * node)`` is carried from a node to the input:

    intercept = 0
    for node from last to first:    slope on node -> slopes on its inputs, intercept += constant
    bound = intercept + minimum over the ball of (slope on the input . x)

Only lower bounds exist: ``upper(f) = -lower(-f)``, in the same batch.
Zhang et al., "CROWN", NeurIPS 2018, for the walk; Ko et al., "POPQORN", ICML 2019, for the
recurrent case.

B: batch, K: bounded rows. Values of a node are ``(B, *shape)``, slopes on it ``(B, K, *shape)`` or
``(1, K, *shape)``; on a sequence ``(T, F)`` a slope may cover the first frames only, the rest
being 0.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.node import Node, Nonlinear, Piece, Tape
from popqorn_train.region import Bounds, dot

ROWS_AT_ONCE = 2048  # rows of one backward pass; more are bounded in blocks


class Enclosure(NamedTuple):
    """Ranges of nodes, and the relaxation of every nonlinear one."""

    ranges: dict[Node, Bounds]
    relaxations: dict[Node, Any]


def ancestors(node: Node) -> list[Node]:
    """A node and everything it is computed from, first to last."""
    found, todo = {node}, [node]
    while todo:
        for parent in todo.pop().inputs:
            if parent not in found:
                found.add(parent)
                todo.append(parent)
    return sorted(found, key=lambda node: node.index)


def enclose(output: Node, *, relax: bool = True, backward: bool = False) -> Enclosure:
    """Bound every quantity that a nonlinearity reads, first to last.

    Args:
        output: the node to be bounded in the end.
        relax: also enclose every nonlinear node between linear functions.
        backward: refine the intervals by a backward bound each (POPQORN); else intervals alone.
    """
    # The range of an affine node comes from the ball itself: a box around an l2 ball, or around
    # an earlier layer, would be looser.
    nodes = ancestors(output)
    wanted = {
        whole(parent) for node in nodes if isinstance(node, Nonlinear) for parent in node.inputs
    }
    found = Enclosure({}, {})
    for node in nodes:
        parents = [found.ranges[parent] for parent in node.inputs]
        if node.affine and not node.exact:
            found.ranges[node] = node.range_from_ball() or backward_range(node, found)
        else:
            found.ranges[node] = node.range(*parents)
        if relax and isinstance(node, Nonlinear):
            found.relaxations[node] = node.relax(*parents)
        if backward and node in wanted and not node.affine:
            tighter = backward_range(node, found)
            found.ranges[node] = intersect(found.ranges[node], tighter)
    return found


def whole(node: Node) -> Node:
    """The node that a piece or a mirror image is taken from."""
    while isinstance(node, Piece) or node.mirrors:
        node = node.inputs[0]
    return node


def intersect(one: Bounds, two: Bounds) -> Bounds:
    """Intersection of two ranges; where rounding makes them cross, the gap between them."""
    lower, upper = torch.maximum(one.lower, two.lower), torch.minimum(one.upper, two.upper)
    return Bounds(torch.minimum(lower, upper), torch.maximum(lower, upper))


def backward_range(node: Node, found: Enclosure) -> Bounds:
    """Range of every coordinate of a node by backward bounds."""
    like = next(iter(found.ranges.values())).lower
    unit = torch.eye(math.prod(node.shape), dtype=like.dtype, device=like.device)
    lower = [
        minimum(node, torch.cat([rows, -rows]).reshape(1, -1, *node.shape), found)
        for rows in torch.split(unit, ROWS_AT_ONCE)
    ]
    pairs = [block.chunk(2, dim=1) for block in lower]
    batch = (-1, *node.shape)
    return Bounds(
        torch.cat([low for low, _ in pairs], 1).reshape(batch),
        -torch.cat([high for _, high in pairs], 1).reshape(batch),
    )


def minimum(node: Node, slope: Tensor, found: Enclosure, *, intervals: bool = False) -> Tensor:
    """Lower bound on ``sum(slope * node)`` over the perturbation.

    Args:
        node: what is bounded.
        slope: ``(B, K, *node.shape)`` or ``(1, K, *node.shape)``.
        found: ranges and relaxations of everything before it.
        intervals: stop at nonlinear nodes and use their ranges (the last step of IBP).

    Returns:
        ``(B, K)``.
    """
    batch = max(len(bounds.lower) for bounds in found.ranges.values())
    tape, total = Tape(batch), slope.new_zeros(())
    tape.add(node, slope)
    for current, weight in tape.drain():
        if intervals and isinstance(current, Nonlinear):
            extra: Tensor | None = _box_minimum(weight, found.ranges[current])
        else:
            extra = current.backward(weight, tape, found.relaxations.get(current))
        total = total if extra is None else total + extra
    return total


def _box_minimum(slope: Tensor, box: Bounds) -> Tensor:
    time = slope.shape[2]
    lower, upper = (part if part.ndim < 3 else part[:, :time] for part in box)
    return dot(slope.clamp(min=0), lower) + dot(slope.clamp(max=0), upper)
