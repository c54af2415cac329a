"""The greatest absolute value of many entries, as the peak of a wave.

With x[i] in [l[i], u[i]], and the entry i that is greatest at the centre, of sign s:

    s x[i]  <=  max_i |x[i]|  <=  max_i max(|l[i]|, |u[i]|)

B: batch, R: bounded rows, L: entries.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.node import Node, Nonlinear
from popqorn_train.bounds.relaxer import Relaxer
from popqorn_train.bounds.tape import Tape
from popqorn_train.perturbations.region import Bounds, dot
from popqorn_train.relaxations.extremum import largest


class PeakSides(NamedTuple):
    """``lower . x  <=  peak  <=  upper``, ``(B, L)`` and ``(B,)``."""

    lower: Tensor
    upper: Tensor


class Peak(Nonlinear):
    """``max |x|`` over all entries of a node ``(L,)``; one number."""

    def __init__(self, x: Node) -> None:
        super().__init__([x], ())

    def range(self, *inputs: Bounds) -> Bounds:
        """Greatest of the least and of the greatest absolute values."""
        lower, upper = inputs[0]
        least = torch.maximum(lower, -upper).relu()
        return Bounds(least.amax(1), largest(lower, upper).amax(1))

    def relax(self, relaxer: Relaxer | None, *inputs: Bounds) -> PeakSides:
        """One entry below, a constant above."""
        lower, upper = inputs[0]
        center = lower + upper
        best = center.abs().argmax(1, keepdim=True)
        below = torch.zeros_like(center).scatter(1, best, center.gather(1, best).sign())
        return PeakSides(below, largest(lower, upper).amax(1))

    def at(self, relaxation: PeakSides, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Nonlinear``."""
        below = (relaxation.lower * inputs[0]).sum(1)
        return below, relaxation.upper.expand_as(below)

    def size(self, relaxation: PeakSides, *inputs: Tensor) -> Tensor:
        """The constant above."""
        return torch.maximum(inputs[0].amax(1), relaxation.upper)

    def backward(self, slope: Tensor, tape: Tape, relaxation: PeakSides) -> Tensor:
        """Replace the peak by the side that matters."""
        positive = slope.relu()
        tape.add(self.inputs[0], positive[..., None] * relaxation.lower[:, None])
        return dot((slope - positive)[..., None], relaxation.upper[:, None])
