"""Lines that are closest to an activation at a given point: below as high, above as low as can be.

A bound is a minimum over inputs; where its worst input puts x, these lines answer it best
(backward.py). For an S-shaped f the line above that is lowest at a point r of [lower, upper] is

    the chord from lower to its tangent point d    where r <= d
    the tangent at r                               where r > d

and that below is found on the mirror image (planes.md 0 and 2).

B: batch, K: rows, H: units. Ends are ``(B, 1, H)``, points ``(B, K, H)``, or with an axis of frames
before the last one.
"""

import torch
from torch import Tensor

from popqorn_train.kernels.nearest import closest
from popqorn_train.relaxations.extremum import clip, largest, slack
from popqorn_train.relaxations.lines import SIGMOID, TANH, Curve, Lines, mirrored, relu_lines

_TURN = 10.0  # how sharply the line below relu turns, over the lesser distance of an end from 0


def _s_shaped(curve: Curve, lower: Tensor, upper: Tensor, point: Tensor) -> Lines:
    known = closest(lower, upper, point, curved=curve is TANH)
    if known is not None:
        return Lines(*known)
    ends = mirrored(lower, upper)
    d = curve.touching(*ends)
    straight = curve.lines(curve.above(*ends, d, ends[0]))
    point = clip(point, lower, upper)
    value, slope = curve.value(point), curve.slope(point)
    tangent = value - slope * point
    low, high = curve.value(lower), curve.value(upper)
    # Right of 0 the tangent lies above; left of it f is convex, so that its ends decide.
    allowance = 2 * slack(largest(low, high), slope * largest(lower, upper))
    above = torch.maximum(tangent, low - slope * lower) + allowance
    below = torch.minimum(tangent, high - slope * upper) - allowance
    right, left = (point > d[0]).detach(), (-point > d[1]).detach()
    return Lines(
        torch.where(left, slope, straight.lower_slope),
        torch.where(left, below, straight.lower_intercept),
        torch.where(right, slope, straight.upper_slope),
        torch.where(right, above, straight.upper_intercept),
    )


def closest_tanh(lower: Tensor, upper: Tensor, point: Tensor) -> Lines:
    """Enclose tanh between lines that are closest at a point."""
    return _s_shaped(TANH, lower, upper, point)


def closest_sigmoid(lower: Tensor, upper: Tensor, point: Tensor) -> Lines:
    """Enclose sigmoid between lines that are closest at a point."""
    return _s_shaped(SIGMOID, lower, upper, point)


def closest_relu(lower: Tensor, upper: Tensor, point: Tensor) -> Lines:
    """Enclose relu: the chord above; below a line through 0, the identity or 0.

    Close to 0 the line below turns from the one to the other, so that bounds do not jump.
    """
    lines = relu_lines(lower, upper)
    room = torch.minimum(-lower, upper)
    crosses = room > 0
    turn = 0.5 + _TURN * point / torch.where(crosses, room, torch.ones_like(room))
    # Any slope from 0 to 1 is sound.
    slope = torch.where(crosses, turn.clamp(0, 1), lines.lower_slope)
    return lines._replace(lower_slope=slope)
