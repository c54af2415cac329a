"""A pass with affine forms that keeps what the joint bound of all gaps is made of (joint.py).

Here every error that a nonlinearity reads has a name, so that all arguments are linear functions
of the same symbols but for rounding.

B: batch, U: units.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.affine import Sum
from popqorn_train.bounds.backward import Enclosure
from popqorn_train.bounds.ellipses import Ellipse
from popqorn_train.bounds.enclosure import intersect
from popqorn_train.bounds.forms import Error, Form
from popqorn_train.bounds.forward import ForwardPass
from popqorn_train.bounds.gated import Blend, Gated, blended
from popqorn_train.bounds.images import Image, joined
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.outline import from_ball
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.bounds.symbols import Symbols
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.domain import Octagon
from popqorn_train.relaxations.gap_search import least_gap
from popqorn_train.relaxations.lines import Lines
from popqorn_train.relaxations.paraboloids import Smooth
from popqorn_train.relaxations.planes import Plane, Planes
from popqorn_train.relaxations.products import Product
from popqorn_train.relaxations.strips import LineStrip, PlaneStrip

Place = tuple[Node, int]  # a node, and which of its products


class Read(NamedTuple):
    """An argument of a nonlinearity: a node, its form, and the sign with which it is read."""

    node: Node
    form: Form
    sign: float = 1.0


class Gap(NamedTuple):
    """What a linear function misses of a nonlinearity.

    Attributes:
        place: where the nonlinearity is.
        reads: its arguments.
        strip: the linear function.
        domain: of the arguments.
        product: of two arguments; None for an activation of one.
    """

    place: Place
    reads: tuple[Read, ...]
    strip: LineStrip | PlaneStrip
    domain: Bounds | Octagon
    product: Product | None = None


class Name(NamedTuple):
    """The error of a node, as a symbol of its own for every unit.

    Attributes:
        first: place of the first one among named errors.
        half: ``(B, U)`` what a symbol is worth.
        size: ``(B, U)`` at least the sum of the absolute values of all terms of the form.
    """

    first: int
    half: Tensor
    size: Tensor


def smooth_curve(node: Node) -> Smooth | None:
    """The function of an activation, if it is known how much it bends."""
    curve: Any = node.curve if isinstance(node, Activation) else None
    return curve if hasattr(curve, "bend") and not getattr(curve, "miss", 0) else None


def has_quadratics(node: Node) -> bool:
    """Whether quadratics are known below what a linear function misses of a node."""
    return isinstance(node, Gated | Blend) or smooth_curve(node) is not None


class JointPass(ForwardPass):
    """Forms of everything that nonlinearities read, within what is already known.

    Args:
        output: the node to be bounded in the end.
        known: ranges of all nodes.
        ellipses: of the arguments of products, within which octagons are cut.
        relaxation: of nodes that have no quadratics.

    Attributes:
        gaps: one for every product and every activation, first to last.
        names: of the errors of nodes.
    """

    _takes_products: ClassVar[bool] = False  # every product has errors with names of its own

    def __init__(
        self,
        output: Node,
        known: Mapping[Node, Bounds],
        ellipses: Mapping[Place, list[Ellipse]],
        relaxation: Relaxation,
    ) -> None:
        super().__init__(output, least_gap, relaxation)
        self._known, self._ellipses = known, ellipses
        self.gaps: list[Gap] = []
        self.names: dict[Node, Name] = {}
        self._firsts: dict[Node, int] = {}
        for node in self._nonlinear:
            self._left[node] = max(self._left[node], 1)  # those that only the output reads too
        self._nonlinear = [node for node in self._nonlinear if not has_quadratics(node)]

    @property
    def symbols(self) -> Symbols:
        """What the forms are made of."""
        return self._symbols

    def run(self) -> Enclosure:
        """Visit every node once; then nodes that have quadratics are their linear functions."""
        super().run()
        strips: dict[Node, list[Any]] = {}
        for gap in self.gaps:
            strips.setdefault(gap.place[0], []).append(gap.strip)
        self.found.relaxations.update({node: _as_sides(node, of) for node, of in strips.items()})
        self.found = self.found._replace(ranges={**self._known, **self.found.ranges})
        return self.found

    def _range(self, node: Node) -> Bounds:
        known = self._known[node]
        return known if from_ball(node) else intersect(known, super()._range(node))

    def _visit(self, node: Node) -> None:
        if not has_quadratics(node):
            super()._visit(node)
            return
        forms = {read: joined(self._form(read)) for read in node.inputs}
        super()._visit(node)
        self.gaps += self._gaps(node, forms)

    def _gaps(self, node: Node, forms: Mapping[Node, Form]) -> Iterator[Gap]:
        strips = self._strips[node]
        if isinstance(node, Activation):
            (read,) = node.inputs
            yield Gap((node, 0), (Read(read, forms[read]),), strips, self.found.ranges[read])
        elif isinstance(node, Gated | Blend):
            factors = node.factors(*[self.found.ranges[parent] for parent in node.inputs])
            parts = zip(factors, strips, self._domains[node], strict=True)
            for index, ((product, x, y), strip, domain) in enumerate(parts):
                reads = tuple(Read(read.node, forms[read.node], read.sign) for read in (x, y))
                yield Gap((node, index), reads, strip, domain, product)

    def _error(self, node: Node, gap: Tensor | None = None, *, loose: bool = False) -> Error:
        found = super()._error(node, gap, loose=loose)
        if found.first is not None:
            self._firsts[node] = found.first
        return found

    def _made(self, node: Node) -> Image:
        made = super()._made(node)
        first = self._firsts.get(node)
        if first is not None and isinstance(made, Form) and made.center.ndim == 2:
            assert made.noise is not None
            start = first - made.noise.start
            own = made.noise.data[start : start + made.center.shape[1]]
            half = own.diagonal(dim1=0, dim2=2).expand_as(made.center)
            self.names[node] = Name(first, half, made.size)
        return made

    def _is_named(self, node: Node) -> bool:
        readers = self._reads.readers[node]
        added = len(readers) == 1 and isinstance(readers[0], Sum)
        return node in self._reads.wanted or not (added and self._reads.by_units(node))

    def _octagons(self, node: Gated | Blend) -> Iterator[Octagon]:
        for index, octagon in enumerate(super()._octagons(node)):
            for ellipse in self._ellipses.get((node, index), ()):
                octagon = ellipse.cut(octagon)
            yield octagon


def _as_sides(node: Node, strips: list[Any]) -> Any:
    """The linear function of a node in place of those below and above."""
    if isinstance(node, Activation):
        slope, middle, _ = strips[0]
        return Lines(slope, middle, slope, middle)
    planes = [Plane(*strip[:3]) for strip in strips]
    if isinstance(node, Gated):
        return Planes(planes[0], planes[0])
    both = blended(planes[0], planes[1])
    return both, both
