"""Sums and means of entries of a node, along its axes.

B: batch, K: bounded rows.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from popqorn_train.bounds.affine import full
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.tape import Tape
from popqorn_train.perturbations.region import Bounds


class Total(Node):
    """Sum of the entries along some axes, times a positive factor: sums and means.

    Args:
        x: node.
        axes: which of ``x.shape`` are summed over.
        factor: above 0.
        keepdim: whether they stay, of size 1.
    """

    def __init__(self, x: Node, axes: Sequence[int], factor: float, *, keepdim: bool) -> None:
        self.axes, self.factor, self.keepdim = [axis + 1 for axis in axes], factor, keepdim
        sizes = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        shape = sizes if keepdim else [n for axis, n in enumerate(x.shape) if axis not in axes]
        gone = 0 if keepdim else sum(axis < x.batch_axis for axis in axes)
        super().__init__([x], shape, x.batch_axis - gone)
        self._kept = sizes

    def _of(self, x: Tensor) -> Tensor:
        return x.sum(self.axes, self.keepdim) * self.factor

    def range(self, *inputs: Bounds) -> Bounds:
        """Sums of the ends."""
        return Bounds(*map(self._of, inputs[0]))

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """The same of the size."""
        return self._of(inputs[0])

    def backward(self, slope: Tensor, tape: Tape, relaxation: Any) -> None:
        """Every entry of a sum gets its slope."""
        (x,) = self.inputs
        kept = full(slope, self.shape).reshape(*slope.shape[:2], *self._kept) * self.factor
        tape.add(x, kept.expand(*slope.shape[:2], *x.shape))
