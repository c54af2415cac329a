"""Is a node a softmax whose shares were only moved? Then it is one of scores moved likewise.

Shares are moved by transposing, splitting heads, or adding axes, between the softmax and the
product that they are weights of. The numbers of all shares are sent the same way: where a row of
the result holds those of one softmax, each once, it is the softmax of the scores in these places.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from popqorn_train.bounds.node import Node
from popqorn_train.bounds.softmax import Softmax
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.shapes import affine_of
from popqorn_train.perturbations.region import Bounds
from popqorn_train.tracing.steps import Step


def softmax_behind(node: Node) -> Softmax | None:
    """The softmax that a node, and nothing else, is made from."""
    while len(node.inputs) == 1 and not isinstance(node, Softmax):
        (node,) = node.inputs
    return node if isinstance(node, Softmax) else None


def scores_of(
    lifter: Lifter, step: Step, weights: Node, arrange: Callable[[], Node], what: str
) -> Node | None:
    """The scores of which an arrangement of weights is the softmax over its last axis.

    Args:
        lifter: makes the graph.
        step: that is lifted.
        weights: what is arranged.
        arrange: makes the node to look at.
        what: names the arrangement among those of the step.

    Returns:
        A node of the shape of the arrangement; None where its last axis is no softmax.
    """
    behind = softmax_behind(weights)
    if behind is None:
        return None
    arranged = arrange()
    places = lifter.choose(step, f"shares of {what}", lambda: _rows(lifter, arranged, behind))
    if places is None:
        return None

    def picked(x: Tensor) -> Tensor:
        return x.flatten(1)[:, places]

    scores = behind.inputs[0]
    return affine_of(
        lambda x: picked(x.movedim(scores.batch_axis, 0)), (scores,), {},
        shape=arranged.shape, axis=0,
    )  # fmt: skip


def places_behind(lifter: Lifter, node: Node, behind: Node) -> Tensor | None:
    """Which entry of a node every entry of a later one is; None where they are not moved alone."""
    count = math.prod(behind.shape)
    numbers = torch.arange(count, dtype=torch.float64, device=lifter.device)
    start = numbers.view(1, *behind.shape).expand(lifter.batch, *behind.shape)
    none, once, twice = (_moved(node, behind, x) for x in (0 * start, start, 2 * start + 1))
    places = once[0]
    moved = (none == 0).all() & (once == places).all() & (twice == 2 * once + 1).all()
    inside = (places >= 0) & (places < count) & (places == places.round())
    return places.long() if bool(moved & inside.all()) else None


def _moved(node: Node, behind: Node, value: Tensor) -> Tensor:
    """What a node is where an earlier one has this value."""
    path: list[Node] = []
    while node is not behind:
        path.append(node)
        (node,) = node.inputs
    for passed in reversed(path):
        value = passed.range(Bounds(value, value)).lower
    return value


def _rows(lifter: Lifter, arranged: Node, behind: Softmax) -> Tensor | None:
    """The places of all shares, if every row holds those of one softmax."""
    places, length = places_behind(lifter, arranged, behind), behind.shape[-1]
    if places is None or places.shape[-1] != length:
        return None
    groups, entries = places // length, (places % length).sort(-1).values
    every = torch.arange(length, device=places.device)
    whole = (groups == groups[..., :1]).all() & (entries == every).all()
    return places if bool(whole) else None
