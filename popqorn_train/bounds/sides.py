"""Products of the two sides between which an error lies.

The error of a node is ``half xi = sum_j (f_j - p_j)(z_j)``. Planes below and above every f_j bound
it by linear functions of the arguments, which are closer than -half and half at most places:

    low   =  half xi - sum_j (below_j - p_j)(z_j)  >=  0
    high  =  sum_j (above_j - p_j)(z_j) - half xi  >=  0

The product of the two is not negative either, and it bends down along xi. A quadratic function
below the margin is one still when a positive multiple of it is taken away, and bends up more. That
costs less than the same with ``1 - xi^2``, the product of the sides -half and half.

Products of linear inequalities: Sherali and Adams, "A hierarchy of relaxations between the
continuous and convex hull representations for zero-one programming problems", 1990; Anstreicher,
"Semidefinite programming versus the reformulation-linearization technique", 2009.

B: batch, n: symbols, U: units.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.joint_pass import Gap
from popqorn_train.bounds.joint_rows import F64, Rows, flat
from popqorn_train.relaxations.domain import Octagon
from popqorn_train.relaxations.planes import enclosing
from popqorn_train.relaxations.slopes import tilted

_CLEAR = 1e-3  # of a half width, the most that a side may be off by


class Side(NamedTuple):
    """``constant + data xi``, which is not less than ``-off``, in half widths of the error.

    Attributes:
        constant: ``(B, U)``.
        data: ``(B, U, n)``.
        size: ``(B, U)`` at least the sum of the absolute values of all terms.
        off: ``(B, U)`` what the rounding of arguments and errors changes.
    """

    constant: Tensor
    data: Tensor
    size: Tensor
    off: Tensor


class Part(NamedTuple):
    """A nonlinearity that an error is of.

    Attributes:
        linear: slopes ``(B, U)`` of p on the arguments, then its constant.
        planes: likewise below the nonlinearity and above it.
        rows: the arguments.
    """

    linear: Sequence[Tensor]
    planes: tuple[Sequence[Tensor], Sequence[Tensor]]
    rows: Sequence[Rows]


def part_of(gap: Gap, rows: Sequence[Rows]) -> Part:
    """A nonlinearity with its planes, in float64."""
    like = rows[0].center
    if isinstance(gap.domain, Octagon):
        assert gap.product is not None
        functions = [gap.strip[:-1], *enclosing(gap.product, gap.domain, tilted)]
    else:
        assert isinstance(gap.place[0], Activation)
        lines = gap.place[0].curve.lines(*gap.domain)
        functions = [gap.strip[:-1], lines[:2], lines[2:]]
    found = [[flat(part).expand_as(like).to(F64) for part in each] for each in functions]
    return Part(found[0], (found[1], found[2]), rows)


def sides_of(half: Tensor, rest: Tensor, first: int, parts: Sequence[Part]) -> tuple[Side, Side]:
    """The sides of an error.

    Args:
        half: ``(B, U)`` its half width.
        rest: ``(B, U)`` what it is off by.
        first: its first symbol.
        parts: the nonlinearities that it is the error of.
    """
    return _side(half, rest, first, parts, 0), _side(half, rest, first, parts, 1)


def _side(half: Tensor, rest: Tensor, first: int, parts: Sequence[Part], above: int) -> Side:
    sign = 1.0 if above else -1.0
    data = half.new_zeros(*half.shape, parts[0].rows[0].data.shape[-1])
    data[..., first : first + half.shape[1]] = torch.diag_embed(-sign * half)
    constant, size, off = torch.zeros_like(half), half, rest
    for linear, planes, rows in parts:
        plane = planes[above]
        constant = constant + sign * (plane[-1] - linear[-1])
        size = size + plane[-1].abs() + linear[-1].abs()
        for slope, known, row in zip(plane, linear, rows, strict=False):
            middle, width = row.axis
            steep, most = sign * (slope - known), slope.abs() + known.abs()
            constant = constant + steep * (middle + width * row.center)
            data = data + (steep * width)[..., None] * row.data
            reach = middle.abs() + width * (row.center.abs() + row.data.abs().sum(-1))
            size, off = size + most * reach, off + most * width * row.own
    clear = (half > 0) & (off <= _CLEAR * half)
    scale = torch.where(clear, 1 / half, 0.0)
    return Side(scale * constant, scale[..., None] * data, scale * size, scale * off)
