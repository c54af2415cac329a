"""Powers of a spectrum, in the forms that code has for them: each becomes the sum of two squares.

abs(s)^2,   real(s)^2 + imag(s)^2,   view_as_real(s)^2 summed over both parts,   c |s|^2
"""

import math

import torch
from torch import Tensor

from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.node import Node
from popqorn_train.operations.spectrum import Parts, Places, Powers, Transform, is_magnitude
from popqorn_train.relaxations.curves import CURVES


def square(x: Node) -> Node:
    """``x^2``: of an absolute value, the power."""
    return x.inputs[0] if is_magnitude(x) else Activation(CURVES["square"](), x)


def scaled_powers(x: object, factor: object) -> Powers | None:
    """Powers times a positive number, as those of a scaled transform."""
    if not isinstance(x, Powers) or not (isinstance(factor, float | int) and factor > 0):
        return None
    return Powers(x.transform.scaled(math.sqrt(factor)), x.places)


def _squared_parts(x: Node) -> Parts | None:
    """The parts whose squares a node holds."""
    if not isinstance(x, Activation) or x.curve != CURVES["square"]():
        return None
    return x.inputs[0] if isinstance(x.inputs[0], Parts) else None


def sum_of_squares(x: Node, y: Node) -> Powers | None:
    """The powers, where the squares of real and of imaginary parts are added."""
    one, other = _squared_parts(x), _squared_parts(y)
    if one is None or other is None or one.transform is not other.transform:
        return None
    if one.places.axis != other.places.axis:
        return None
    return _powers(one.transform, one.places.at, other.places.at, one.places.axis)


def sum_along(x: Node, axis: int, *, keepdim: bool) -> Powers | None:
    """The same where both lie along an axis, as of ``torch.view_as_real``.

    Args:
        x: holds the squares.
        axis: of the user's layout.
        keepdim: whether it stays, of size 1.
    """
    parts = _squared_parts(x)
    if parts is None:
        return None
    own, batch = axis - (axis > parts.places.axis), parts.places.axis
    if parts.places.at.shape[own] != 2:
        return None
    one, other = parts.places.at.chunk(2, own)
    if not keepdim:
        one, other, batch = one.squeeze(own), other.squeeze(own), batch - (axis < batch)
    return _powers(parts.transform, one, other, batch)


def _powers(transform: Transform, one: Tensor, other: Tensor, axis: int) -> Powers | None:
    count = transform.frequencies
    if one.shape != other.shape or bool(((one - other).abs() != count).any()):
        return None
    first = torch.minimum(one, other)
    frame, frequency = first // (2 * count), first % (2 * count)
    if bool((frequency >= count).any()):  # an imaginary part, and a real one of the next frame
        return None
    return Powers(transform, Places(frame * count + frequency, axis))
