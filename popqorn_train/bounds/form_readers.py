"""Which nodes of a graph need affine forms, and which nodes read them."""

from collections.abc import Sequence

from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.affine import Linear, Sum
from popqorn_train.bounds.gated import PRODUCTS
from popqorn_train.bounds.images import sources
from popqorn_train.bounds.node import Node, Nonlinear
from popqorn_train.bounds.slices import Span, whole

_ELEMENTWISE = Sum, Activation, *PRODUCTS


class FormReaders:
    """Who reads what in a forward pass.

    Args:
        nodes: of a graph, first to last.
        products: whether products may be worked out in the sum that reads them.

    Attributes:
        wanted: nodes whose ranges are taken from their forms: what nonlinearities read.
        fused: linear nodes that one sum reads and nothing else; their forms are never made apart.
        products: products of which the same is true, and that sum.
        readers: for every node those that read its form.
    """

    def __init__(self, nodes: Sequence[Node], *, products: bool = True) -> None:
        nonlinear = [node for node in nodes if isinstance(node, Nonlinear)]
        self.wanted = {whole(parent) for node in nonlinear for parent in node.inputs}
        self.fused, known = self._find_fused(nodes)
        self.products = known if products else {}
        self.readers: dict[Node, list[Node]] = {node: [] for node in nodes}
        self._sources: dict[Node, list[Node]] = {}
        for node in reversed(nodes):
            moves = not node.affine and (self.readers[node] or node in self.wanted)
            if isinstance(node, Nonlinear) or moves:
                for source in self.sources(node):
                    self.readers[source].append(node)

    def _find_fused(self, nodes: Sequence[Node]) -> tuple[set[Node], dict[Node, Sum]]:
        consumers: dict[Node, list[Node]] = {node: [] for node in nodes}
        for node in nodes:
            for parent in node.inputs:
                consumers[parent].append(node)
        linear, products = set[Node](), dict[Node, Sum]()
        for node, found in consumers.items():
            if len(found) != 1 or len(node.shape) > 1 or node in self.wanted or node.affine:
                continue
            only = found[0]
            if not isinstance(only, Sum):
                continue
            if type(node) is Linear:
                linear.add(node)
            elif isinstance(node, PRODUCTS):
                products[node] = only
        return linear, products

    def by_units(self, node: Node) -> bool:
        """Whether one node reads this one, unit by unit, with no linear node between."""
        found = list(self.readers[node])
        for reader in self.readers[node]:
            if reader in self.products and self.products[reader] in found:
                found.remove(self.products[reader])  # reads it as the product does
        return len(found) == 1 and isinstance(found[0], _ELEMENTWISE) and node in found[0].inputs

    def spans(self, node: Node) -> list[Span]:
        """The spans of a node that nobody reads as a whole."""
        readers = self.readers[node]
        cut = [reader for reader in readers if isinstance(reader, Span) and len(node.shape) == 1]
        alike = len({span.sizes for span in cut}) == 1
        return cut if alike and len(cut) == len(readers) else []

    def sources(self, node: Node) -> list[Node]:
        """The nodes whose forms the form of a node is made of."""
        if node in self._sources:
            return self._sources[node]
        found = list[Node]()
        for read in sources(node):
            inner = read in self.fused or read in self.products
            found += read.inputs if inner and isinstance(node, Sum) else [read]
        self._sources[node] = found
        return found
