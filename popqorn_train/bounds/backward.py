"""Linear bounds, carried backward over the graph of a network.

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

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.affine import Linear
from popqorn_train.bounds.back_substitution import back_substitute
from popqorn_train.bounds.concatenation import Projected, readers_of_input
from popqorn_train.bounds.node import Node, Nonlinear
from popqorn_train.bounds.roundoff import rounding_error
from popqorn_train.bounds.tape import Tape
from popqorn_train.bounds.wanted import slopes_alone
from popqorn_train.kernels.inputs import FEWEST
from popqorn_train.perturbations.region import Bounds, dot, for_batch

ROWS_AT_ONCE = 2048  # rows of one backward pass; more are bounded in blocks
BLOCK = 2**23  # bytes of slopes on the input at once; what fits a cache is faster


class Enclosure(NamedTuple):
    """Ranges of nodes, and the relaxation of every nonlinear one.

    Attributes:
        ranges: of every node.
        relaxations: of the nonlinear ones.
        chosen: whether every row chooses its own lines, see ``_with_own_lines``.
    """

    ranges: dict[Node, Bounds]
    relaxations: dict[Node, Any]
    chosen: bool = False


def ancestors(node: Node) -> list[Node]:
    """A node and everything it is computed from, first to last."""
    found, todo = {node}, [node]
    while todo:
        for parent in todo.pop().inputs:
            if parent not in found:
                found.add(parent)
                todo.append(parent)
    return sorted(found, key=lambda node: node.index)


def check_defined(found: Enclosure) -> None:
    """Refuse ranges in which a function is undefined somewhere, as a logarithm of 0.

    Certificates need no such check: NaN proves nothing.

    Raises:
        ValueError: saying what to do.
    """
    for node in sorted(found.ranges, key=lambda node: node.index):
        if getattr(node, "partial", False) and found.ranges[node].lower.isnan().any():
            raise ValueError(
                f"The bounds of a {type(node).__name__} node of shape {node.shape} are NaN: within "
                "this epsilon, its input may leave the domain of a logarithm, root, power or "
                "quotient. Keep it inside (log(x + c), clamp(min=c)), or use a smaller epsilon."
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
    return lower_bound([(node, slope)], found, intervals=intervals)


def lower_bound(
    terms: Sequence[tuple[Node, Tensor]],
    found: Enclosure,
    *,
    intervals: bool = False,
    sizes: Mapping[Node, Tensor] | None = None,
) -> Tensor:
    """Lower bound on a sum of ``sum(slope * node)`` over several nodes.

    Args:
        terms: nodes, and the slopes ``(B, K, *node.shape)`` or ``(1, K, *node.shape)`` on them.
        found: see ``minimum``.
        intervals: see ``minimum``.
        sizes: of every node, see ``sizes_of``; then the bound is lowered by its rounding error.
    """
    moving = [node.region for node, _ in terms if node.region is not None]
    if not moving:
        parts = [dot(slope, _value(node)) for node, slope in terms]
        return sum(parts[1:], parts[0])
    value = moving[0].value
    batch, rows = len(value), _rows_at_once(terms, value)
    nodes = [node for node, _ in terms]
    walk = _with_own_lines if _choosing(found) and not intervals else _walk
    reading: Sequence[Linear | Projected] = ()
    # Torch shares products of matrices among its threads; a loop has one.
    if sizes is None and terms[0][1].shape[1] >= FEWEST and torch.get_num_threads() == 1:
        before = {node for term in nodes for node in ancestors(term)}
        reading = readers_of_input(before, nodes)
    way = _Way(batch, intervals, sizes, {node: node.least for node in reading})
    if terms[0][1].shape[1] <= rows:
        return walk(terms, found, way)
    blocks = zip(*[torch.split(slope, rows, 1) for _, slope in terms], strict=True)
    bounds = [walk(list(zip(nodes, block, strict=True)), found, way) for block in blocks]
    return torch.cat(bounds, 1)


def _value(node: Node) -> Tensor:
    """What a node is that does not move."""
    values = [_value(parent) for parent in node.inputs]
    return node.range(*[Bounds(value, value) for value in values]).lower


def _rows_at_once(terms: Sequence[tuple[Node, Tensor]], value: Tensor) -> int:
    """How many rows have slopes on the input ``(B, T, N)`` of about ``BLOCK`` bytes.

    A GPU has no cache that a walk would fit, and waits for each of its operations.
    """
    if torch.is_grad_enabled() or value.is_cuda:
        return ROWS_AT_ONCE
    frames = 1 + max(node.time for node, _ in terms)
    row = value[:, :frames].numel() * value.element_size()
    return max(1, BLOCK // max(row, 1))


def has_choice(output: Node) -> bool:
    """Whether a node before an output can give rows lines of their own."""
    return any(isinstance(node, Nonlinear) and node.has_choice for node in ancestors(output))


def _choosing(found: Enclosure) -> list[Nonlinear]:
    """Nodes that can give rows lines of their own."""
    nodes = found.relaxations if found.chosen else ()
    return [node for node in nodes if isinstance(node, Nonlinear) and node.has_choice]


class _Way(NamedTuple):
    """How a bound is carried.

    Attributes:
        batch: number of samples.
        intervals: see ``minimum``.
        sizes: see ``lower_bound``.
        last: what may give the least value, of nodes after which only the input comes.
    """

    batch: int
    intervals: bool
    sizes: Mapping[Node, Tensor] | None
    last: Mapping[Node, Callable[[Tensor], Tensor | None]]


def _with_own_lines(terms: Sequence[tuple[Node, Tensor]], found: Enclosure, way: _Way) -> Tensor:
    """The better of two bounds: with the same lines for all rows, and with lines for each.

    A bound is what a linear function of the nodes is worth in the worst case, so its derivative
    in the slope on a node is the value of that node there. The lines that are closest at that
    value answer the worst case best.
    """
    choosing = _choosing(found)
    slopes: dict[Node, Tensor | None] = dict.fromkeys(x for node in choosing for x in node.inputs)
    keep = torch.is_grad_enabled()
    with torch.enable_grad(), contextlib.nullcontext() if keep else slopes_alone():
        first = _walk(terms, found, way, slopes)
    reached = {node: slope for node, slope in slopes.items() if slope is not None}
    if not reached:
        return first
    one = torch.ones_like(first)
    with slopes_alone():
        points = torch.autograd.grad(first, list(reached.values()), one, retain_graph=keep)
    worst = {node: point.nan_to_num(0) for node, point in zip(reached, points, strict=True)}
    own: dict[Node, Any] = {
        node: node.closest([worst[x] for x in node.inputs], [found.ranges[x] for x in node.inputs])
        for node in choosing
        if all(x in worst for x in node.inputs)
    }
    found = found._replace(relaxations={**found.relaxations, **own})
    first = first if keep else first.detach()
    return torch.maximum(first, _walk(terms, found, way))


def _walk(
    terms: Sequence[tuple[Node, Tensor]],
    found: Enclosure,
    way: _Way,
    slopes: dict[Node, Tensor | None] | None = None,
) -> Tensor:
    """One backward bound; keeps the slopes on the nodes asked for, with gradient."""
    total = terms[0][1].new_zeros(())
    for node, weight, tape in visits(terms, way.batch):
        if slopes is not None and node in slopes:
            weight = for_batch(weight, way.batch)
            weight = weight if weight.requires_grad else weight.detach().requires_grad_()
            slopes[node] = weight
        if way.intervals and isinstance(node, Nonlinear) and not node.drifts:
            extra: Tensor | None = _box_minimum(weight, found.ranges[node])
        elif node not in way.last or (extra := way.last[node](weight)) is None:
            extra = node.backward(weight, tape, found.relaxations.get(node))
        total = total if extra is None else total + extra
        if way.sizes is not None and not node.moves:
            total = total - rounding_error(weight, way.sizes[node])
    # Products of numbers below the root of the smallest one underflow.
    return total if way.sizes is None else total - math.sqrt(torch.finfo(total.dtype).tiny)


def visits(terms: Sequence[tuple[Node, Tensor]], batch: int) -> Iterator[tuple[Node, Tensor, Tape]]:
    """Every node that a bound passes, last to first, the slopes on it, and where to add others."""
    tape = Tape(batch)
    for node, slope in terms:
        tape.add(node, slope)
    for node, weight in tape.drain():
        yield node, weight, tape


def sizes_of(output: Node, found: Enclosure) -> dict[Node, Tensor]:
    """For every node, the sum of the absolute values of what makes it up."""
    largest = {node: torch.maximum(*[e.abs() for e in ends]) for node, ends in found.ranges.items()}
    return {
        node: node.size(found.relaxations.get(node), *[largest[parent] for parent in node.inputs])
        for node in ancestors(output)
    }


def _box_minimum(slope: Tensor, box: Bounds) -> Tensor:
    lower, upper = (part if part.ndim < 3 else part[:, : slope.shape[2]] for part in box)
    if len(slope) > 1:
        return back_substitute(slope, [lower], [upper])[1]
    # The same rows for all samples: a product of matrices.
    flat = slope.reshape(slope.shape[1], -1)
    positive = flat.relu()
    lower, upper = (part.reshape(len(part), -1) for part in (lower, upper))
    return lower @ positive.T + upper @ (flat - positive).T
