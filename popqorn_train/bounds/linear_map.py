"""Convolutions and pools: linear maps of a tensor of any number of axes.

B: batch, K: bounded rows.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from popqorn_train.bounds.affine import full
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.tape import Tape
from popqorn_train.perturbations.region import Bounds, Region, dot

Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class LinearMap(Node):
    """``apply(x, weight, bias)``, linear in x, and in the weight.

    Args:
        apply: takes ``(B, *x.shape)``, a weight and a bias or None.
        x: node.
        weight: of the layer.
        bias: likewise, or None.
        shape: of the result, without the batch.
        batch_axis: of the result.
    """

    def __init__(
        self,
        apply: Apply,
        x: Node,
        weight: Tensor,
        bias: Tensor | None,
        *,
        shape: tuple[int, ...],
        batch_axis: int,
    ) -> None:
        super().__init__([x], shape, batch_axis)
        self.apply, self.weight, self.bias = apply, weight, bias

    def range(self, *inputs: Bounds) -> Bounds:
        """Centre and radius through the weight."""
        (x,) = inputs
        center = self.apply((x.lower + x.upper) / 2, self.weight, self.bias)
        radius = self.apply((x.upper - x.lower) / 2, self.weight.abs(), None)
        return Bounds(center - radius, center + radius)

    def range_from_ball(self) -> Bounds | None:
        """That of intervals, where what moves is a box whose entries are read in any order."""
        (x,), region = self.inputs, self.region
        if not isinstance(region, Region) or region.p != math.inf:
            return None
        bounds = _ordered(x)
        return None if bounds is None else self.range(bounds)

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """Absolute weights."""
        bias = None if self.bias is None else self.bias.abs()
        return self.apply(inputs[0], self.weight.abs(), bias)

    def backward(self, slope: Tensor, tape: Tape, relaxation: Any) -> Tensor | None:
        """Transpose of the linear part; the constant is the image of 0."""
        slope, (x,) = full(slope, self.shape), self.inputs
        zeros = slope.new_zeros(slope.shape[0] * slope.shape[1], *x.shape)
        _, transpose, *_ = torch.func.vjp(lambda x: self.apply(x, self.weight, None), zeros)
        (part,) = transpose(slope.flatten(0, 1))
        tape.add(x, part.view(*slope.shape[:2], *x.shape))
        if self.bias is None:
            return None
        return dot(slope, self.apply(zeros[:1], self.weight, self.bias))


def _ordered(node: Node) -> Bounds | None:
    """Range of a node that holds as many entries as the root, each made from one; else None."""
    if not node.inputs:
        return node.range()
    if not node.exact or len(node.inputs) > 1:
        return None
    (before,) = node.inputs
    bounds = _ordered(before) if math.prod(before.shape) == math.prod(node.shape) else None
    return None if bounds is None else node.range(bounds)
