"""The affine form of every kind of node, from the forms of those that it reads.

Every nonlinearity is replaced by one linear function and an error. The octagons of products are
read off the forms of both arguments. Symbols a frame: 2 H of an LSTM (those of i g and f c share
one), H of a GRU or an RNN.

B: batch, T: frames, H: units.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.affine import Linear, Sum
from popqorn_train.bounds.backward import Enclosure, ancestors
from popqorn_train.bounds.bilinear import Bilinear
from popqorn_train.bounds.enclosure import backward_range, intersect, relaxed
from popqorn_train.bounds.form_readers import FormReaders
from popqorn_train.bounds.forms import Error, Form, Term, constant_form, mapped, weighted
from popqorn_train.bounds.frame_tangents import tangent_forms
from popqorn_train.bounds.gated import PRODUCTS, Blend, Gated
from popqorn_train.bounds.images import Image, Stacked, frame_of, image, joined, spans
from popqorn_train.bounds.maximum import Maximum
from popqorn_train.bounds.mixing import Mixing, mapped_by
from popqorn_train.bounds.node import Node, Nonlinear
from popqorn_train.bounds.outline import Outline
from popqorn_train.bounds.peak import Peak
from popqorn_train.bounds.quadratic import Quadratic
from popqorn_train.bounds.reductions import Reduction
from popqorn_train.bounds.relaxer import KnownDomains, Relaxation
from popqorn_train.bounds.slices import Span
from popqorn_train.bounds.symbols import Symbols
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.domain import Domain, Octagon, Rectangle
from popqorn_train.relaxations.products import Product
from popqorn_train.relaxations.strips import PlaneStrip

_REDUCTIONS = Maximum, Reduction
_MOST = 2**24  # numbers in a form of one sample; what would be larger is left to its range

Plane = Callable[[Product, Domain], PlaneStrip]


class FormMaker:
    """What makes the form of a node from those that it reads.

    Args:
        output: the node to be bounded in the end.
        plane: one plane through a product (strips.py).
        relaxation: of the backward bounds that are made from it.
        outline: of the graph; None works it out.

    Attributes:
        found: ranges of every node that is read, and relaxations of the nonlinear ones.
    """

    _takes_products: ClassVar[bool] = True  # whether sums work out products in their place

    def __init__(
        self, output: Node, plane: Plane, relaxation: Relaxation, outline: Outline | None = None
    ) -> None:
        assert output.region is not None
        self._outline = outline or Outline(output)
        self._plane, self._relaxation = plane, relaxation
        self._symbols = Symbols(output.region)
        self.found = Enclosure({}, {})
        self._domains: dict[Node, list[Octagon]] = {}
        self._strips: dict[Node, Any] = {}
        self._forms: dict[Node, Image] = {}
        self._nonlinear = self._outline.nonlinear
        self._reads = FormReaders(self._outline.nodes, products=self._takes_products)
        self._left = {node: len(readers) for node, readers in self._reads.readers.items()}

    def _form(self, node: Node) -> Image:
        """The form of a node that another one reads."""
        if node not in self._forms:
            assert node.affine
            large = node.region is not None and self._is_large(node)
            self._forms[node] = self._as_box(node) if large else self._symbols.affine(node)
        return self._forms[node]

    def _made(self, node: Node) -> Image:
        """The form of a node that is not affine."""
        if isinstance(node, PRODUCTS):
            return self._product(node)
        if isinstance(node, Quadratic):
            errors = functools.partial(self._error, node)
            x = self.found.ranges[node.inputs[0]]
            return tangent_forms(node, x, self._symbols, errors)
        if isinstance(node, Peak):
            return self._box(self.found.ranges[node])
        return self._read(node, [self._form(source) for source in self._reads.sources(node)])

    def _read(self, node: Node, images: Sequence[Image]) -> Image:
        """The form of a node from those that it reads."""
        if isinstance(node, Span) and isinstance(images[0], Form):
            return self._span(node, images[0])
        if isinstance(node, Activation):
            return self._activation(node, images[0])
        if isinstance(node, _REDUCTIONS):
            return self._reduction(node, images[0])
        if isinstance(node, Mixing):
            return self._mixing(node, [joined(part) for part in images])
        if isinstance(node, Bilinear):
            return self._bilinear(node, *images)
        if isinstance(node, Sum) and all(isinstance(part, Form) for part in images):
            return self._sum(node)
        apart = any(isinstance(part, Stacked) for part in images)
        if isinstance(node, Nonlinear) or (apart and self._is_large(node)):
            return self._as_box(node)
        return image(node, *images)

    def _sum(self, node: Sum) -> Form:
        """The form of a sum, of which linear terms and products are worked out in its place."""
        terms, gaps = list[Term](), list[Tensor]()
        constants = [] if node.constant is None else [node.constant]
        for parent in node.inputs:
            if isinstance(parent, PRODUCTS) and parent in self._reads.products:
                scaled, middle, gap = self._planes(parent)
                terms, gaps, constants = terms + scaled, [*gaps, gap], [*constants, middle]
            elif isinstance(parent, Linear) and parent in self._reads.fused:
                terms.append(Term(joined(self._form(parent.inputs[0])), weight=parent.weight))
                constants += [] if parent.bias is None else [parent.bias]
            else:
                terms.append(Term(joined(self._form(parent))))
        total = functools.reduce(torch.add, gaps) if gaps else None
        error = self._error(node, total, loose=any(term.form.loose for term in terms))
        # Of more than two, the rounding of the first sums is not one of the whole.
        like = len(self._symbols.center), *node.shape
        terms += [Term(constant_form(constant.expand(like))) for constant in constants[2:]]
        constant = functools.reduce(torch.add, constants[:2]) if constants else None
        return weighted(terms, constant, error, self._parted(node))

    def _parted(self, node: Node) -> int:
        """How many spans of one width a node is cut into when it is measured, else 1."""
        cut = self._reads.spans(node) if node in self._reads.wanted else []
        even = bool(cut) and len(set(cut[0].sizes)) == 1 and sum(cut[0].sizes) == node.shape[0]
        return len(cut[0].sizes) if even and self._symbols.boxed else 1

    def _span(self, node: Span, whole: Form) -> Image:
        """The form of a span, made together with all others of the same node."""
        pieces = spans(whole, node.sizes)
        for other in self._reads.readers[node.inputs[0]]:
            if isinstance(other, Span) and other.sizes == node.sizes and self._left[other]:
                self._forms[other] = pieces[other.place]
        return pieces[node.place]

    def _is_large(self, node: Node) -> bool:
        """Whether one form of a whole sequence would hold too many numbers."""
        return len(node.shape) > 1 and math.prod(node.shape) * self._symbols.total > _MOST

    def _error(self, node: Node, gap: Tensor | None = None, *, loose: bool = False) -> Error:
        """The error of a node; with names, unless one node reads it, unit by unit."""
        if not self._is_named(node) or (gap is None and not loose):
            return Error(gap)
        units = math.prod(node.shape) if gap is None else gap[0].numel()
        return Error(gap, self._symbols.name(units))

    def _is_named(self, node: Node) -> bool:
        """Whether the errors of a node get names, if there are any."""
        return not self._reads.by_units(node)

    def _octagons(self, node: Gated | Blend) -> Iterator[Octagon]:
        """The domain of every product of a node."""
        for _, x, y in node.factors(*[self.found.ranges[parent] for parent in node.inputs]):
            box = Rectangle(*x.bounds, *y.bounds)
            forms = [joined(self._form(argument.node)) for argument in (x, y)]
            yield Octagon(box, self._symbols.bands(forms[0], forms[1], (x.sign, y.sign), box))

    def _product(self, node: Gated | Blend) -> Form:
        """One plane through every product of a node."""
        terms, middle, gap = self._planes(node)
        return weighted(terms, middle, self._error(node, gap))

    def _planes(self, node: Gated | Blend) -> tuple[list[Term], Tensor, Tensor]:
        """The terms of one plane through every product of a node, its middle and its gap."""
        factors = node.factors(*[self.found.ranges[parent] for parent in node.inputs])
        strips = [
            self._plane(product, domain)
            for (product, *_), domain in zip(factors, self._domains[node], strict=True)
        ]
        self._strips[node] = strips
        scales: dict[Node, Tensor] = {}
        for (_, *arguments), strip in zip(factors, strips, strict=True):
            for argument, slope in zip(arguments, strip[:2], strict=True):
                before = scales.get(argument.node)
                slope = slope if argument.sign == 1 else argument.sign * slope
                scales[argument.node] = slope if before is None else before + slope
        terms = [Term(joined(self._form(read)), scale) for read, scale in scales.items()]
        middle, gap = (
            functools.reduce(torch.add, [strip[place] for strip in strips]) for place in (2, 3)
        )
        return terms, middle, gap

    def _activation(self, node: Activation, x: Image) -> Image:
        """One line through every unit; a sequence frame by frame."""
        strip = node.strip(self.found.ranges[node.inputs[0]])
        self._strips[node] = strip

        def of(form: Form, slope: Tensor, middle: Tensor, half: Tensor) -> Form:
            return weighted([Term(form, slope)], middle, self._error(node, half))

        if isinstance(x, Form):
            return of(x, *strip)
        columns = zip(x.frames, *(part.unbind(1) for part in strip), strict=True)
        return Stacked(tuple(of(*column) for column in columns))

    def _bilinear(self, node: Bilinear, x: Image, y: Image) -> Image:
        """The strip of the product of two nodes, frame by frame where both are kept so."""
        strip = node.strip(*[self.found.ranges[p] for p in node.inputs])

        def of(x: Form, y: Form, on_x: Tensor, on_y: Tensor, middle: Tensor, half: Tensor) -> Form:
            size = half.shape[-1]  # one number may be a factor of all
            y = mapped(y, lambda data: data.expand(*data.shape[:-1], size))
            return weighted([Term(x, on_x), Term(y, on_y)], middle, self._error(node, half))

        if not (isinstance(x, Stacked) and isinstance(y, Stacked)):
            return of(joined(x), joined(y), *strip)
        columns = zip(x.frames, y.frames, *(part.unbind(1) for part in strip), strict=True)
        return Stacked(tuple(of(*column) for column in columns))

    def _mixing(self, node: Mixing, forms: Sequence[Form]) -> Form:
        """The strip of a node that adds up many entries."""
        maps, middle, half = node.strip(*[self.found.ranges[p] for p in node.inputs])
        terms = [Term(mapped_by(*pair)) for pair in zip(forms, maps, strict=True)]
        return weighted(terms, middle, self._error(node, half))

    def _reduction(self, node: Maximum | Reduction, x: Image) -> Form:
        """One linear function of all entries that are put together."""
        slopes, middle, half = node.strip(self.found.ranges[node.inputs[0]])
        terms = [Term(frame_of(x, place), slope) for place, slope in enumerate(slopes.unbind(1))]
        return weighted(terms, middle, self._error(node, half))

    def _as_box(self, node: Node) -> Image:
        """A form that knows no more of a node than its range; a sequence frame by frame."""
        self._relax([past for past in ancestors(node) if isinstance(past, Nonlinear)])
        bounds = intersect(self.found.ranges[node], backward_range(node, self.found))
        self.found.ranges[node] = bounds
        if len(node.shape) < 2:
            return self._box(bounds)
        frames = zip(*(end.unbind(1) for end in bounds), strict=True)
        return Stacked(tuple(self._box(Bounds(*ends)) for ends in frames))

    def _box(self, bounds: Bounds) -> Form:
        lower, upper = (end.expand(self._symbols.center.shape[0], *end.shape[1:]) for end in bounds)
        half = (upper - lower) / 2
        error = Error(half, self._symbols.name(half[0].numel()))
        return weighted([Term(constant_form((lower + upper) / 2))], None, error)

    def _relax(self, nodes: Sequence[Nonlinear]) -> None:
        """Enclose nodes between linear functions, on the octagons that are known."""
        new = [node for node in nodes if node not in self.found.relaxations]
        found = relaxed(new, self.found.ranges, self._relaxer)
        self.found.relaxations.update(found)

    def _relaxer(self, nodes: Sequence[Nonlinear]) -> KnownDomains:
        """A relaxer for nodes that are enclosed together."""
        return KnownDomains(self._relaxation, [self._domains.get(node, []) for node in nodes])
