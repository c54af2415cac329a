"""Adds quadratic functions of arguments up to one of the symbols, lowered by its rounding.

B: batch, n: symbols, U: units.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.joint_rows import F64, Rows, Vector
from popqorn_train.bounds.sides import Side
from popqorn_train.relaxations.paraboloids import Quadratic


class Shared(NamedTuple):
    """What nonlinearities miss together: ``half xi``, give or take the rounding of the forms.

    Attributes:
        symbols: where xi is in the vector.
        half: ``(B, U)``.
        rest: ``(B, U)`` the rounding.
        places: which terms they are.
    """

    symbols: slice
    half: Tensor
    rest: Tensor
    places: Sequence[int]


class QuadraticSum:
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

    def exchange(self, error: Shared, shift: Tensor) -> None:
        """Take a multiple of an error away, before the multiple of what it stands for is added."""
        own = torch.zeros_like(self.linear)
        own[:, error.symbols] = shift * error.half
        self.linear = self.linear - own
        self.size = self.size + own.abs().sum(1)
        self.constant = self.constant - (shift.abs() * error.rest).sum(1)

    def take(self, weight: Tensor, low: Side, high: Side) -> None:
        """Take a multiple ``(B, U)`` of the product of two sides away."""
        self.constant = self.constant - (weight * low.constant * high.constant).sum(1)
        for one, other in ((low, high), (high, low)):
            self.linear = self.linear - ((weight * one.constant)[:, None] @ other.data)[:, 0]
        self._pairs.append((low.data, -weight[..., None] * high.data))
        self.size = self.size + (weight * low.size * high.size).sum(1)
        off = low.off * high.size + high.off * low.size + low.off * high.off
        self.constant = self.constant - (weight * off).sum(1)

    def total(self) -> tuple[Tensor, Tensor, Tensor]:
        """Constant, linear part and matrix."""
        left, right = (torch.cat(parts, 1) for parts in zip(*self._pairs, strict=True))
        matrix = left.mT @ right
        count = left.shape[1] + self.linear.shape[1] + 64
        lower = count * torch.finfo(F64).eps * self.size
        return self.constant - lower, self.linear, (matrix + matrix.mT) / 2
