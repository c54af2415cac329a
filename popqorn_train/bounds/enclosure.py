"""Ranges and relaxations of everything a network computes: intervals forward, then backward bounds.

B: batch, K: bounded rows.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from popqorn_train.bounds.affine_matrix import affine_range, affine_ranges
from popqorn_train.bounds.backward import (
    ROWS_AT_ONCE,
    Enclosure,
    lower_bound,
    minimum,
)
from popqorn_train.bounds.node import Node, Nonlinear
from popqorn_train.bounds.outline import Outline, from_ball
from popqorn_train.bounds.relaxer import Relaxation, Relaxer
from popqorn_train.bounds.repeated_reads import without_repeats
from popqorn_train.bounds.slices import whole
from popqorn_train.nested import cut_nested
from popqorn_train.perturbations.region import Bounds, for_batch

_TOGETHER = 2**17  # entries that are enclosed in one go; what fits a cache is faster


def enclose(
    output: Node,
    *,
    relax: Relaxation | None = None,
    backward: bool = False,
    chosen: bool = False,
    outline: Outline | None = None,
) -> Enclosure:
    """Bound every quantity that a nonlinearity reads, first to last.

    Args:
        output: the node to be bounded in the end.
        relax: how to enclose every nonlinear node between linear functions; None leaves it out.
        backward: refine the intervals by a backward bound each (POPQORN); else intervals alone.
        chosen: let every row of these bounds, and of those made from them, choose its own lines.
        outline: of the graph; None works it out.
    """
    outline = outline or Outline(output)
    # The range of an affine node comes from the ball itself: a box around an l2 ball, or around
    # an earlier layer, would be looser.
    wanted = {whole(parent) for node in outline.nonlinear for parent in node.inputs}
    # The last state too: in a batch, it may not be the last one of every sample.
    wanted.update(node for node in outline.nonlinear if node.kept)
    found = Enclosure({}, {}, chosen)
    relaxer = relax and Relaxer(relax, functools.partial(lower_bound, found=found))
    affine = outline.affine
    if backward:
        affine = affine_ranges([node for node in outline.nodes if from_ball(node)])
    for node in outline.nodes if backward else outline.read:
        parents = [found.ranges[parent] for parent in node.inputs if not from_ball(node)]
        if from_ball(node):
            found.ranges[node] = affine[node]
        else:
            found.ranges[node] = node.range(*parents)
        if node in outline.repeated:
            found.ranges[node] = without_repeats(node, found.ranges[node], found.ranges)
        if relaxer and backward and isinstance(node, Nonlinear):
            found.relaxations[node] = node.relax(relaxer, *parents)
        if backward and node in wanted and not node.affine and node.region is not None:
            tighter = backward_range(node, found)
            found.ranges[node] = intersect(found.ranges[node], tighter)
    if relaxer and not backward:
        found.relaxations.update(relaxed(outline.nonlinear, found.ranges, lambda _: relaxer))
    return found


def relaxed(
    nodes: Sequence[Nonlinear],
    ranges: Mapping[Node, Bounds],
    relaxer: Callable[[Sequence[Nonlinear]], Relaxer],
) -> Iterator[tuple[Node, Any]]:
    """Enclose nodes whose ranges are all known: those of one kind together, as far as it pays.

    Args:
        nodes: to be enclosed.
        ranges: of their inputs.
        relaxer: for nodes that are enclosed together.

    Returns:
        Pairs of a node and its relaxation.
    """
    groups: dict[Any, list[Nonlinear]] = {}
    for node in nodes:
        groups.setdefault((node.kind, node.shape), []).append(node)
    for group in groups.values():
        size = max(1, _TOGETHER // max(1, ranges[group[0]].lower.numel()))
        for start in range(0, len(group), size):
            some = group[start : start + size]
            yield from zip(some, _together(some, ranges, relaxer(some)), strict=True)


def _together(
    nodes: Sequence[Nonlinear], ranges: Mapping[Node, Bounds], relaxer: Relaxer
) -> list[Any]:
    """Relaxations of nodes of one kind, which are enclosed in one go."""
    inputs = [[ranges[parent] for parent in node.inputs] for node in nodes]
    if len(nodes) == 1:
        return [nodes[0].relax(relaxer, *inputs[0])]
    batch = max([bounds.lower.shape[0] for column in inputs for bounds in column])
    joined = [_put_together(column, batch) for column in zip(*inputs, strict=True)]
    found = nodes[0].relax(relaxer, *joined)
    return cut_nested(found, Tensor, lambda x: x.split(batch))


def _put_together(ranges: Sequence[Bounds], batch: int) -> Bounds:
    """One range of many batches."""
    lower, upper = (
        torch.cat([for_batch(end, batch) for end in ends]) for ends in zip(*ranges, strict=True)
    )
    return Bounds(lower, upper)


def intersect(one: Bounds, two: Bounds) -> Bounds:
    """Intersection of two ranges; where rounding makes them cross, the gap between them."""
    lower, upper = torch.maximum(one.lower, two.lower), torch.minimum(one.upper, two.upper)
    return Bounds(torch.minimum(lower, upper), torch.maximum(lower, upper))


def backward_range(node: Node, found: Enclosure) -> Bounds:
    """Range of every coordinate of a node by backward bounds."""
    assert node.region is not None, "a node that does not move"
    if node.affine:
        return affine_range(node)
    like = node.region.value
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
