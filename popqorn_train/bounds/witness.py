"""Does a graph stay inside what was said of it? What every node is worth at points tells.

At a point of the perturbation set, each node has one value. It must lie inside the range that the
method used for it, and between the two linear functions that enclose it. A range or a relaxation
that is wrong shows at a point where it is exceeded; points do not prove that none is.

B: batch.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from popqorn_train.bounds.backward import Enclosure, ancestors
from popqorn_train.bounds.node import Node, Nonlinear, Root
from popqorn_train.perturbations.region import Bounds

_ROUNDING = 1e4  # units of rounding of a node's scale that are no contradiction


def values_at(output: Node, root: Tensor) -> dict[Node, Tensor]:
    """What every node is worth where the root has this value.

    Args:
        output: last node of the graph.
        root: ``(B, T, N)``.

    Returns:
        ``(B or 1, *node.shape)`` for every node.
    """
    values: dict[Node, Tensor] = {}
    for node in ancestors(output):
        if isinstance(node, Root):
            values[node] = root
        else:
            ends = [Bounds(values[parent], values[parent]) for parent in node.inputs]
            lower, upper = node.range(*ends)
            values[node] = lower if lower is upper else lower + (upper - lower) / 2  # less slack
    return values


def contradiction(found: Enclosure, values: Mapping[Node, Tensor]) -> str | None:
    """Where values leave what was found, in words; None if they stay inside.

    Args:
        found: ranges and relaxations, of the same graph.
        values: of every node at a point of the set, see ``values_at``.
    """
    for node, bounds in found.ranges.items():
        by = _beyond(values[node], *bounds, _terms(node, [values[x] for x in node.inputs]))
        if by is not None:
            return f"a {type(node).__name__} node leaves its range {by}"
    for node, relaxation in found.relaxations.items():
        assert isinstance(node, Nonlinear)
        read = [values[x] for x in node.inputs]
        by = _beyond(values[node], *node.at(relaxation, *read), read)
        if by is not None:
            return f"a {type(node).__name__} node leaves its relaxation {by}"
    return None


def _terms(node: Node, read: Sequence[Tensor]) -> Sequence[Tensor]:
    """What a node reads, and how much it adds up of that; either may cancel out."""
    if isinstance(node, Nonlinear):
        return read
    return [*read, node.size(None, *[value.abs() for value in read])]


def _beyond(value: Tensor, lower: Tensor, upper: Tensor, read: Sequence[Tensor]) -> str | None:
    """By how much a value is outside, and where, if by more than rounding; NaN bounds nothing.

    Args:
        value: of a node.
        lower: bound of it.
        upper: likewise.
        read: what it is computed from, and adds up.
    """
    gap = torch.maximum(lower - value, value - upper).nan_to_num(-1)
    worst = gap.max().item()
    if worst <= 0:
        return None
    # What is added up is seldom larger than the largest of these.
    parts = (value, lower, upper, *read)
    size = max(part.abs().nan_to_num(0, 0, 0).max().item() for part in parts)
    if worst <= _ROUNDING * torch.finfo(value.dtype).eps * size:
        return None
    place = [int(index) for index in torch.unravel_index(gap.argmax(), gap.shape)]
    return f"by {worst:.3g} at {place} of {list(gap.shape)}"
