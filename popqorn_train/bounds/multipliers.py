"""Multipliers of errors, learned through the dual.

The error of a node is a symbol of its own, ``half xi = sum_j (f_j - p_j)(z_j)`` over its
nonlinearities. So with any multiplier s, at every input

    margin  =  constant + slope . x + sum_j (A_j + s) (f_j - p_j)(z_j) - s half xi

which other slopes of the linear functions p_j would lead to, and more than these could. The least
value of what lies below it (quadratics.py) is bounded by the dual (dual.py), a concave function of
weights and multipliers. Where the dual has its point x, it rises with a multiplier as fast as the
quadratics miss the symbol there, and with a weight as the squared norm of x exceeds 1: both are
learned by gradients, in float32, and what comes of them is bounded anew.

Adam: Kingma and Ba, 2015. B: batch, n: symbols, G: groups, V: units of all nonlinearities,
D: multipliers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from popqorn_train.bounds.dual import norms, solved
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.quadratics import Margin, Term, quadratic_of

_STEP, _SLOWER = 0.1, 0.97  # of multipliers in mean slopes, and of logarithms of weights
_MEANS = 0.8, 0.9  # of gradients and their squares
_EVEN = 1e-2  # of the mean square, what is added to every one
_SOON = 8  # trials after which little gain ends the search
_LITTLE = 0.1  # of what is missing


class Gaps:
    """All nonlinearities of a margin in a row, in float32.

    Args:
        margin: in parts.
        scale: ``(B,)`` by which it is divided.

    Attributes:
        unit: ``(B, 1)`` mean slope, the scale of multipliers.
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
        self._symbols = torch.cat(ends).to(center.device)
        self._of = self._owners(margin.terms).to(center.device)
        self.unit = self._slope.abs().mean(1, keepdim=True)

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

    def form(self, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Constant, linear part and matrix with multipliers ``(B, D)``."""
        slope = self._slopes(shift)
        chosen = torch.where(slope[:, None] < 0, self._sides[1], self._sides[0])
        one, on_p, on_q, pp, pq, qq = (chosen * slope.abs()[:, None]).unbind(1)
        (p, rows_p), (q, rows_q) = self._p, self._q
        parts = one + on_p * p + on_q * q + pp * p * p + pq * p * q + qq * q * q
        at_p, at_q = on_p + 2 * pp * p + pq * q, on_q + 2 * qq * q + pq * p
        linear = (at_p[:, None] @ rows_p + at_q[:, None] @ rows_q)[:, 0] + self._linear
        linear = linear.index_add(1, self._symbols, -shift * self._half)
        mixed = pq[..., None] / 2
        matrix = rows_p.mT @ (pp[..., None] * rows_p + mixed * rows_q)
        matrix = matrix + rows_q.mT @ (qq[..., None] * rows_q + mixed * rows_p)
        return self._constant + parts.sum(1), linear, (matrix + matrix.mT) / 2

    def rise(self, shift: Tensor, point: Tensor) -> Tensor:
        """How fast the value at a point rises with every multiplier."""
        p, q = (center + (rows @ point[..., None])[..., 0] for center, rows in (self._p, self._q))
        terms = torch.stack([torch.ones_like(p), p, q, p * p, p * q, q * q], 1)
        below, above = (self._sides * terms).sum(2)
        missed = torch.where(self._slopes(shift) < 0, -above, below)
        found = missed.new_zeros(len(missed), shift.shape[1] + 1).index_add(1, self._of, missed)
        return found[:, :-1] - self._half * point[:, self._symbols]

    def by_node(self, shift: Tensor) -> dict[Node, Tensor]:
        """Multipliers, node by node."""
        sizes = [error.half.shape[1] for error in self._errors.values()]
        return dict(zip(self._errors, torch.split(shift, sizes, 1), strict=True))

    def in_a_row(self, shifts: Mapping[Node, Tensor]) -> Tensor:
        """The reverse; 0 where none is known."""
        none = torch.zeros_like
        parts = [shifts.get(node, none(error.half)) for node, error in self._errors.items()]
        return torch.cat(parts, 1)


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


class _Ascent:
    """Multipliers in units, then logarithms of weights, in one row ``(B, D + G)``."""

    def __init__(self, gaps: Gaps, group: Tensor | None, shift: Tensor, weights: Tensor) -> None:
        self._gaps, self._group, self._count = gaps, group, shift.shape[1]
        self.best = self._at = torch.cat([shift / gaps.unit, weights.log()], 1)
        self.value, self._point = self._values(self._at)
        self.first, self._step = self.value, torch.full_like(self.value, _STEP)
        self._means = [torch.zeros_like(self._at) for _ in _MEANS]
        self._steps, self._moved = torch.zeros_like(self.value), self.value.isfinite()
        self._direction = torch.zeros_like(self._at)

    def parts(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """Multipliers and weights."""
        return self._gaps.unit * row[:, : self._count], row[:, self._count :].exp()

    def _values(self, row: Tensor) -> tuple[Tensor, Tensor]:
        shift, weights = self.parts(row)
        constant, linear, matrix = self._gaps.form(shift)
        value, point = solved(linear, matrix, weights, self._group)
        return constant + value, point

    def _turn(self) -> None:
        """A new direction where the last step led somewhere."""
        shift, weights = self.parts(self._at)
        rise = self._gaps.rise(shift, self._point) * self._gaps.unit
        slope = torch.cat([rise, (norms(self._point, self._group).square() - 1) * weights], 1)
        self._steps = self._steps + self._moved
        found = []
        for place, (mean, power) in enumerate(zip(self._means, (1, 2), strict=True)):
            kept = _MEANS[place]
            new = torch.lerp(slope**power, mean, kept)
            self._means[place] = torch.where(self._moved[:, None], new, mean)
            share = 1 - kept ** self._steps[:, None].clamp(min=1)
            found.append(self._means[place] / share)
        size, parts = found[1].sqrt(), [self._count, slope.shape[1] - self._count]
        even = [part.mean(1, keepdim=True).expand_as(part) for part in torch.split(size, parts, 1)]
        self._direction = found[0] / (size + _EVEN * torch.cat(even, 1)).clamp(min=1e-30)

    def go(self, going: Tensor) -> None:
        """One step of some; where there is no factor, the next one is half as long."""
        self._turn()
        tried = self._at + self._step[:, None] * self._direction
        value, point = self._values(tried)
        self._moved = value.isfinite()
        self._at = torch.where(self._moved[:, None], tried, self._at)
        self._point = torch.where(self._moved[:, None], point, self._point)
        self._step = self._step * torch.where(self._moved, _SLOWER, 0.5)
        better = going & (value > self.value)
        self.value = torch.where(better, value, self.value)
        self.best = torch.where(better[:, None], tried, self.best)


def learn(
    margin: Margin, shifts: Mapping[Node, Tensor], weights: Tensor, wanted: Tensor, *, trials: int
) -> tuple[dict[Node, Tensor], Tensor]:
    """Multipliers, and weights of the dual with these.

    Args:
        margin: in parts.
        shifts: multipliers to begin with.
        weights: ``(B, G)`` likewise.
        wanted: ``(B,)`` a bound at which the search ends.
        trials: how many factorisations it may take.
    """
    scale = weights.mean(1) * weights.shape[1]
    gaps, group = Gaps(margin, scale), margin.vector.group
    first = (weights / scale[:, None]).float().clamp(min=torch.finfo(torch.float32).tiny)
    ascent = _Ascent(gaps, group, (gaps.in_a_row(shifts) / scale[:, None]).float(), first)
    wanted = (wanted / scale).float()
    going = torch.ones_like(wanted, dtype=torch.bool)
    for trial in range(trials):
        going &= ascent.value.isfinite() & ~(ascent.value > wanted)
        if trial >= _SOON:
            going &= ascent.value - ascent.first > _LITTLE * (wanted - ascent.first)
        if not going.any():
            break
        ascent.go(going)
    shift, found = (part.to(scale) * scale[:, None] for part in ascent.parts(ascent.best))
    return gaps.by_node(shift), found
