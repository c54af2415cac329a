"""The product of two matrices that both move, as in scores by dot products.

With centres xc, yc and half widths hx, hy of the entries, every product (x - xc)(y - yc) lies
within hx hy of 0 (bilinear.py), so

    x @ y  =  xc @ y + x @ yc - xc @ yc,      give or take hx @ hy

B: batch, K: bounded rows, G: groups, N, T, M: rows, inner axis, columns.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.affine import full
from popqorn_train.bounds.mixing import MixedStrip, Mixing, matrix_before, matrix_behind
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.relaxer import Relaxer
from popqorn_train.bounds.tape import Tape
from popqorn_train.perturbations.region import Bounds, dot
from popqorn_train.relaxations.extremum import largest, slack


class Strips(NamedTuple):
    """Centres ``(B, G, N, T)`` and ``(B, G, T, M)``; intercept and reach ``(B, G, N, M)``."""

    x: Tensor
    y: Tensor
    intercept: Tensor
    reach: Tensor


class MatrixProduct(Mixing):
    """``x @ y``, of shape ``(G, N, M)``.

    Args:
        x: node ``(G, N, T)``.
        y: node ``(G, T, M)``.
    """

    def __init__(self, x: Node, y: Node) -> None:
        super().__init__([x, y], (*x.shape[:-1], y.shape[-1]))

    def range(self, *inputs: Bounds) -> Bounds:
        """Every term exact on the corners of its box."""
        columns = [end.unbind(3) for end in inputs[0]]
        rows = [end.unbind(2) for end in inputs[1]]
        lower = upper = None
        for t in range(self.inputs[0].shape[-1]):
            ends = [x[t][..., None] * y[t][..., None, :] for x in columns for y in rows]
            least = torch.minimum(torch.minimum(*ends[:2]), torch.minimum(*ends[2:]))
            most = torch.maximum(torch.maximum(*ends[:2]), torch.maximum(*ends[2:]))
            lower = least if lower is None else lower + least
            upper = most if upper is None else upper + most
        assert lower is not None
        assert upper is not None
        return Bounds(lower, upper)

    def relax(self, relaxer: Relaxer | None, *inputs: Bounds) -> Strips:
        """The strip around the product of the middles."""
        x, y = inputs
        (xc, hx), (yc, hy) = (((b.lower + b.upper) / 2, (b.upper - b.lower) / 2) for b in (x, y))
        size = largest(*x) @ largest(*y)
        return Strips(xc, yc, -(xc @ yc), hx @ hy + slack(4 * size))

    def at(self, relaxation: Strips, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Nonlinear``."""
        x, y = inputs
        middle = x @ relaxation.y + relaxation.x @ y + relaxation.intercept
        return middle - relaxation.reach, middle + relaxation.reach

    def strip(self, *inputs: Bounds) -> MixedStrip:
        """See ``Mixing``."""
        x, y, intercept, reach = self.relax(None, *inputs)
        return MixedStrip([matrix_behind(y), matrix_before(x)], intercept, reach)

    def size(self, relaxation: Strips, *inputs: Tensor) -> Tensor:
        """See ``Nonlinear``."""
        x, y = inputs
        of_centers = relaxation.x.abs() @ y + x @ relaxation.y.abs()
        return of_centers + relaxation.intercept.abs() + relaxation.reach

    def backward(self, slope: Tensor, tape: Tape, relaxation: Strips) -> Tensor:
        """Both sides have the same slopes."""
        slope = full(slope, self.shape)
        tape.add(self.inputs[0], slope @ relaxation.y.mT[:, None])
        tape.add(self.inputs[1], relaxation.x.mT[:, None] @ slope)
        return dot(slope, relaxation.intercept) - dot(slope.abs(), relaxation.reach)
