"""Softmax over the last axis, and means of what moves with its shares as weights: attention.

    Softmax    softmax(s)
    Pooling    sum_t softmax(s)[t] h[t]

Of a softmax only weighted sums are ever bounded, so a row of slopes on it is taken as weights of
the scores: the linear bound is that of the whole sum (relaxations/softmax.py), not of every share.
In a pooled row g[t] = row . h[t], with p = softmax(s), p[t] >= q[t] and g[t] >= w[t]

    sum p g  =  sum q g + sum (p - q) g  >=  sum q (g - w) + sum p w

(McCormick, Mathematical Programming, 1976), where the last sum is a mean of fixed weights w. With
no slope on the scores and q = 0 this is the exact minimum over the box of scores and values.

B: batch, K: bounded rows, G: groups, N: queries, T: entries, M: features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.affine import full
from popqorn_train.bounds.mixing import MixedStrip, Mixing, between, matrix_before, rows
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.relaxer import Relaxer
from popqorn_train.bounds.tape import Tape
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.extremum import largest
from popqorn_train.relaxations.softmax import Scores, extremes, means_below, score_box, shares


class Softmax(Mixing):
    """Softmax of a node ``(R, T)`` over T."""

    def __init__(self, scores: Node) -> None:
        super().__init__([scores], scores.shape, scores.batch_axis)

    def range(self, *inputs: Bounds) -> Bounds:
        """Exact: one score against all others."""
        return shares(inputs[0])

    def relax(self, relaxer: Relaxer, *inputs: Bounds) -> Scores:
        """The box of scores."""
        return score_box(*inputs[0])

    def at(self, relaxation: Scores, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Nonlinear``."""
        x = inputs[0][..., None, :]
        sides = (self._lines(relaxation, sign) for sign in (1, -1))
        low, high = ((slope * x).sum(-1) + constant for slope, constant in sides)
        return low, high

    def _lines(self, scores: Scores, sign: int) -> tuple[Tensor, Tensor]:
        """Slopes ``(B, R, T, T)`` and intercepts below every share, or above with sign -1."""
        like = scores.share
        unit = torch.eye(self.shape[-1], dtype=like.dtype, device=like.device)
        slope, constant = means_below(_of_outputs(scores), sign * unit)
        return sign * slope, sign * constant

    def strip(self, *inputs: Bounds) -> MixedStrip:
        """See ``Mixing``."""
        scores = score_box(*inputs[0])
        below, above = (self._lines(scores, sign) for sign in (1, -1))
        slope, middle, half = between(below, above, _alive(scores))
        return MixedStrip([rows(slope)], middle, half)

    def size(self, relaxation: Scores, *inputs: Tensor) -> Tensor:
        """No slope on a score is steeper than twice its greatest share."""
        return _terms(relaxation, inputs[0]).expand_as(inputs[0])

    def backward(self, slope: Tensor, tape: Tape, relaxation: Scores) -> Tensor:
        """The row as weights."""
        on_scores, constant = means_below(relaxation.of_rows(), full(slope, self.shape))
        tape.add(self.inputs[0], on_scores)
        return constant.flatten(2).sum(-1)


def _of_outputs(scores: Scores) -> Scores:
    """The same with an axis for outputs before that of the entries."""
    return Scores(*[field[..., None, :] for field in scores])


def _alive(scores: Scores) -> Bounds:
    """Ends of the scores, 0 of those that have no part."""
    lower, upper = (torch.where(scores.dead, 0, end) for end in scores[:2])
    return Bounds(lower, upper)


def _terms(scores: Scores, size: Tensor) -> Tensor:
    """Sum of the absolute values of the terms of a mean of weights up to 1, ``(*, 1)``."""
    most = 2 * (scores.share + scores.tilt) * torch.where(scores.dead, 0, size)
    return 4 + 2 * most.sum(-1, keepdim=True)


class PoolingBox(NamedTuple):
    """What a pooling is enclosed with.

    Attributes:
        scores: ``(B, G, N, T)``.
        least: ``(B, G, N, T)`` shares.
        lower: ``(B, G, T, M)`` ends of the values.
        upper: likewise.
    """

    scores: Scores
    least: Tensor
    lower: Tensor
    upper: Tensor


class Pooling(Mixing):
    """``softmax(scores) @ values``, of shape ``(G, N, M)``.

    Args:
        scores: node ``(G, N, T)``.
        values: node ``(G, T, M)``.
    """

    def __init__(self, scores: Node, values: Node) -> None:
        shape = (*scores.shape[:-1], values.shape[-1])
        super().__init__([scores, values], shape)

    def range(self, *inputs: Bounds) -> Bounds:
        """Exact: shares are not negative, so the ends are means of the ends of the values."""
        box = _of_outputs(score_box(*inputs[0]))
        return extremes(box, *(end.mT[:, :, None] for end in inputs[1]))

    def relax(self, relaxer: Relaxer | None, *inputs: Bounds) -> PoolingBox:
        """Both boxes, and the least shares."""
        scores = score_box(*inputs[0])
        least = torch.where(scores.dead, 0, shares(inputs[0]).lower)
        return PoolingBox(scores, least, *inputs[1])

    def _lines(self, relaxation: PoolingBox, *, below: bool) -> tuple[Tensor, Tensor]:
        """A bound of every output, but for the part in the values.

        Returns:
            Slopes on the scores ``(B, G, N, M, T)``, and the intercept ``(B, G, N, M)``.
        """
        scores, least, lower, upper = relaxation
        weight = lower.mT[:, :, None] if below else -upper.mT[:, :, None]
        slope, constant = means_below(_of_outputs(scores), weight)
        constant = constant - (least[..., None, :] * weight).sum(-1)
        return (slope, constant) if below else (-slope, -constant)

    def at(self, relaxation: PoolingBox, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Nonlinear``."""
        scores, values = inputs
        pooled, x = relaxation.least @ values, scores[..., None, :]
        sides = (self._lines(relaxation, below=below) for below in (True, False))
        low, high = (pooled + (slope * x).sum(-1) + constant for slope, constant in sides)
        return low, high

    def strip(self, *inputs: Bounds) -> MixedStrip:
        """See ``Mixing``."""
        box = self.relax(None, *inputs)
        below, above = (self._lines(box, below=side) for side in (True, False))
        slope, middle, half = between(below, above, _alive(box.scores))
        return MixedStrip([rows(slope), matrix_before(box.least)], middle, half)

    def size(self, relaxation: PoolingBox, *inputs: Tensor) -> Tensor:
        """See ``Softmax``, times the greatest value."""
        scores, values = inputs
        most = torch.maximum(largest(*relaxation[2:]), values).amax(-2)[:, :, None]
        return _terms(relaxation.scores, scores) * most + relaxation.least @ values

    def backward(self, slope: Tensor, tape: Tape, relaxation: PoolingBox) -> Tensor:
        """Shares below, values on the side that matters, and a mean of what these are worth."""
        scores, least, lower, upper = relaxation
        slope = full(slope, self.shape)
        positive = slope.relu()
        weight = positive @ lower.mT[:, None] + (slope - positive) @ upper.mT[:, None]
        on_scores, constant = means_below(scores.of_rows(), weight)
        tape.add(self.inputs[0], on_scores)
        tape.add(self.inputs[1], least.mT[:, None] @ slope)
        return (constant - (least[:, None] * weight).sum(-1)).flatten(2).sum(-1)
