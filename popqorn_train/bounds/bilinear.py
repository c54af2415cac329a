"""The product of two quantities that move, as in gates written by hand.

With centres xc, yc and half widths hx, hy of the box, (x - xc)(y - yc) lies within hx hy of 0:

    |x y - (yc x + xc y - xc yc)|  <=  hx hy

which is attained at the corners, so no parallel planes are closer (the mean of the two planes of
McCormick, Mathematical Programming, 1976, on either side).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.affine import full
from popqorn_train.bounds.node import Node, Nonlinear
from popqorn_train.bounds.relaxer import Relaxer
from popqorn_train.bounds.tape import Tape
from popqorn_train.perturbations.region import Bounds, dot
from popqorn_train.relaxations.extremum import largest, slack


class Strip(NamedTuple):
    """``x * first + y * second + intercept``, give or take ``reach``; all of one shape."""

    x: Tensor
    y: Tensor
    intercept: Tensor
    reach: Tensor


class Bilinear(Nonlinear):
    """``x y``, entry by entry, of two nodes of one shape."""

    def __init__(self, x: Node, y: Node) -> None:
        super().__init__([x, y], x.shape, x.batch_axis)

    def range(self, *inputs: Bounds) -> Bounds:
        """Exact on the corners of the box."""
        products = torch.stack([x * y for x in inputs[0] for y in inputs[1]])
        return Bounds(products.amin(0), products.amax(0))

    def relax(self, relaxer: Relaxer, *inputs: Bounds) -> Strip:
        """The strip between two parallel planes."""
        return self.strip(*inputs)

    def strip(self, *inputs: Bounds) -> Strip:
        """The same."""
        x, y = inputs
        (xc, hx), (yc, hy) = (((b.lower + b.upper) / 2, (b.upper - b.lower) / 2) for b in (x, y))
        size = largest(*x) * largest(*y)
        return Strip(yc, xc, -xc * yc, hx * hy + slack(4 * size))

    def sides(self, relaxation: Strip) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """See ``Nonlinear``."""
        x, y, intercept, reach = relaxation
        return (x, y, intercept - reach), (x, y, intercept + reach)

    def backward(self, slope: Tensor, tape: Tape, relaxation: Strip) -> Tensor:
        """Both sides have the same slopes."""
        slope = full(slope, self.shape)
        tape.add(self.inputs[0], slope * relaxation.x[:, None])
        tape.add(self.inputs[1], slope * relaxation.y[:, None])
        return dot(slope, relaxation.intercept) - dot(slope.abs(), relaxation.reach)
