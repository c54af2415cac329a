"""The least value of a quadratic function on a box or a product of balls, from below.

For weights d >= 0, one for each group of symbols whose norm is at most 1, let H = diag(d) + matrix.
Where H has no negative eigenvalue, for every point x,

    linear . xi + xi . matrix xi  >=  linear . xi + xi . H xi - sum d
                                  =   r . xi + (xi - x) . H (xi - x) - x . H x - sum d
                                  >=  - sum of the norms of r in every group - x . H x - sum d

with r = linear + 2 H x, so that x need not solve the equation r = 0 well. This is the dual of the
relaxation of Shor, "Quadratic optimization problems", 1987, in which weights are searched: where
the solution x leaves its ball, the weight rises, elsewhere it falls.

B: batch, n: symbols, G: groups.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_FIRST = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03)  # shares of the row sums, which are always enough
_CHANGE = (0.3, 3.0)  # by which factors a weight falls and rises at once
_LEAST_STEP, _TRIALS = 0.05, 16
_FLOOR = 1e-6  # least weight, in mean weights
_SURE = 1e-5  # by which weights found in float32 are raised


class Lowest(NamedTuple):
    """A lower bound, and where it comes from.

    Attributes:
        value: ``(B,)``; -inf where nothing is proved.
        point: ``(B, n)`` x.
        matrix: ``(B, n, n)`` H.
        factor: ``(B, n, n)`` its Cholesky factor, nearly.
    """

    value: Tensor
    point: Tensor
    matrix: Tensor
    factor: Tensor


def norms(x: Tensor, group: Tensor | None) -> Tensor:
    """The norm ``(B, G)`` of every group."""
    if group is None:
        return x.abs()
    return x.new_zeros(len(x), int(group[-1]) + 1).index_add(1, group, x * x).sqrt()


def weighted(matrix: Tensor, weights: Tensor, group: Tensor | None) -> Tensor:
    """``diag(d) + matrix``."""
    found = matrix.clone()
    found.diagonal(dim1=1, dim2=2).add_(weights if group is None else weights[:, group])
    return found


def solved(
    linear: Tensor, matrix: Tensor, weights: Tensor, group: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The bound without its rounding, and the point."""
    factor, failed = torch.linalg.cholesky_ex(weighted(matrix, weights, group))
    point = -torch.cholesky_solve(linear[..., None], factor)[..., 0] / 2
    value = (linear * point).sum(1) / 2 - weights.sum(1)
    return torch.where((failed == 0) & value.isfinite(), value, -math.inf), point


class _Best:
    """The best weights so far."""

    def __init__(self, linear: Tensor, matrix: Tensor, group: Tensor | None) -> None:
        self._linear, self._matrix, self._group = linear, matrix, group
        self.value = linear.new_full((len(linear),), -math.inf)
        self.weights, self.point = norms(linear, group), linear

    def take(self, weights: Tensor, tried: Tensor) -> Tensor:
        """Try weights for some; where they are better, they are kept."""
        value, point = solved(self._linear, self._matrix, weights, self._group)
        better = tried & (value > self.value)
        self.value = torch.where(better, value, self.value)
        self.weights = torch.where(better[:, None], weights, self.weights)
        self.point = torch.where(better[:, None], point, self.point)
        return better

    def enough(self, group: Tensor | None) -> Tensor:
        """Weights without the first part that make H diagonally dominant, ``(B, G)``."""
        sums = self._matrix.abs().sum(2)
        if group is None:
            return sums
        most = sums.new_zeros(self.weights.shape)
        return most.scatter_reduce(1, group.expand_as(sums), sums, "amax")


def search(
    linear: Tensor,
    matrix: Tensor,
    group: Tensor | None,
    wanted: Tensor,
    known: Tensor | None = None,
) -> Tensor:
    """Weights ``(B, G)`` with a large bound.

    Args:
        linear: ``(B, n)``, in float32 like all others: only ``lowest`` decides.
        matrix: ``(B, n, n)``.
        group: ``(n,)`` of every symbol; None for one each.
        wanted: ``(B,)`` a bound at which the search ends.
        known: weights of a similar function, to be tried first.
    """
    best = _Best(linear, matrix, group)
    first, enough = norms(linear, group) / 2, best.enough(group)
    floor = _FLOOR * (first + enough).mean(1, keepdim=True)
    trials = torch.zeros_like(wanted)
    going = torch.ones_like(wanted, dtype=torch.bool)
    if known is not None:
        best.take(known, going)
    for share in _FIRST:
        trials, better = trials + going, best.take(first + share * enough + floor, going)
        going = going & better & ~(best.value > wanted)
        if not going.any():
            break
    step, going = torch.ones_like(wanted), ~(best.value > wanted)
    while going.any():
        change = norms(best.point, group).clamp(*_CHANGE) ** step[:, None]
        better = best.take((best.weights * change).clamp(min=floor * 1e-3), going)
        trials, step = trials + going, torch.where(better, 1.0, step / 2)
        going = going & (step > _LEAST_STEP) & (trials < _TRIALS) & ~(best.value > wanted)
    return best.weights


def lowest(linear: Tensor, matrix: Tensor, weights: Tensor, group: Tensor | None) -> Lowest:
    """The bound in float64, with its rounding.

    H is known to have no negative eigenvalue where the factorisation of H minus a multiple of the
    identity comes to its end: Rump, "Verification of positive definiteness", BIT 2006. Sums of n
    products are off by at most n units of rounding of their absolute values.
    """
    n, eps = linear.shape[1], torch.finfo(linear.dtype).eps
    found = weighted(matrix, weights, group)
    trace = found.diagonal(dim1=1, dim2=2).abs().sum(1)
    shift = -4 * (n + 4) * eps * trace[:, None].expand(-1, n)
    factor, failed = torch.linalg.cholesky_ex(weighted(found, shift, None))
    point = -torch.cholesky_solve(linear[..., None], factor)[..., 0] / 2
    image = (found @ point[..., None])[..., 0]
    most = (found.abs() @ point.abs()[..., None])[..., 0]
    value = -weights.sum(1) - (point * image).sum(1) - norms(linear + 2 * image, group).sum(1)
    size = trace + weights.sum(1) + (point.abs() * most).sum(1) + (linear.abs() + 2 * most).sum(1)
    value = value - 4 * (n + 4) * eps * size
    proved = (failed == 0) & value.isfinite()
    return Lowest(torch.where(proved, value, -math.inf), point, found, factor)
