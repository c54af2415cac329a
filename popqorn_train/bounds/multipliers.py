"""Multipliers of a joint bound: what else than its weights may be chosen freely.

The error of a node is a symbol of its own, ``half xi = sum_j (f_j - p_j)(z_j)`` over its
nonlinearities. So with any multiplier s, at every input

    margin  =  constant + slope . x + sum_j (A_j + s) (f_j - p_j)(z_j) - s half xi

which other slopes of the linear functions p_j would lead to, and more than these could. With any
weight w >= 0, w times the product of the two sides of the error (sides.py) may be taken away. Here
a margin with these is put together in float32; ascent.py learns them.

B: batch, n: symbols, U: units, V: units of all nonlinearities, D: units of all errors.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from popqorn_train.bounds.node import Node
from popqorn_train.bounds.quadratics import Margin, Term, quadratic_of
from popqorn_train.bounds.sides import Side


class Gaps:
    """All nonlinearities of a margin in a row, in float32.

    Args:
        margin: in parts.
        scale: ``(B,)`` by which it is divided.

    Attributes:
        unit: ``(B, 1)`` mean slope, the scale of multipliers.
        symbols: ``(D,)`` those of errors.
    """

    def __init__(self, margin: Margin, scale: Tensor) -> None:
        vector, self._errors = margin.vector, margin.errors
        center, per = vector.center, scale[:, None]
        constant = margin.constant + (margin.on_input * center).sum(1)
        self._constant = (constant / scale).float()
        self._linear = center.new_zeros(len(center), vector.total).float()
        self._linear[:, : vector.inputs] = (margin.on_input * vector.reach / per).float()
        self._slope = torch.cat([term.slope for term in margin.terms], 1).div(per).float()
        sides = [_sides(term) for term in margin.terms]
        self._sides = torch.cat(sides, -1).float()
        self._p, self._q = _argument(margin.terms, 0), _argument(margin.terms, 1)
        self._half = torch.cat([error.half for error in self._errors.values()], 1).float()
        ends = [torch.arange(vector.total)[error.symbols] for error in self._errors.values()]
        self.symbols = torch.cat(ends).to(center.device)
        self._of = self._owners(margin.terms).to(center.device)
        self.unit = self._slope.abs().mean(1, keepdim=True)
        low, high = zip(*margin.sides.values(), strict=True)
        self._low, self._high = _in_one(low), _in_one(high)

    def _owners(self, terms: list[Term]) -> Tensor:
        """The multiplier of every unit; one past the last for none."""
        count, first = self._half.shape[1], 0
        of = [torch.full((term.slope.shape[1],), count) for term in terms]
        for error in self._errors.values():
            size = error.half.shape[1]
            for place in error.places:
                of[place] = torch.arange(first, first + size)
            first += size
        return torch.cat(of)

    def _slopes(self, shift: Tensor) -> Tensor:
        return self._slope + torch.nn.functional.pad(shift, (0, 1))[:, self._of]

    def form(self, shift: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Constant, linear part and matrix with multipliers and weights of products ``(B, D)``."""
        slope = self._slopes(shift)
        chosen = torch.where(slope[:, None] < 0, self._sides[1], self._sides[0])
        one, on_p, on_q, pp, pq, qq = (chosen * slope.abs()[:, None]).unbind(1)
        (p, rows_p), (q, rows_q) = self._p, self._q
        parts = one + on_p * p + on_q * q + pp * p * p + pq * p * q + qq * q * q
        at_p, at_q = on_p + 2 * pp * p + pq * q, on_q + 2 * qq * q + pq * p
        linear = (at_p[:, None] @ rows_p + at_q[:, None] @ rows_q)[:, 0] + self._linear
        linear = linear.index_add(1, self.symbols, -shift * self._half)
        mixed = pq[..., None] / 2
        matrix = rows_p.mT @ (pp[..., None] * rows_p + mixed * rows_q)
        matrix = matrix + rows_q.mT @ (qq[..., None] * rows_q + mixed * rows_p)
        (low, rows_low), (high, rows_high) = self._low, self._high
        on_low, on_high = (weight * high)[:, None] @ rows_low, (weight * low)[:, None] @ rows_high
        matrix = matrix - rows_low.mT @ (weight[..., None] * rows_high)
        constant = self._constant + parts.sum(1) - (weight * low * high).sum(1)
        return constant, linear - (on_low + on_high)[:, 0], (matrix + matrix.mT) / 2

    def rise(self, shift: Tensor, point: Tensor) -> Tensor:
        """How fast the value at a point rises with every multiplier."""
        p, q = (center + (rows @ point[..., None])[..., 0] for center, rows in (self._p, self._q))
        terms = torch.stack([torch.ones_like(p), p, q, p * p, p * q, q * q], 1)
        below, above = (self._sides * terms).sum(2)
        missed = torch.where(self._slopes(shift) < 0, -above, below)
        found = missed.new_zeros(len(missed), shift.shape[1] + 1).index_add(1, self._of, missed)
        return found[:, :-1] - self._half * point[:, self.symbols]

    def product(self, point: Tensor) -> Tensor:
        """The products of sides ``(B, D)`` at a point."""
        low, high = (
            side + (rows @ point[..., None])[..., 0] for side, rows in (self._low, self._high)
        )
        return low * high

    def by_node(self, shift: Tensor) -> dict[Node, Tensor]:
        """Multipliers or weights, node by node."""
        sizes = [error.half.shape[1] for error in self._errors.values()]
        return dict(zip(self._errors, torch.split(shift, sizes, 1), strict=True))

    def in_a_row(self, shifts: Mapping[Node, Tensor]) -> Tensor:
        """The reverse; 0 where none is known."""
        none = torch.zeros_like
        parts = [shifts.get(node, none(error.half)) for node, error in self._errors.items()]
        return torch.cat(parts, 1)


def _in_one(sides: Sequence[Side]) -> tuple[Tensor, Tensor]:
    """Constants and rows of the sides of all errors."""
    constant, data = (torch.cat([side[k] for side in sides], 1) for k in (0, 1))
    return constant.float(), data.float()


def _sides(term: Term) -> Tensor:
    """Quadratics below what is missed and below minus that, ``(2, B, 6, U)``."""
    one = torch.ones_like(term.slope)
    both = [torch.stack(quadratic_of(term.gap, sign * one)[0], 1) for sign in (1, -1)]
    return torch.stack(both)


def _argument(terms: list[Term], which: int) -> tuple[Tensor, Tensor]:
    """Centers ``(B, V)`` and rows ``(B, V, n)`` of one argument; 0 where there is none."""
    found = []
    for term in terms:
        center, data = term.rows[min(which, len(term.rows) - 1)][2:4]
        there = float(which < len(term.rows))
        found.append((there * center.float(), there * data.float()))
    centers, rows = zip(*found, strict=True)
    return torch.cat(centers, 1), torch.cat(rows, 1)
