"""Normalised vectors: ``d / sqrt(mean d^2 + eps)``, with or without the mean taken off before.

The graph is that of the formula: squares, their mean, its inverse root r, and the product r d. So
what one entry does to the scale of all is kept apart from what it does to itself, and relaxations
miss no more than the square of how far entries move, in units of the scale.

Every entry ``f_i = d_i / sqrt((d_i^2 + R) / F + eps)`` rises in d_i, and in the sum R of the other
squares it falls where d_i > 0 and rises where d_i < 0: that gives its exact range over a box.

F: features.
"""

import torch
from torch import Tensor

from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.affine import Sum
from popqorn_train.bounds.bilinear import Bilinear
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.total import Total
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.curves import CURVES
from popqorn_train.relaxations.extremum import largest


class Normal(Bilinear):
    """``x y`` of a vector and its inverse scale, one number for all of its last axis.

    Args:
        x: node ``(*, F)``.
        y: node ``(*, 1)``, the inverse root of ``mean x^2 + eps``.
        eps: as there.
    """

    def __init__(self, x: Node, y: Node, eps: float) -> None:
        super().__init__(x, y)
        self.eps = eps

    def range(self, *inputs: Bounds) -> Bounds:
        """Exact over the box of x, cut with that of the product."""
        x, y = inputs
        product = super().range(x, y)
        upper = torch.minimum(product.upper, self._greatest(*x))
        lower = torch.maximum(product.lower, -self._greatest(-x.upper, -x.lower))
        unit = (self.shape[-1] + 8) * torch.finfo(upper.dtype).eps
        return Bounds(lower - unit * lower.detach().abs(), upper + unit * upper.detach().abs())

    def _greatest(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Upper end of every entry."""
        near = torch.maximum(lower, -upper).clamp(min=0).square()
        far = largest(lower, upper).square()
        rounding = 4 * upper.shape[-1] * torch.finfo(upper.dtype).eps
        least = near.sum(-1, keepdim=True) * (1 - rounding) - near
        most = far.sum(-1, keepdim=True) * (1 + rounding) - far
        others = torch.where(upper > 0, least.clamp(min=0), most.clamp(min=0))
        return upper * ((upper.square() + others) / upper.shape[-1] + self.eps).rsqrt()

    def _gathered(self, slope: Tensor, node: Node) -> Tensor:
        """Those on the scale add up."""
        return slope if node is self.inputs[0] else slope.sum(-1, keepdim=True)


def normalised(x: Node, eps: float) -> Normal:
    """``x / sqrt(mean x^2 + eps)`` over the last axis."""
    square = Activation(CURVES["square"](), x)
    axis = len(x.shape) - 1
    mean: Node = Total(square, [axis], 1 / x.shape[axis], keepdim=True)
    assert x.region is not None
    like = x.region.value
    scale = Sum([mean], torch.full((1, *mean.shape), eps, dtype=like.dtype, device=like.device))
    return Normal(x, Activation(CURVES["rsqrt"](), scale), eps)
