"""Where the arguments of nonlinearities are at inputs whose margin is small.

From dual.py: with the bound v on the margin, its point x and H, every input has

    margin(xi)  >=  v + (xi - x) . H (xi - x)

so that inputs with margin <= threshold lie in an ellipsoid, (xi - x) . H (xi - x) <= threshold - v.
For a linear function z and any y, by the inequality of Cauchy and Schwarz,

    |z . (xi - x)|  <=  |y . H (xi - x)| + |(z - H y) . (xi - x)|
                    <=  sqrt(y . H y (threshold - v)) + sum_k |(z - H y)_k| (1 + |x_k|)

and y is the solution of H y = z, nearly.

B: batch, n: symbols, U: units.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from popqorn_train.bounds.dual import Lowest
from popqorn_train.bounds.ellipses import Ellipse
from popqorn_train.bounds.joint_rows import Rows
from popqorn_train.perturbations.region import Bounds

_WIDER = 1e-9  # share of a width, far above the rounding of a square root


class Ellipsoid:
    """The ellipsoid of a bound.

    Args:
        lowest: the bound without the constant.
        room: ``(B,)`` threshold - v.
    """

    def __init__(self, lowest: Lowest, room: Tensor) -> None:
        _, self._point, self._matrix, self._factor = lowest
        self._room = room.clamp(min=0)[:, None]
        n, eps = self._point.shape[1], torch.finfo(room.dtype).eps
        farthest = 1 + self._point.abs()
        self._farthest = farthest[:, None]
        most = self._matrix.abs().sum(2).amax(1) * farthest.sum(1)
        self._rounding = 4 * (n + 4) * eps * most[:, None]

    def within(self, rows: Sequence[Rows]) -> tuple[list[Bounds], Ellipse | None]:
        """Ranges of arguments ``(B, U)``, and the ellipse of two of them."""
        solved = []
        for row in rows:
            y = torch.cholesky_solve(row.data.mT, self._factor).mT
            image = y @ self._matrix
            rest = ((row.data - image).abs() * self._farthest).sum(-1)
            rest = rest + self._rounding * y.abs().amax(-1) + row.own
            solved.append((y, image, rest))
        ranges, parts = [], []
        for row, (y, image, rest) in zip(rows, solved, strict=True):
            square = (y * image).sum(-1).clamp(min=0) * self._room
            middle = row.center + (row.data @ self._point[..., None])[..., 0]
            reach = (square.sqrt() + rest) * (1 + _WIDER) + _WIDER
            ranges.append(_in_units(row, middle - reach, middle + reach))
            half = row.axis.half
            x, size = row.axis.middle + half * middle, row.axis.middle.abs() + half * middle.abs()
            off = half * (rest + _WIDER) + 8 * torch.finfo(x.dtype).eps * size
            parts.append((x, square * half**2, off))
        if len(rows) == 1:
            return ranges, None
        mixed = (solved[0][0] * solved[1][1]).sum(-1) * self._room
        mixed = mixed * rows[0].axis.half * rows[1].axis.half
        (x, xx, off_x), (y, yy, off_y) = parts
        return ranges, Ellipse(x, y, xx, mixed, yy, off_x, off_y)


def _in_units(row: Rows, low: Tensor, high: Tensor) -> Bounds:
    """A range on an axis in the units of the node that is read."""
    middle, half = row.axis
    low, high = (row.read.sign * (middle + half * end) for end in (low, high))
    lower, upper = torch.minimum(low, high), torch.maximum(low, high)
    off = 8 * torch.finfo(low.dtype).eps * (middle.abs() + torch.maximum(lower.abs(), upper.abs()))
    return Bounds(lower - off, upper + off)
