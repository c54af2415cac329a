"""A value that does not move, as a node."""

from torch import Tensor

from popqorn_train.bounds.node import Node
from popqorn_train.bounds.tape import Tape
from popqorn_train.perturbations.region import Bounds, dot


class Constant(Node):
    """A value that does not move, where a product needs a node.

    Args:
        value: ``(B or 1, H)``.
        worked_out: whether it is a sum that forward works out, and rounds.
    """

    exact = True

    def __init__(self, value: Tensor, *, worked_out: bool = False) -> None:
        super().__init__((), value.shape[1:])
        self.value, self.worked_out = value, worked_out

    def range(self, *inputs: Bounds) -> Bounds:
        """A point."""
        return Bounds(self.value, self.value)

    def size(self, relaxation: None, *inputs: Tensor) -> Tensor:
        """Its absolute value."""
        return self.value.abs()

    def backward(self, slope: Tensor, tape: Tape, relaxation: None) -> Tensor:
        """It leaves a constant only."""
        return dot(slope, self.value)
