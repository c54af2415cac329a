"""How far a weighted sum of squares rises above its tangents: one constant for every sum.

    E[k](x) = sum_j W[k, j] (a[j] . x + b[j])^2,  W >= 0,      M[k] = sum_j W[k, j] a[j] a[j]'
    E[k](z) + grad . d  <=  E[k](z + d)  =  E[k](z) + grad . d + d' M[k] d

Over a box, ``d' M d`` is greatest at a corner, where finding it is hard. Weak duality bounds it:
for every positive diagonal D,

    max over |d| <= 1 of d' M d  <=  q = trace(D) lambda_max(D^-1/2 M D^-1/2)

The best D is that of a semidefinite program; a few multiplicative steps come close. Summing the
squares one by one, ``sum_j W[j] |a[j]|_1^2``, is several times as much for the filters of speech.
Over a ball ``||d||_2 <= 1`` it is lambda_max(M).

All is worked out in float64 and moved outward by its rounding.

J: squares, N: what they read, K: sums.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

_STEPS = 8  # of the diagonal
_TOP = 5  # eigenvectors that a step looks at
_LARGEST = 1024  # matrices beyond have the bound of their entries alone
_SAFETY = 16.0  # times the error of an eigenvalue
_KEPT = 16  # filters whose constants are remembered


class Curvature(NamedTuple):
    """Greatest values of ``d' M d``, ``(K,)`` each, in float64.

    Attributes:
        box: over ``|d| <= 1``, entry by entry.
        ball: over ``||d||_2 <= 1``.
    """

    box: Tensor
    ball: Tensor


class _Known:
    """Weights as a key: equal where all numbers are."""

    def __init__(self, a: Tensor, weight: Tensor) -> None:
        self.a, self.weight = (x.detach().double().cpu().contiguous() for x in (a, weight))
        self._bytes = tuple(x.numpy().tobytes() for x in (self.a, self.weight))
        self._hash = hash((self.a.shape, self.weight.shape, self._bytes))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and (
            (self.a.shape, self.weight.shape, self._bytes)
            == (other.a.shape, other.weight.shape, other._bytes)
        )


def curvature_of(a: Tensor, weight: Tensor) -> Curvature:
    """Bound the curvature of sums of squares; remembered, and with the gradient of its formula.

    Args:
        a: ``(J, N)``.
        weight: ``(K, J)``, not negative.
    """
    found, vectors = _computed(_Known(a, weight))
    found = Curvature(*(part.to(a.device) for part in found))
    if not (torch.is_grad_enabled() and (a.requires_grad or weight.requires_grad)):
        return found
    # The eigenvectors held fixed: by the envelope theorem that is the gradient.
    box, ball = (
        (weight.double() * (vector.to(a.device) @ a.double().T).square()).sum(1)
        for vector in vectors
    )
    return Curvature(found.box + box - box.detach(), found.ball + ball - ball.detach())


@functools.lru_cache(_KEPT)
@torch.no_grad()
def _computed(key: _Known) -> tuple[Curvature, Curvature]:
    """The constants, and vectors ``(K, N)`` of which the sums of squares are (close to) these."""
    rows = [_of_one(key.a, weight) for weight in key.weight]
    box, ball, at_box, at_ball = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return Curvature(box, ball), Curvature(at_box, at_ball)


def _of_one(a: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Constants of one sum, and the vectors that they are attained at."""
    used = weight > 0
    a, weight = a[used], weight[used]
    m = (a.T * weight) @ a
    error = 1 + _SAFETY * sum(a.shape) * torch.finfo(m.dtype).eps
    one_by_one = (weight * a.abs().sum(1).square()).sum() * error
    box, at_box = torch.minimum(one_by_one, _entries(a, weight) * error), m.sum(0).sign()
    trace = m.diagonal().sum() * error
    if min(a.shape) > _LARGEST or trace == 0:
        return box, torch.minimum(box, trace), at_box, at_box
    root = weight.sqrt()[:, None] * a
    value, vectors = _top(root)
    ball, at_ball = value[-1] + (error - 1) * trace, vectors[:, -1] * value[-1].sign()
    dual, vector = _dual(root, error)
    if dual < box:
        box, at_box = dual, vector
    return box, torch.minimum(ball, trace), at_box, at_ball


def _entries(a: Tensor, weight: Tensor) -> Tensor:
    """``sum_il |M[i, l]|``, from above: entries that cancel out are off by their terms."""
    m = (a.T * weight) @ a
    root = m.diagonal().sqrt().sum()
    return m.abs().sum() + _SAFETY * sum(a.shape) * torch.finfo(m.dtype).eps * root.square()


def _top(root: Tensor) -> tuple[Tensor, Tensor]:
    """The greatest eigenvalues of ``root' root``, rising, and their vectors ``(N, top)``.

    ``root root'`` has the same ones but for zeros, and is smaller where few squares are added.
    """
    if len(root) >= root.shape[1]:
        values, vectors = torch.linalg.eigh(root.T @ root)
        return values[-_TOP:], vectors[:, -_TOP:]
    values, others = torch.linalg.eigh(root @ root.T)
    vectors = root.T @ others[:, -_TOP:]
    return values[-_TOP:], vectors / torch.linalg.vector_norm(vectors, dim=0).clamp(min=1e-300)


def _dual(root: Tensor, error: Tensor | float) -> tuple[Tensor, Tensor]:
    """The least dual bound of a few diagonals of ``root' root``, and a vector that attains it."""
    diagonal = root.square().sum(0)
    d = diagonal.clamp(min=1e-12 * diagonal.max())
    best, at = torch.tensor(torch.inf, dtype=root.dtype), diagonal
    for _ in range(_STEPS):
        scale = d.rsqrt()
        values, vectors = _top(root * scale)
        # An eigenvalue of a computed matrix is off by at most its error, which the trace bounds.
        top = values[-1] + (error - 1) * (diagonal / d).sum()
        bound = d.sum() * top * error
        if bound < best:
            best, at = bound, d.sum().sqrt() * scale * vectors[:, -1]
        share = (vectors.square() * ((values / values[-1] - 1) * 30).exp()).sum(1)
        d = d * (share / share.mean() + 1e-3) ** 0.15
    return best, at
