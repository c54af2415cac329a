"""A margin, bounded below by one quadratic function of the symbols of affine forms.

Let p_j be a linear function beside every nonlinearity f_j, and z_j its arguments. One backward
pass in which p_j takes the place of f_j, with slope A_j on it, leaves an identity at every x:

    margin(x)  =  constant + slope . x + sum_j A_j (f_j - p_j)(z_j(x))

Every A_j (f_j - p_j) lies above a quadratic function of z_j (paraboloids.py), and the z_j are
linear functions of the same symbols. With xi for the coordinates of x, on their scale, and for
the errors of the forms,

    margin(x)  >=  constant + linear . xi + xi . matrix xi        wherever xi can be

All is added up in float64, whatever precision the forms have, and lowered by its rounding.

B: batch, n: symbols, U: units.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.affine import Sum
from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.identity import linear_part
from popqorn_train.bounds.joint_pass import Gap, JointPass, Name, has_quadratics, smooth_curve
from popqorn_train.bounds.joint_rows import F64, Rows, flat, rows_of, vector_of
from popqorn_train.bounds.node import Logits, Node
from popqorn_train.bounds.quadratic_sum import QuadraticSum, Shared
from popqorn_train.bounds.sides import Side, part_of, sides_of
from popqorn_train.nested import map_nested
from popqorn_train.perturbations.region import Region
from popqorn_train.relaxations.domain import Octagon
from popqorn_train.relaxations.paraboloids import Axis, Quadratic, below_curve, below_product

_ROUNDING = 8.0  # units in the last place of all terms of a form, more than it is off by


class Term(NamedTuple):
    """A nonlinearity in the identity.

    Attributes:
        gap: what is missed of it.
        slope: ``(B, U)`` on that.
        quadratic: below slope times gap.
        rows: the arguments.
    """

    gap: Gap
    slope: Tensor
    quadratic: Quadratic
    rows: Sequence[Rows]


class Multipliers(NamedTuple):
    """What may be learned of a quadratic function below a margin, by node.

    Attributes:
        shifts: ``(B, U)`` of errors; see multipliers.py.
        products: ``(B, U)``, not negative, of the products of their sides; see sides.py.
    """

    shifts: Mapping[Node, Tensor]
    products: Mapping[Node, Tensor]


NONE = Multipliers({}, {})


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


class Margin:
    """A margin, in parts that are added up to a quadratic function below it.

    Args:
        output: logits of pairs.
        row: ``(B, C)`` their margins.
        found: a pass that was not run yet.

    Attributes:
        constant: of the identity, ``(B,)``.
        on_input: ``(B, inputs)`` slopes of the identity on the input.
        vector: the symbols.
        terms: every nonlinearity, its slope ``(B, U)`` and its arguments.
        errors: by node, what the nonlinearities of one or two nodes miss together.
    """

    def __init__(self, output: Logits, row: Tensor, found: JointPass) -> None:
        enclosure = found.run()
        self.constant, self.on_input, slopes = linear_part(output, row, enclosure)
        gaps = [gap for gap in found.gaps if gap.place[0] in slopes]
        self.vector = vector_of(found.symbols, gaps)
        self.terms = [self._term(gap, slopes[gap.place[0]].to(F64)) for gap in gaps]
        self.errors: dict[Node, Shared] = {}
        for node, name in found.names.items():
            parts = node.inputs if isinstance(node, Sum) else ()
            members = {node, *(part for part in parts if part not in found.names)}
            places = [place for place, gap in enumerate(gaps) if gap.place[0] in members]
            if places and self.vector.inputs + name.first < self.vector.total:
                self.errors[node] = self._shared(name, places)

    def _term(self, gap: Gap, slope: Tensor) -> Term:
        quadratic, axes = quadratic_of(gap, slope)
        read = zip(gap.reads, axes, strict=True)
        return Term(gap, slope, quadratic, [rows_of(*pair, self.vector) for pair in read])

    def _shared(self, name: Name, places: Sequence[int]) -> Shared:
        first, half = self.vector.inputs + name.first, name.half.to(F64)
        gaps = [flat(self.terms[place].gap.strip.half).to(F64) for place in places]
        eps = torch.finfo(name.half.dtype).eps
        rest = (half - sum(gaps)).clamp(min=0) + _ROUNDING * eps * name.size.to(F64)
        return Shared(slice(first, first + half.shape[1]), half, rest, places)

    @cached_property
    def sides(self) -> dict[Node, tuple[Side, Side]]:
        """The sides of every error."""
        return {node: self._sides(error) for node, error in self.errors.items()}

    def _sides(self, error: Shared) -> tuple[Side, Side]:
        terms = [self.terms[place] for place in error.places]
        parts = [part_of(term.gap, term.rows) for term in terms]
        return sides_of(error.half, error.rest, error.symbols.start, parts)

    def below(self, multipliers: Multipliers = NONE) -> QuadraticForm:
        """A quadratic function below the margin, for any multipliers."""
        shifts, products = multipliers
        total = QuadraticSum(self.constant, self.on_input, self.vector)
        moved: dict[int, Tensor] = {}
        for node in [node for node in shifts if node in self.errors]:
            total.exchange(self.errors[node], shifts[node])
            for place in self.errors[node].places:
                moved[place] = moved[place] + shifts[node] if place in moved else shifts[node]
        for place, (gap, slope, quadratic, rows) in enumerate(self.terms):
            if place in moved:
                quadratic, _ = quadratic_of(gap, slope + moved[place])
            total.add(quadratic, rows)
        for node in [node for node in products if node in self.errors]:
            total.take(products[node], *self.sides[node])
        rows_of_gaps = [(term.gap, term.rows) for term in self.terms]
        return QuadraticForm(*total.total(), self.vector.group, rows_of_gaps)
