"""Affine nodes that read an entry of a nonlinear one along several paths, as ``c[:, -1:] - c``.

Ranges of one node after the other take every path as a quantity of its own. Such nodes are walked
back to the nonlinear nodes that they come from, where all paths of an entry add up first.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from popqorn_train.bounds.affine import Sum
from popqorn_train.bounds.affine_matrix import affine_range
from popqorn_train.bounds.node import Node, Nonlinear, Root
from popqorn_train.bounds.total import Total
from popqorn_train.perturbations.region import Bounds

_SOURCES = Root, Nonlinear
_MOST = 2**22  # numbers of the matrix from the nonlinear nodes to one that is walked back


class _Origin(NamedTuple):
    """Where the entries of a node come from.

    Attributes:
        sources: the nonlinear nodes, and the input, that it is an affine function of.
        tied: whether one entry of a source may occur in several entries.
        repeats: whether one entry may read an entry of a source along several paths.
    """

    sources: frozenset[Node]
    tied: bool = False
    repeats: bool = False


def reread(nodes: Sequence[Node]) -> set[Node]:
    """Which of all nodes before an output, first to last, are worth a walk back."""
    origins: dict[Node, _Origin] = {}
    for node in nodes:
        origins[node] = _origin(node, [origins[parent] for parent in node.inputs])
    read = {p for node in nodes if isinstance(node, Nonlinear) for p in node.inputs}
    return {node for node in read if not node.affine and _pays(node, origins[node])}


def _origin(node: Node, inputs: Sequence[_Origin]) -> _Origin:
    if isinstance(node, _SOURCES):
        return _Origin(frozenset([node]))
    if node.moves and len(inputs) == 1:
        return inputs[0]
    sources = inputs[0].sources if inputs else frozenset[Node]()
    for origin in inputs[1:]:
        sources = sources | origin.sources
    met = sum([len(origin.sources) for origin in inputs]) > len(sources)
    tied = any(origin.tied for origin in inputs)
    repeats = not node.affine and any(origin.repeats for origin in inputs)
    if isinstance(node, Sum):
        return _Origin(sources, tied or met, repeats or (met and not node.affine))
    if node.exact:
        copies = math.prod(node.shape) > sum(math.prod(parent.shape) for parent in node.inputs)
        return _Origin(sources, tied or met or copies, repeats)
    again = repeats or (tied and not node.affine)
    return _Origin(sources, tied or not isinstance(node, Total), again)


def _pays(node: Node, origin: _Origin) -> bool:
    entries = sum(math.prod(source.shape) for source in origin.sources)
    return origin.repeats and entries * math.prod(node.shape) <= _MOST


def without_repeats(node: Node, bounds: Bounds, ranges: Mapping[Node, Bounds]) -> Bounds:
    """Cut the range of a node with that of its walk back.

    Args:
        node: that is bounded.
        bounds: its range, from those of its inputs.
        ranges: of the nonlinear nodes before it.
    """
    walked = affine_range(node, ranges)
    known = [~end.isnan() for end in walked]  # as from ranges that are not finite
    lower = torch.where(known[0], torch.maximum(bounds.lower, walked.lower), bounds.lower)
    upper = torch.where(known[1], torch.minimum(bounds.upper, walked.upper), bounds.upper)
    return Bounds(torch.minimum(lower, upper), torch.maximum(lower, upper))
