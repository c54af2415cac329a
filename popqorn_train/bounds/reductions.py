"""Convex functions of several entries at once: the logarithm of a sum of exponentials, the norm.

Below lies the tangent plane at the centre of the box. Above, a sum of convex functions of one entry
each lies below the sum S of their chords; an outer function that is concave lies below its tangent
at the value of S in the centre:

    log S <= log S0 + (S - S0) / S0            sqrt S <= sqrt S0 + (S - S0) / (2 sqrt S0)

B: batch, T: entries that are put together, F: features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.node import Node, Nonlinear
from popqorn_train.bounds.relaxer import Relaxer
from popqorn_train.bounds.tape import Tape
from popqorn_train.perturbations.region import Bounds, dot
from popqorn_train.relaxations.curves import CURVES
from popqorn_train.relaxations.extremum import largest, slack
from popqorn_train.relaxations.lines import Lines


class Plane(NamedTuple):
    """Slopes ``(B, T, F)`` of a plane, and its intercept ``(B, F)``."""

    slopes: Tensor
    intercept: Tensor

    def at(self, x: Tensor) -> Tensor:
        """What it is worth."""
        return (self.slopes * x).sum(1) + self.intercept


class Sides(NamedTuple):
    """A plane below and one above."""

    lower: Plane
    upper: Plane


class Reduction(Nonlinear):
    """A function of the entries of a node ``(T, F)`` over T, feature by feature."""

    def __init__(self, x: Node) -> None:
        super().__init__([x], x.shape[1:])

    def relax(self, relaxer: Relaxer | None, *inputs: Bounds) -> Sides:
        """A plane below and one above, moved apart by their rounding."""
        lower, upper = self.planes(*inputs[0])
        size = (torch.maximum(lower.slopes.abs(), upper.slopes.abs()) * largest(*inputs[0])).sum(1)
        more = slack(len(self.inputs[0].shape) * self.inputs[0].shape[0] * size)
        more = more + slack(lower.intercept, upper.intercept, self.range(*inputs).upper)
        return Sides(
            lower._replace(intercept=lower.intercept - more),
            upper._replace(intercept=upper.intercept + more),
        )

    def planes(self, lower: Tensor, upper: Tensor) -> tuple[Plane, Plane]:
        """A plane below and one above, but for rounding."""
        raise NotImplementedError

    def strip(self, x: Bounds) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes ``(B, T, F)`` of one linear function, and the middle and half of the rest."""
        below, above = self.relax(None, x)
        slopes, differ = (above.slopes + below.slopes) / 2, (above.slopes - below.slopes) / 2
        most = torch.maximum(differ * x.lower, differ * x.upper).sum(1)
        half = most + (above.intercept - below.intercept) / 2
        size = ((slopes.abs() + differ.abs()) * largest(*x)).sum(1)
        middle = (above.intercept + below.intercept) / 2
        return slopes, middle, half + slack(size * x.lower.shape[1], middle)

    def at(self, relaxation: Sides, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Nonlinear``."""
        return relaxation.lower.at(inputs[0]), relaxation.upper.at(inputs[0])

    def size(self, relaxation: Sides, *inputs: Tensor) -> Tensor:
        """Terms of the larger side."""
        sides = [Plane(side.slopes.abs(), side.intercept.abs()) for side in relaxation]
        return torch.maximum(*(side.at(inputs[0]) for side in sides))

    def backward(self, slope: Tensor, tape: Tape, relaxation: Sides) -> Tensor:
        """Replace the function by the plane on the side that matters."""
        parts = slope.clamp(min=0), slope.clamp(max=0)
        pairs = zip(parts, relaxation, strict=True)
        on_x = [part[:, :, None] * side.slopes[:, None] for part, side in pairs]
        tape.add(self.inputs[0], on_x[0] + on_x[1])
        return dot(parts[0], relaxation.lower.intercept) + dot(parts[1], relaxation.upper.intercept)


class LogSumExp(Reduction):
    """``log sum exp``."""

    def range(self, *inputs: Bounds) -> Bounds:
        """Images of the ends."""
        return Bounds(*(end.logsumexp(1) for end in inputs[0]))

    def planes(self, lower: Tensor, upper: Tensor) -> tuple[Plane, Plane]:
        """See ``Reduction``."""
        center, far = (lower + upper) / 2, upper.detach().amax(1, keepdim=True)
        share = center.softmax(1)
        below = Plane(share, center.logsumexp(1) - (share * center).sum(1))
        chords, middle, rest = _chords("exp", lower - far, upper - far)
        slopes = chords.upper_slope / middle[:, None]
        top = middle.log() + rest / middle + far[:, 0] - (slopes * far).sum(1)
        return below, Plane(slopes, top)


class Norm(Reduction):
    """The root of the sum of squares."""

    def range(self, *inputs: Bounds) -> Bounds:
        """The points of the box that are nearest to 0, and farthest."""
        lower, upper = inputs[0]
        near, far = torch.maximum(lower, -upper).clamp(min=0), largest(lower, upper)
        root = CURVES["sqrt"]()
        return root.range(Bounds(near.square().sum(1), far.square().sum(1)))

    def planes(self, lower: Tensor, upper: Tensor) -> tuple[Plane, Plane]:
        """See ``Reduction``."""
        least = torch.finfo(lower.dtype).tiny
        center = (lower + upper) / 2
        length = center.square().sum(1, keepdim=True).clamp(min=least).sqrt()
        below = Plane(center / length, torch.zeros_like(length[:, 0]))
        chords, middle, rest = _chords("square", lower, upper)
        root = middle.clamp(min=least).sqrt()
        return below, Plane(chords.upper_slope / (2 * root[:, None]), root + rest / (2 * root))


def _chords(name: str, lower: Tensor, upper: Tensor) -> tuple[Lines, Tensor, Tensor]:
    """Lines around a function, the sum of its chords in the centre, and that sum at 0 minus it."""
    lines = CURVES[name]().lines(lower, upper)
    constant = lines.upper_intercept.sum(1)
    middle = (lines.upper_slope * (lower + upper) / 2).sum(1) + constant
    return lines, middle, constant - middle
