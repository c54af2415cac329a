"""Nodes that only pick and scale coordinates of the input: what they read, and are worth.

B: batch, K: bounded rows, L: coordinates of a frame of the input.
"""

from collections.abc import Sequence

from torch import Tensor

from popqorn_train.bounds.backward import visits
from popqorn_train.bounds.node import Node, Root
from popqorn_train.perturbations.region import Bounds, Region


def picks_input(x: Node) -> bool:
    """Whether every entry of a node reads one coordinate of what a ball moves."""
    if not isinstance(x.region, Region):
        return False
    todo: list[Node] = [x]
    while todo:
        node = todo.pop()
        if not (isinstance(node, Root) or (node.exact and node.affine)):
            return False
        todo.extend(node.inputs)
    return True


def value_of(node: Node, root: Tensor) -> Tensor:
    """What an affine node is worth where the input has this value."""
    if isinstance(node, Root):
        return root
    values: Sequence[Tensor] = [value_of(parent, root) for parent in node.inputs]
    return node.range(*[Bounds(value, value) for value in values]).lower


def on_input(node: Node, slope: Tensor, batch: int) -> Tensor:
    """The slopes ``(B, K, t, L)`` on the input of slopes on a linear function of it."""
    for visited, weight, tape in visits([(node, slope)], batch):
        if isinstance(visited, Root):
            return weight.expand(batch, -1, -1, -1)
        visited.backward(weight, tape, None)
    raise RuntimeError("a node that does not read the input")
