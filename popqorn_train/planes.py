"""Planes that enclose the two products of a gated cell on a box.

For every (x, y) in [lx, ux] x [ly, uy]:
    lower.x * x + lower.y * y + lower.intercept <= f(x, y)
    upper.x * x + upper.y * y + upper.intercept >= f(x, y)

with f(x, y) = sigmoid(x) tanh(y) or sigmoid(x) y. Ko et al., "POPQORN", ICML 2019, sections 3.2
and appendix A.4, fit such planes by gradient descent; here any slopes are sound, because the
intercept is the exact extremum (extremum.py), and the slopes are in closed form (planes.md 3, 4):
they lean to the side with the small weight on y, which gives the larger certificate of the
planes with the same volume.

Both functions are odd in y, so the lower plane is the mirrored upper plane of the mirrored box.
B: batch, H: units.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.extremum import (
    clip,
    follow_ends,
    product_edges,
    product_intercept,
    sigmoid_tanh_intercept,
)
from popqorn_train.lines import sigmoid_secant, tanh_secant


class Plane(NamedTuple):
    """``x * first + y * second + intercept``; every field is ``(B, H)``."""

    x: Tensor
    y: Tensor
    intercept: Tensor


class Planes(NamedTuple):
    """One plane below and one above each unit."""

    lower: Plane
    upper: Plane


class Box(NamedTuple):
    """``[lx, ux] x [ly, uy]``, each ``(B, H)``."""

    lx: Tensor
    ux: Tensor
    ly: Tensor
    uy: Tensor

    def with_mirror(self) -> "Box":
        """This box and its mirror image in y, stacked on a new first axis."""
        lx, ux, ly, uy = self
        pairs = ((lx, lx), (ux, ux), (ly, -uy), (uy, -ly))
        return Box(*[torch.stack(pair) for pair in pairs])


def _mix(lower: Tensor, upper: Tensor, share: float) -> Tensor:
    return share * lower + (1 - share) * upper


def _from_upper(a: Tensor, b: Tensor, intercept: Tensor) -> Planes:
    """Undo the mirror: ``f(x, -y) = -f(x, y)``."""
    return Planes(Plane(-a[1], b[1], -intercept[1]), Plane(a[0], b[0], intercept[0]))


def _best_product_slope(a: Tensor, box: Box) -> Tensor:
    """For a given slope in x, the slope in y that makes the plane over sigmoid(x) y lowest.

    It is the chord of the two edge maxima, and a mean of gate values, hence the clip.
    """
    x = follow_ends(product_edges(a, *box), box.lx, box.ux)
    gate = x.sigmoid()
    low, high = torch.stack([box.ly, box.uy]) * gate - a * x
    width = box.uy - box.ly
    wide = width > (1e-3 if a.dtype == torch.float32 else 1e-7)
    chord = (high - low) / torch.where(wide, width, torch.ones_like(width))
    b = torch.where(wide, chord, gate.mean(0))
    return clip(b, box.lx.sigmoid(), box.ux.sigmoid())


def sigmoid_identity_planes(box: Box, share: float = 0.0) -> Planes:
    """Enclose ``sigmoid(x) y``.

    Args:
        box: ranges of x and y, ``(B, H)``.
        share: weight of the lower end of y in the slope in x, from 0 to 1.
    """
    box = box.with_mirror()
    a = _mix(box.ly, box.uy, share) * sigmoid_secant(box.lx, box.ux)
    b = _best_product_slope(a, box)
    return _from_upper(a, b, product_intercept(a, b, *box))


def sigmoid_tanh_planes(box: Box, share: float = 0.25) -> Planes:
    """Enclose ``sigmoid(x) tanh(y)``.

    Args:
        box: ranges of x and y, ``(B, H)``.
        share: weight of the lower end of tanh(y) in the slope in x, and of the upper end of the
            gate in the slope in y, from 0 to 1.
    """
    box = box.with_mirror()
    a = _mix(box.ly.tanh(), box.uy.tanh(), share) * sigmoid_secant(box.lx, box.ux)
    b = _mix(box.ux.sigmoid(), box.lx.sigmoid(), share) * tanh_secant(box.ly, box.uy)
    return _from_upper(a, b, sigmoid_tanh_intercept(a, b, *box))
