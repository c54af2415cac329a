"""One pass forward with affine forms: ranges of everything that nonlinearities read.

The range of a form (form_maker.py) is intersected with the interval; a form is forgotten as soon
as nobody reads it any more.
"""

import math

import torch
from torch import Tensor

from popqorn_train.bounds.backward import Enclosure, ancestors
from popqorn_train.bounds.concatenation import Stack
from popqorn_train.bounds.enclosure import intersect
from popqorn_train.bounds.form_maker import FormMaker
from popqorn_train.bounds.forms import Form
from popqorn_train.bounds.gated import PRODUCTS
from popqorn_train.bounds.images import Image, Stacked
from popqorn_train.bounds.node import Node, Nonlinear, Root
from popqorn_train.bounds.repeated_reads import without_repeats
from popqorn_train.perturbations.region import Bounds

_LIVE = 4  # forms as wide as the widest node that live at once, temporary ones included


def bytes_of_forms(output: Node, like: Tensor) -> int:
    """Estimate of what the forms of one sample take that live at once, from above.

    Every symbol has a coefficient in every unit: of a few nodes at once, and of all frames of a
    layer that another layer reads.
    """
    nodes = ancestors(output)
    errors = sum(math.prod(node.shape) for node in nodes if isinstance(node, Nonlinear))
    symbols = errors + sum(math.prod(node.shape) for node in nodes if isinstance(node, Root))
    widest = max((node.shape[0] for node in nodes if len(node.shape) == 1), default=1)
    stacked = sum(math.prod(node.shape) for node in nodes if isinstance(node, Stack))
    return like.element_size() * symbols * (_LIVE * widest + stacked)


class ForwardPass(FormMaker):
    """Ranges of the nodes before an output, and octagons of its products.

    Args: see ``FormMaker``.

    Attributes:
        found: ranges of every node that is read, and relaxations of the nonlinear ones.
    """

    def run(self) -> Enclosure:
        """Visit every node once, first to last."""
        for node in self._outline.read:
            self.found.ranges[node] = self._outline.affine.get(node) or self._range(node)
            if not node.affine:
                self._visit(node)
        self._relax(self._nonlinear)
        return self.found

    def _range(self, node: Node) -> Bounds:
        """Range of a node before its form is known."""
        bounds = node.range(*[self.found.ranges[parent] for parent in node.inputs])
        if node not in self._outline.repeated:
            return bounds
        return without_repeats(node, bounds, self.found.ranges)

    def _visit(self, node: Node) -> None:
        """Make the form of a node that moves, and forget those that nobody reads any more."""
        wanted = node in self._reads.wanted
        if isinstance(node, PRODUCTS):
            self._domains[node] = list(self._octagons(node))
        if (wanted or self._left[node]) and node not in self._forms:
            self._forms[node] = self._made(node)
        if wanted:
            tighter = self._measured(node)
            self.found.ranges[node] = intersect(self.found.ranges[node], tighter)
        sources = self._reads.sources(node)
        for source in sources:
            self._left[source] -= node in self._reads.readers[source]
        for done in (node, *sources):
            if not self._left[done]:
                self._forms.pop(done, None)

    def _measured(self, node: Node) -> Bounds:
        """Range of the form of a node, or of all frames; from now on its size too."""
        form = self._forms[node]
        if isinstance(form, Form):
            cut = self._reads.spans(node)
            widths = cut[0].sizes if cut else ()
            bounds, parts = self._symbols.measured_spans(form, widths)
            made: dict[Node, Image] = {span: parts[span.place] for span in cut}
            self._forms.update(made or {node: parts[0]})
            return bounds
        pairs = [self._symbols.measured(frame) for frame in form.frames]
        self._forms[node] = Stacked(tuple(frame for _, frame in pairs))
        ends = zip(*[bounds for bounds, _ in pairs], strict=True)
        return Bounds(*(torch.stack(end, 1) for end in ends))
