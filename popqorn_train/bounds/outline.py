"""What several passes over one graph share: its order, and ranges that need no pass."""

import functools
from collections.abc import Sequence

from popqorn_train.bounds.affine_matrix import affine_ranges
from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.node import Node, Nonlinear
from popqorn_train.bounds.repeated_reads import reread
from popqorn_train.perturbations.region import Bounds


class Outline:
    """A graph before anything is bounded; all is worked out when it is first asked for.

    Gradients are kept if they are on then.

    Args:
        output: the node to be bounded in the end.
    """

    def __init__(self, output: Node) -> None:
        self._output = output

    @functools.cached_property
    def nodes(self) -> list[Node]:
        """All before the output, and itself, first to last."""
        return ancestors(self._output)

    @functools.cached_property
    def nonlinear(self) -> list[Nonlinear]:
        """The nonlinear ones."""
        return [node for node in self.nodes if isinstance(node, Nonlinear)]

    @functools.cached_property
    def read(self) -> list[Node]:
        """The nodes whose ranges something reads."""
        return _read(self.nodes)

    @functools.cached_property
    def affine(self) -> dict[Node, Bounds]:
        """Ranges of those of them that are linear functions of the input."""
        return affine_ranges([node for node in self.read if from_ball(node)])

    @functools.cached_property
    def repeated(self) -> set[Node]:
        """The nodes that read an entry along several paths, see repeated_reads.py."""
        return reread(self.nodes)


def from_ball(node: Node) -> bool:
    """Whether the range of a node is that of a linear function of the input."""
    return node.affine and not node.exact and node.region is not None


def _read(nodes: Sequence[Node]) -> list[Node]:
    """The nodes whose ranges something reads, of all nodes in order."""
    read: set[Node] = set()
    for node in reversed(nodes):
        if isinstance(node, Nonlinear) or node.state is not None:
            read.add(node)
        if node in read and not from_ball(node):
            read.update(node.inputs)
    return [node for node in nodes if node in read]
