"""A margin, bounded below by one quadratic function of the symbols of affine forms.

Let p_j be a linear function beside every nonlinearity f_j, and z_j its arguments. One backward
pass in which p_j takes the place of f_j, with slope A_j on it, leaves an identity at every x:

    margin(x)  =  constant + slope . x + sum_j A_j (f_j - p_j)(z_j(x))

Every A_j (f_j - p_j) lies above a quadratic function of z_j (paraboloids.py), and the z_j are
linear functions of the same symbols. With xi for the coordinates of x, on their scale, and for
the errors of the forms,

    margin(x)  >=  constant + linear . xi + xi . matrix xi        wherever xi can be

All is added up in float64, whatever precision the forms have, and lowered by its rounding.

B: batch, n: symbols, U: units, R: rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.affine import full
from popqorn_train.bounds.backward import Enclosure, ancestors, sizes_of, visits
from popqorn_train.bounds.joint_pass import Gap, JointPass, Read, has_quadratics, smooth_curve
from popqorn_train.bounds.node import Logits, Node, Root
from popqorn_train.bounds.roundoff import rounding_error
from popqorn_train.bounds.symbols import Symbols
from popqorn_train.nested import map_nested
from popqorn_train.perturbations.region import Region
from popqorn_train.relaxations.domain import Octagon
from popqorn_train.relaxations.paraboloids import Axis, Quadratic, below_curve, below_product

F64 = torch.float64


class Vector(NamedTuple):
    """How symbols make one vector xi.

    Attributes:
        inputs: how many coordinates of the input come first.
        total: of all symbols.
        unit: ``(B, inputs)`` what a coordinate of xi is worth in coefficients of forms.
        center: ``(B, inputs)`` the input where xi is 0.
        reach: ``(B, inputs)`` what a coordinate of xi is worth in the input.
        group: ``(n,)`` symbols of one group have a norm of at most 1; None makes each its own.
    """

    inputs: int
    total: int
    unit: Tensor
    center: Tensor
    reach: Tensor
    group: Tensor | None


class Rows(NamedTuple):
    """Arguments on their axes: ``center + data xi``, give or take ``own``.

    Attributes:
        read: which arguments.
        axis: the scale that they are measured on.
        center: ``(B, U)``.
        data: ``(B, U, n)``.
        own: ``(B, U)``, not negative.
    """

    read: Read
    axis: Axis
    center: Tensor
    data: Tensor
    own: Tensor


class QuadraticForm(NamedTuple):
    """``constant + linear . xi + xi . matrix xi``.

    Attributes:
        constant: ``(B,)``.
        linear: ``(B, n)``.
        matrix: ``(B, n, n)``, symmetric.
        group: see ``Vector``.
        rows: the arguments of every nonlinearity.
    """

    constant: Tensor
    linear: Tensor
    matrix: Tensor
    group: Tensor | None
    rows: Sequence[tuple[Gap, Sequence[Rows]]]


def is_supported(output: Node) -> bool:
    """Whether a node has quadratics, and a group is known of what moves.

    Groups are those of l_inf and l_2 balls, and of boxes.
    """
    grouped = isinstance(output.region, Region) and output.region.p in (2, torch.inf)
    return grouped and any(has_quadratics(node) for node in ancestors(output))


def vector_of(symbols: Symbols, gaps: Sequence[Gap]) -> Vector:
    """The symbols that arguments of nonlinearities are made of."""
    region, inputs = symbols.region, symbols.reach[0].numel()
    assert isinstance(region, Region)
    noise = [read.form.noise for gap in gaps for read in gap.reads]
    count = inputs + max((block.stop for block in noise if block is not None), default=0)
    center, reach = (x.to(F64).flatten(1) for x in (symbols.center, symbols.reach))
    if symbols.boxed:
        return Vector(inputs, count, torch.ones_like(reach), center, reach, None)
    epsilon = region.epsilon[..., None].to(F64)
    if region.scope == "sequence":
        epsilon = epsilon.amax(1, keepdim=True) * region.moved[..., None]
    scale = 1.0 if region.scale is None else region.scale.to(F64)
    reach = (epsilon * scale).expand(symbols.reach.shape).flatten(1)
    time, width = symbols.reach.shape[1:]
    frame = torch.arange(time, device=reach.device).repeat_interleave(width)
    frame = frame if region.scope == "frame" else torch.zeros_like(frame)
    rest = torch.arange(count - inputs, device=reach.device) + 1 + int(frame[-1])
    return Vector(inputs, count, reach, center, reach, torch.cat([frame, rest]))


def rows_of(read: Read, axis: Axis, vector: Vector) -> Rows:
    """An argument on its axis."""
    form, (batch, units) = read.form, axis.half.shape
    data = axis.half.new_zeros(batch, units, vector.total)
    parts = ((form.inputs, 0, vector.unit[:, None]), (form.noise, vector.inputs, None))
    for block, first, unit in parts:
        if block is not None:
            places = slice(first + block.start, first + block.stop)
            columns = block.data.reshape(*block.data.shape[:2], -1).to(F64).permute(1, 2, 0)
            own = 1.0 if unit is None else unit[..., block.start : block.stop]
            data[..., places] = columns * own * read.sign / axis.half[..., None]
    center = (read.sign * flat(form.center).to(F64) - axis.middle) / axis.half
    own = torch.zeros_like(center) if form.own is None else flat(form.own) / axis.half
    return Rows(read, axis, center, data, own.expand_as(center))


def flat(x: Tensor) -> Tensor:
    """All entries of a node in one row ``(B, U)``, also of one that is a number."""
    return x.reshape(len(x), -1)


def linear_part(
    output: Logits, row: Tensor, found: Enclosure
) -> tuple[Tensor, Tensor, dict[Node, Tensor]]:
    """The identity of one row ``(B, C)`` of the output.

    Args:
        output: what is bounded.
        row: weights of its entries.
        found: ranges of all nodes, and the linear function in place of every nonlinearity.

    Returns:
        The constant ``(B,)``, lowered by the rounding of all, slopes ``(B, n)`` on the input, and
        slopes ``(B, U)`` on every node.
    """
    sizes, slopes = sizes_of(output, found), {}
    constant, on_input = row.new_zeros(len(row), 1), row.new_zeros(())
    for node, slope, tape in visits([(output, row[:, None])], len(row)):
        whole = full(slope, node.shape)[:, 0]
        slopes[node] = flat(whole.expand(len(row), *node.shape))
        if not node.moves:
            constant = constant - rounding_error(slope, sizes[node])
        if isinstance(node, Root):
            on_input = slopes[node]
        else:
            left = node.backward(slope, tape, found.relaxations.get(node))
            constant = constant if left is None else constant + left
    constant = constant - torch.finfo(row.dtype).tiny ** 0.5
    return constant[:, 0].to(F64), on_input.to(F64), slopes


def quadratic_of(gap: Gap, slope: Tensor) -> tuple[Quadratic, Sequence[Axis]]:
    """A quadratic below what is missed, times the slope ``(B, U)`` on it."""
    size, sign = slope.abs(), torch.where(slope < 0, -1.0, 1.0).to(slope)
    strip = map_nested(gap.strip, Tensor, lambda x: flat(x).expand_as(slope).to(F64))
    axes: Sequence[Axis]
    if isinstance(gap.domain, Octagon):
        assert gap.product is not None
        found, axes = below_product(gap.product, gap.domain, strip, sign)
    else:
        curve = smooth_curve(gap.place[0])
        assert curve is not None
        lower, upper = (flat(end).expand_as(slope).to(F64) for end in gap.domain)
        found, axis = below_curve(curve, lower, upper, strip, sign)
        axes = (axis,)
    return Quadratic(*[part * size for part in found]), axes


class _Sum:
    """Adds quadratic functions of arguments up.

    Attributes:
        constant: see ``QuadraticForm``; it is lowered by what the rounding of arguments changes.
        linear: likewise.
        size: ``(B,)`` at least the sum of the absolute values of all terms.
    """

    def __init__(self, constant: Tensor, on_input: Tensor, vector: Vector) -> None:
        center, reach = vector.center, vector.reach
        self.constant = constant + (on_input * center).sum(1)
        self.linear = on_input.new_zeros(len(on_input), vector.total)
        self.linear[:, : vector.inputs] = on_input * reach
        self.size = constant.abs() + (on_input.abs() * (center.abs() + reach.abs())).sum(1)
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def add(self, quadratic: Quadratic, rows: Sequence[Rows]) -> None:
        """Add a quadratic of one or two arguments."""
        one, on_p, on_q, pp, pq, qq = quadratic
        zero = torch.zeros_like(one)
        p, q = rows[0].center, rows[1].center if len(rows) > 1 else zero
        parts = one + on_p * p + on_q * q + pp * p * p + pq * p * q + qq * q * q
        self.constant = self.constant + parts.sum(1)
        slopes = on_p + 2 * pp * p + pq * q, on_q + 2 * qq * q + pq * p
        reach, off = [zero, zero], [zero, zero]
        for k, row in enumerate(rows):
            self.linear = self.linear + (slopes[k][:, None] @ row.data)[:, 0]
            reach[k], off[k] = row.center.abs() + row.data.abs().sum(-1), row.own
            own = (pp, qq)[k][..., None] * row.data
            mixed = own if len(rows) == 1 else own + pq[..., None] / 2 * rows[1 - k].data
            self._pairs.append((row.data, mixed))
        one, on_p, on_q, pp, pq, qq = (part.abs() for part in quadratic)
        p, q = reach
        sizes = one + on_p * p + on_q * q + pp * p * p + pq * p * q + qq * q * q
        self.size = self.size + sizes.sum(1)
        # The true arguments lie on the axes, from -1 to 1.
        d, e = off
        moved = on_p * d + on_q * e + pp * d * (2 + d) + qq * e * (2 + e) + pq * (d + e + d * e)
        self.constant = self.constant - moved.sum(1)

    def total(self) -> tuple[Tensor, Tensor, Tensor]:
        """Constant, linear part and matrix."""
        left, right = (torch.cat(parts, 1) for parts in zip(*self._pairs, strict=True))
        matrix = left.mT @ right
        count = left.shape[1] + self.linear.shape[1] + 64
        lower = count * torch.finfo(F64).eps * self.size
        return self.constant - lower, self.linear, (matrix + matrix.mT) / 2


def bounded_below(output: Logits, row: Tensor, found: JointPass) -> QuadraticForm:
    """Bound a margin below.

    Args:
        output: logits of pairs.
        row: ``(B, C)`` their margins.
        found: a pass that was not run yet.
    """
    enclosure = found.run()
    constant, on_input, slopes = linear_part(output, row, enclosure)
    gaps = [gap for gap in found.gaps if gap.place[0] in slopes]
    vector = vector_of(found.symbols, gaps)
    total, kept = _Sum(constant, on_input, vector), []
    for gap in gaps:
        quadratic, axes = quadratic_of(gap, slopes[gap.place[0]].to(F64))
        rows = [rows_of(read, axis, vector) for read, axis in zip(gap.reads, axes, strict=True)]
        total.add(quadratic, rows)
        kept.append((gap, rows))
    return QuadraticForm(*total.total(), vector.group, kept)
