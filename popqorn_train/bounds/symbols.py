"""What the symbols of affine forms stand for, and how far a form reaches.

A coordinate of the input counts as a symbol of size 1 where the perturbation is a box: its
coefficients are multiplied by the half width. Any other perturbation says itself how far a linear
function of the input falls and rises.

B: batch, T: frames, N: features of a frame, n: symbols of a block.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from popqorn_train.bounds.affine import Sum
from popqorn_train.bounds.backward import ancestors, visits
from popqorn_train.bounds.block_sums import Block, added_blocks
from popqorn_train.bounds.concatenation import Projected
from popqorn_train.bounds.form_loops import banded, ranged
from popqorn_train.bounds.forms import Form, Term, constant_form, mapped, unit_of_rounding, weighted
from popqorn_train.bounds.images import spans
from popqorn_train.bounds.node import Node, Root
from popqorn_train.bounds.slices import Span
from popqorn_train.bounds.symbol_sums import absolute_sum, absolute_sums
from popqorn_train.kernels.library import is_recorded
from popqorn_train.perturbations.region import Bounds, Region, dot
from popqorn_train.perturbations.substitutions import Choices
from popqorn_train.relaxations.domain import Bands, Rectangle
from popqorn_train.relaxations.extremum import largest

_WIDER = 16.0  # units in the last place by which a band is widened, as in relaxer.py


class Symbols:
    """The symbols of one pass.

    Args:
        region: what moves the input.

    Attributes:
        count: of named errors so far.
    """

    def __init__(self, region: Region | Choices) -> None:
        self.region, self.count = region, 0
        self.boxed = isinstance(region, Region) and region.p == math.inf
        lower, upper = region.coordinate_bounds()
        self.center = region.box[0] if isinstance(region, Region) and self.boxed else region.value
        self._spans: tuple[Any, list[Form]] | None = None  # of the newest node
        self._even = self.boxed or (isinstance(region, Region) and not region.clipped)
        self.reach = torch.maximum(upper - self.center, self.center - lower)  # (B, T, N)
        self._coordinates = self.reach.shape[1:].numel()

    @property
    def total(self) -> int:
        """All symbols so far, coordinates of the input included."""
        return self.count + self._coordinates

    def name(self, units: int) -> int:
        """The first of as many new symbols."""
        self.count += units
        return self.count - units

    def affine(self, node: Node) -> Form:
        """The form of an affine function of the input, or of what does not move."""
        if node.region is None:
            return constant_form(_still(node).expand(len(self.center), *node.shape))
        if isinstance(node, Projected) and isinstance(node.layer.inputs[0], Root):
            layer, t = node.layer, node.t
            center = linear(self.center[:, t], layer.weight, layer.bias)
            return self._of_input(layer.matrix.turned[None, :, None], center, t, layer.bias)
        if isinstance(node, Span):
            return self._span(node)
        if isinstance(node, Sum):
            return weighted([Term(self.affine(part)) for part in node.inputs], node.constant)
        count = math.prod(node.shape)
        unit = torch.eye(count, dtype=self.center.dtype, device=self.center.device)
        return _shaped(self.linear(node, unit.view(1, count, *node.shape)), node.shape)

    def linear(self, node: Node, rows: Tensor) -> Form:
        """The form ``(B, K)`` of ``sum(rows * node)``, for a node that is affine in the input.

        Args:
            node: what is added up.
            rows: ``(B or 1, K, *node.shape)``.
        """
        slope, constant = self._walked(node, rows)
        first, stop = _frames_of(slope)
        slope = slope[:, :, :stop]
        center = (slope * self.center[:, None, :stop]).flatten(2).sum(-1) + constant
        columns = slope[:, :, first:].permute(2, 3, 0, 1)
        form = self._of_input(columns, center, first, constant)
        return self._with_rounding_of_walk(node, rows, form)

    def _span(self, node: Span) -> Form:
        """The form of a span, made together with all others of the same node."""
        kind = node.inputs[0], node.sizes
        if self._spans is None or self._spans[0] != kind:
            self._spans = kind, spans(self.affine(node.inputs[0]), node.sizes)
        return self._spans[1][node.place]

    @torch.no_grad()
    def _with_rounding_of_walk(self, node: Node, rows: Tensor, form: Form) -> Form:
        """A form whose coefficients were added up node by node, and may have cancelled out."""
        sizes: dict[Node, Tensor] = {}
        for passed in ancestors(node):
            sizes[passed] = passed.size(None, *[sizes[parent] for parent in passed.inputs])
        steps = 1 + sum(not passed.moves for passed in sizes)
        most = max(math.prod(passed.shape) for passed in sizes)
        size = torch.maximum(form.size, dot(rows.abs(), sizes[node][:, : rows.shape[2]]))
        own = steps * unit_of_rounding(most, size.dtype) * size
        return form._replace(size=size, own=own if form.own is None else form.own + own)

    def _of_input(
        self, columns: Tensor, center: Tensor, first: int, constant: Tensor | None
    ) -> Form:
        """Coefficients ``(t, N, B or 1, K)`` on the frames from ``first`` on, as a form."""
        frames, width = slice(first, first + len(columns)), self.center.shape[2]
        columns = columns.contiguous().flatten(0, 1)  # neighbouring units: loops copy any others
        reach, middle = (part[:, frames].flatten(1) for part in (self.reach, self.center))
        wide = reach.T[..., None]
        data = columns * wide if self.boxed else columns.expand(-1, len(center), -1)
        with torch.no_grad():
            size = _sized(columns.abs(), reach + middle.abs())
            size = size if constant is None else size + constant.abs()
            own = size * unit_of_rounding(len(columns), size.dtype)
        return Form(center, Block(first * width, data), None, own, size)

    def _walked(self, node: Node, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes ``(B or 1, K, t, N)`` of every row on the input, and the constants."""
        constant = self.center.new_zeros(1, rows.shape[1])
        for visited, weight, tape in visits([(node, rows)], len(self.center)):
            if isinstance(visited, Root):
                return weight, constant
            left = visited.backward(weight, tape, None)
            constant = constant if left is None else constant + left
        raise RuntimeError("a node that moves without reading the input")

    def measured(self, form: Form) -> tuple[Bounds, Form]:
        """Range of a form, with the rounding of adding it up, and the form with its size."""
        bounds, (sized,) = self.measured_spans(form, ())
        return bounds, sized

    def measured_spans(self, form: Form, widths: Sequence[int]) -> tuple[Bounds, list[Form]]:
        """The same of a form that is cut into spans of these widths from now on, if any.

        Spans of one width may lie apart in it, see ``weighted``.
        """
        if self.boxed:
            rounding = unit_of_rounding(self.total, form.center.dtype)
            known = ranged(form, rounding, widths)
            if known is not None:
                return known
        if widths and form.center.ndim > 2:
            form = mapped(form, lambda data: data.flatten(-2))
        bounds = self._range(form)
        return bounds, spans(self._sized(form, bounds), widths)

    def _range(self, form: Form) -> Bounds:
        """Range of a form, in operations of torch."""
        low, high = self._spread(form.inputs, form.noise)
        if form.own is not None:
            low, high = low - form.own, high + form.own
        low, high = self._rounded(low, high)
        rest = 4 * torch.finfo(low.dtype).eps * form.center.detach().abs()
        return Bounds(form.center + low - rest, form.center + high + rest)

    def _sized(self, form: Form, bounds: Bounds) -> Form:
        """A form with its range as the sum of the absolute values of its terms.

        The sums that are known from its inputs grow with every layer, as intervals do. A linear
        function of a norm ball reaches as far whatever the signs of its coefficients are; of
        anything else, the box around it is taken.
        """
        size = largest(*bounds).detach()
        if not self._even and form.inputs is not None:
            first, count = form.inputs.start, len(form.inputs.data)
            reach = self.reach.flatten(1)[:, first : first + count].T
            columns = form.inputs.data.abs().flatten(2)
            size = size + torch.einsum("nbf,nb->bf", columns, reach).view_as(size)
        return form._replace(size=size)

    def _rounded(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of a sum over all symbols, moved out by its rounding."""
        more = unit_of_rounding(self.total, low.dtype) * torch.maximum(high, -low).detach()
        return low - more, high + more

    def _spread(self, inputs: Block | None, noise: Block | None) -> tuple[Tensor, Tensor]:
        """How far both parts fall and rise, ``(B, *shape)``."""
        zero = self.center.new_zeros(())
        reach = zero if noise is None else absolute_sum(noise.data)
        if inputs is None:
            return -reach, reach
        if self.boxed:
            reach = reach + absolute_sum(inputs.data)
            return -reach, reach
        low, high = self._of_ball(inputs)
        return low - reach, high + reach

    def _of_ball(self, inputs: Block) -> tuple[Tensor, Tensor]:
        """How far a linear function of the input falls and rises."""
        width, shape = self.center.shape[2], inputs.data.shape[1:]
        slope = inputs.data.reshape(-1, width, shape[0], shape[1:].numel()).permute(2, 3, 0, 1)
        first = inputs.start // width
        low = self.region.fall(slope, first).view(shape)
        return low, -low if self._even else -self.region.fall(-slope, first).view(shape)

    def _spreads(self, x: Form, y: Form, on_x: Tensor, on_y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """How far the weighted sum of two forms falls and rises, and the difference."""
        noises = absolute_sums(x.noise, y.noise, on_x, on_y)
        if self.boxed:
            of_input = absolute_sums(x.inputs, y.inputs, on_x, on_y)
            reaches = [one + other for one, other in zip(noises, of_input, strict=True)]
            return [(-reach, reach) for reach in reaches]
        found = []
        for reach, on in zip(noises, (on_y, -on_y), strict=True):
            terms = Term(x, on_x), Term(y, on)
            inputs = added_blocks([part for t in terms for part in t.part(t.form.inputs)])
            if inputs is None:
                found.append((-reach, reach))
            else:
                low, high = self._of_ball(inputs)
                found.append((low - reach, high + reach))
        return found

    def bands(self, x: Form, y: Form, signs: tuple[float, float], box: Rectangle) -> Bands:
        """Bands of the octagon of two forms.

        Args:
            x: of the first argument of a product.
            y: of the second one.
            signs: -1 where the product reads minus the form.
            box: ranges of the arguments.
        """
        if self.boxed:
            rounding = unit_of_rounding(self.total, x.center.dtype)
            known = banded(x, y, signs, box, rounding)
            if known is not None:
                return known
        return self._bands(x, y, signs, box)

    def _bands(self, x: Form, y: Form, signs: tuple[float, float], box: Rectangle) -> Bands:
        """The same, in operations of torch."""
        scale = box.scale()
        on_x, on_y = signs[0] / scale.half_x, signs[1] / scale.half_y
        own = x.center.new_zeros(())
        for form, factor in ((x, on_x), (y, on_y)):
            own = own if form.own is None else own + form.own * factor.abs()
        p = x.center * on_x - scale.x / scale.half_x
        q = y.center * on_y - scale.y / scale.half_y
        size = largest(box.lx, box.ux) / scale.half_x + largest(box.ly, box.uy) / scale.half_y + 2
        wide = own + _WIDER * torch.finfo(p.dtype).eps * size.detach()
        flat_x, flat_y = box.flat()
        uncut = flat_x | flat_y  # there, rounding would decide
        ends: list[Tensor] = []
        spreads = self._spreads(x, y, on_x, on_y)
        for middle, spread in zip((p + q, p - q), spreads, strict=True):
            low, high = self._rounded(*spread)
            low, high = (middle + low - wide).clamp(-2, 2), (middle + high + wide).clamp(-2, 2)
            ends.append(torch.minimum(low, high).masked_fill(uncut, -2))
            ends.append(torch.maximum(low, high).masked_fill(uncut, 2))
        return Bands(*ends)


def _frames_of(slope: Tensor) -> tuple[int, int]:
    """The first frame of ``(B or 1, K, t, N)`` that is not 0, and the end of the last one."""
    if is_recorded(slope):
        return 0, slope.shape[2]
    frames = (slope != 0).any(3).flatten(0, 1).any(0).nonzero()[:, 0]
    return (int(frames[0]), int(frames[-1]) + 1) if len(frames) else (0, 1)


def _sized(columns: Tensor, most: Tensor) -> Tensor:
    """Sums ``(B, K)`` of columns ``(n, B or 1, K)`` times ``(B, n)``."""
    if columns.shape[1] == 1:
        return most @ columns[:, 0]
    return torch.einsum("nbk,bn->bk", columns, most)


def _shaped(form: Form, shape: tuple[int, ...]) -> Form:
    """A flat form as one of a shape."""
    return mapped(form, lambda x: x.reshape(*x.shape[:-1], *shape))


def _still(node: Node) -> Tensor:
    """What a node is that does not move."""
    values = [_still(parent) for parent in node.inputs]
    return node.range(*[Bounds(value, value) for value in values]).lower
