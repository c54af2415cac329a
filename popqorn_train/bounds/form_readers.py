"""Which nodes of a graph need affine forms, and which nodes read them."""

from collections.abc import Sequence

from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.affine import Linear, Sum
from popqorn_train.bounds.backward import whole
from popqorn_train.bounds.gated import Blend, Gated
from popqorn_train.bounds.images import sources
from popqorn_train.bounds.node import Node, Nonlinear

_ELEMENTWISE = Sum, Gated, Blend, Activation


class FormReaders:
    """Who reads what in a forward pass.

    Args:
        nodes: of a graph, first to last.

    Attributes:
        wanted: nodes whose ranges are taken from their forms: what nonlinearities read.
        fused: linear nodes that one sum reads and nothing else; their forms are never made apart.
        readers: for every node those that read its form.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        nonlinear = [node for node in nodes if isinstance(node, Nonlinear)]
        self.wanted = {whole(parent) for node in nonlinear for parent in node.inputs}
        self.fused = self._find_fused(nodes)
        self.readers: dict[Node, list[Node]] = {node: [] for node in nodes}
        for node in reversed(nodes):
            moves = not node.affine and (self.readers[node] or node in self.wanted)
            if isinstance(node, Nonlinear) or moves:
                for source in self.sources(node):
                    self.readers[source].append(node)

    def _find_fused(self, nodes: Sequence[Node]) -> set[Node]:
        consumers: dict[Node, list[Node]] = {node: [] for node in nodes}
        for node in nodes:
            for parent in node.inputs:
                consumers[parent].append(node)
        return {
            node
            for node, found in consumers.items()
            if type(node) is Linear and len(node.shape) == 1 and not node.affine
            if len(found) == 1 and isinstance(found[0], Sum) and node not in self.wanted
        }

    def by_units(self, node: Node) -> bool:
        """Whether one node reads this one, unit by unit, with no linear node between."""
        found = self.readers[node]
        return len(found) == 1 and isinstance(found[0], _ELEMENTWISE) and node in found[0].inputs

    def sources(self, node: Node) -> list[Node]:
        """The nodes whose forms the form of a node is made of."""
        return [read.inputs[0] if read in self.fused else read for read in sources(node)]
