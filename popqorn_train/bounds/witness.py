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
_LEFT = 1e-2  # of the numbers that cancelled out counts behind a nonlinearity
_TWICE = 100  # squares of that unit, of the largest number of a graph, that are none either


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


def contradiction(
    found: Enclosure, values: Mapping[Node, Tensor], sizes: Mapping[Node, Tensor]
) -> str | None:
    """Where values leave what was found, in words; None if they stay inside.

    Args:
        found: ranges and relaxations, of the same graph.
        values: of every node at a point of the set, see ``values_at``.
        sizes: of these, see ``sizes_of``.
    """
    noise = _noise([*sizes.values()])
    for node, bounds in found.ranges.items():
        read = [sizes[node], *[sizes[x] for x in node.inputs]]
        by = _beyond(values[node], *bounds, read, noise)
        if by is not None:
            return f"a {type(node).__name__} node leaves its range {by}"
    for node, relaxation in found.relaxations.items():
        assert isinstance(node, Nonlinear)
        ends = node.at(relaxation, *[values[x] for x in node.inputs])
        by = _beyond(values[node], *ends, [sizes[x] for x in node.inputs], noise)
        if by is not None:
            return f"a {type(node).__name__} node leaves its relaxation {by}"
    return None


def _noise(sizes: Sequence[Tensor]) -> float:
    """What a bound of numbers that are all 0 may be off by.

    It walks back to larger ones, by slopes that should be 0 and are a rounding error.
    """
    largest = torch.stack([size.abs().nan_to_num(0, 0, 0).amax() for size in sizes]).amax()
    return _TWICE * largest.item() * float(torch.finfo(largest.dtype).eps) ** 2


def sizes_of(values: Mapping[Node, Tensor]) -> dict[Node, Tensor]:
    """How large the numbers are that every node was made of, since the last nonlinearity.

    What is added up may cancel out, and what cancelled out may be read by further affine nodes:
    their rounding is that of the numbers before. Where nothing else is left, as of a state whose
    gate rounds to 1, a nonlinearity passes it on.
    """
    sizes: dict[Node, Tensor] = {}
    for node, value in values.items():  # from the root on
        own = value.abs().nan_to_num(0, 0, 0)
        if isinstance(node, Nonlinear):
            sizes[node] = _behind(own, node, values, sizes).expand_as(value)
        elif isinstance(node, Root) or not node.inputs:
            sizes[node] = own
        else:
            sizes[node] = node.size(None, *[sizes[x] for x in node.inputs])
    return sizes


def _behind(
    own: Tensor, node: Nonlinear, values: Mapping[Node, Tensor], sizes: Mapping[Node, Tensor]
) -> Tensor:
    """How large the numbers behind a nonlinearity are."""
    read = [values[x].abs().nan_to_num(0, 0, 0).amax() for x in node.inputs]
    size = torch.stack([own.amax(), *read]).amax()
    before = torch.stack([sizes[x].nan_to_num(0, 0, 0).amax() for x in node.inputs]).amax()
    rounds = size <= _ROUNDING * torch.finfo(size.dtype).eps * before
    return torch.where(rounds, _LEFT * before, size)


def _beyond(
    value: Tensor, lower: Tensor, upper: Tensor, read: Sequence[Tensor], noise: float
) -> str | None:
    """By how much a value is outside, and where, if by more than rounding; NaN bounds nothing.

    Args:
        value: of a node.
        lower: bound of it.
        upper: likewise.
        read: sizes of what it is computed from.
        noise: see ``_noise``.
    """
    gap = torch.maximum(lower - value, value - upper).nan_to_num(-1)
    worst = gap.max().item()
    if worst <= noise:
        return None
    # What is added up is seldom larger than the largest of these.
    parts = (value, lower, upper, *read)
    size = max(part.abs().nan_to_num(0, 0, 0).max().item() for part in parts)
    if worst <= _ROUNDING * torch.finfo(value.dtype).eps * size:
        return None
    place = [int(index) for index in torch.unravel_index(gap.argmax(), gap.shape)]
    return f"by {worst:.3g} at {place} of {list(gap.shape)}"
