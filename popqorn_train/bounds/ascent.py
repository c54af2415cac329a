"""Learns the multipliers of a joint bound, by gradients.

The dual (dual.py) is a concave function of its weights, of multipliers and of weights of products
(multipliers.py). At its point x it rises with a multiplier by what the quadratics miss of the
symbol there, with a weight by what the squared norm of x exceeds 1, and it falls with the weight of
a product by this product there. All are learned in float32, and what comes of them is bounded
anew.

Adam: Kingma and Ba, 2015. B: batch, n: symbols, G: groups, D: units of all errors.
"""

import torch
from torch import Tensor

from popqorn_train.bounds.dual import norms, solved
from popqorn_train.bounds.multipliers import Gaps
from popqorn_train.bounds.quadratics import Margin, Multipliers

_STEP, _SLOWER = 0.2, 0.95  # of multipliers in mean slopes, and of logarithms of weights
_MEANS = 0.8, 0.9  # of gradients and their squares
_EVEN = 1e-2  # of the mean square, what is added to every one
_SHARE = 0.5  # of the weight of an error, what its product takes over at first
_LEAST = 1e-6  # of a mean weight, the least one of a product
_SOON = 8  # trials after which little gain ends the search
_LITTLE = 0.1  # of what is missing


class _Ascent:
    """Multipliers in units, logarithms of weights, then of those of products, in one row.

    Args:
        gaps: the margin.
        group: see ``Vector``.
        shift: ``(B, D)`` multipliers to begin with.
        weights: ``(B, G)`` of the dual.
        products: ``(B, D)`` of products.
        fresh: ``(B, 1)`` whether the latter were never learned.
    """

    def __init__(
        self,
        gaps: Gaps,
        group: Tensor | None,
        shift: Tensor,
        weights: Tensor,
        products: Tensor,
        *,
        fresh: Tensor,
    ) -> None:
        self._gaps, self._group = gaps, group
        self._sizes = [shift.shape[1], weights.shape[1], products.shape[1]]
        plain = torch.cat([shift / gaps.unit, weights.log(), products.log()], 1)
        self._at, (self.first, self._point) = plain, self._values(plain)
        self._begin(weights, products, fresh)
        self.best, self.value = self._at, self.first
        self._step = torch.full_like(self.value, _STEP)
        self._means = [torch.zeros_like(self._at) for _ in _MEANS]
        self._steps, self._moved = torch.zeros_like(self.value), self.value.isfinite()
        self._direction = torch.zeros_like(self._at)

    def _begin(self, weights: Tensor, products: Tensor, fresh: Tensor) -> None:
        """Give some of the weights of errors to their products, where H stays positive."""
        places = self._gaps.symbols if self._group is None else self._group[self._gaps.symbols]
        moved = _SHARE * fresh * weights[:, places]
        less = weights.index_add(1, places, -moved)
        parts = [self._at[:, : self._sizes[0]], less.log(), (products + moved).log()]
        tried = torch.cat(parts, 1)
        value, point = self._values(tried)
        held = value.isfinite()
        self._at = torch.where(held[:, None], tried, self._at)
        self.first = torch.where(held, value, self.first)
        self._point = torch.where(held[:, None], point, self._point)

    def parts(self, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Multipliers, weights, and weights of products."""
        shift, weights, products = torch.split(row, self._sizes, 1)
        return self._gaps.unit * shift, weights.exp(), products.exp()

    def _values(self, row: Tensor) -> tuple[Tensor, Tensor]:
        shift, weights, products = self.parts(row)
        constant, linear, matrix = self._gaps.form(shift, products)
        value, point = solved(linear, matrix, weights, self._group)
        return constant + value, point

    def _rise(self) -> Tensor:
        """The gradient."""
        shift, weights, products = self.parts(self._at)
        on_shift = self._gaps.rise(shift, self._point) * self._gaps.unit
        on_weights = (norms(self._point, self._group).square() - 1) * weights
        return torch.cat([on_shift, on_weights, -products * self._gaps.product(self._point)], 1)

    def _turn(self) -> None:
        """A new direction where the last step led somewhere."""
        rise = self._rise()
        self._steps = self._steps + self._moved
        found = []
        for place, (mean, power) in enumerate(zip(self._means, (1, 2), strict=True)):
            kept = _MEANS[place]
            new = torch.lerp(rise**power, mean, kept)
            self._means[place] = torch.where(self._moved[:, None], new, mean)
            share = 1 - kept ** self._steps[:, None].clamp(min=1)
            found.append(self._means[place] / share)
        size = found[1].sqrt()
        parts = torch.split(size, self._sizes, 1)
        even = torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in parts], 1)
        self._direction = found[0] / (size + _EVEN * even).clamp(min=1e-30)

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
    margin: Margin, known: Multipliers, weights: Tensor, wanted: Tensor, *, trials: int
) -> tuple[Multipliers, Tensor]:
    """Multipliers, and weights of the dual with these.

    Args:
        margin: in parts.
        known: multipliers to begin with.
        weights: ``(B, G)`` likewise.
        wanted: ``(B,)`` a bound at which the search ends.
        trials: how many factorisations it may take.
    """
    scale = (weights.mean(1) * weights.shape[1])[:, None]
    gaps = Gaps(margin, scale[:, 0])
    shift, products = gaps.in_a_row(known.shifts), gaps.in_a_row(known.products)
    fresh = (products == 0).all(1, keepdim=True)
    products = torch.maximum(products, _LEAST * weights.mean(1, keepdim=True))
    first = [(part / scale).float() for part in (shift, weights, products)]
    first[1].clamp_(min=torch.finfo(torch.float32).tiny)
    ascent = _Ascent(gaps, margin.vector.group, *first, fresh=fresh)
    wanted = (wanted / scale[:, 0]).float()
    going = torch.ones_like(wanted, dtype=torch.bool)
    for trial in range(trials):
        going &= ascent.value.isfinite() & ~(ascent.value > wanted)
        if trial >= _SOON:
            going &= ascent.value - ascent.first > _LITTLE * (wanted - ascent.first)
        if not going.any():
            break
        ascent.go(going)
    shift, found, products = (part.to(scale) * scale for part in ascent.parts(ascent.best))
    return Multipliers(gaps.by_node(shift), gaps.by_node(products)), found
