"""Nonlinear nodes of which every entry reads many: their affine forms take maps, not slopes.

B: batch, n: symbols of a block.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.block_sums import Block
from popqorn_train.bounds.forms import Form, unit_of_rounding
from popqorn_train.bounds.node import Nonlinear
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.extremum import largest, slack


class AxisMap(NamedTuple):
    """A linear map of values ``(B, *shape)``, or of coefficients ``(n, B, *shape)``.

    Attributes:
        of: the map.
        of_size: the same with absolute values of its weights.
        terms: how many numbers it adds up for an entry.
    """

    of: Callable[[Tensor], Tensor]
    of_size: Callable[[Tensor], Tensor]
    terms: int


class MixedStrip(NamedTuple):
    """Sum of a map of every input and of ``middle``, give or take ``half``."""

    maps: Sequence[AxisMap]
    middle: Tensor
    half: Tensor


class Mixing(Nonlinear):
    """A nonlinear node that adds up many entries of its inputs."""

    def strip(self, *inputs: Bounds) -> MixedStrip:
        """One linear function, and how far the node is from it."""
        raise NotImplementedError


def mapped_by(form: Form, linear: AxisMap) -> Form:
    """The form of a linear map of what a form stands for, with the rounding of it."""

    def block(part: Block | None) -> Block | None:
        return part and Block(part.start, linear.of(part.data))

    with torch.no_grad():
        size = linear.of_size(form.size)
        own = size * unit_of_rounding(linear.terms, size.dtype)
    own = own if form.own is None else own + linear.of_size(form.own)
    return Form(
        linear.of(form.center), block(form.inputs), block(form.noise), own, size, form.loose
    )


def matrix_before(matrix: Tensor) -> AxisMap:
    """``matrix @ x``."""
    size = matrix.abs()
    return AxisMap(lambda x: matrix @ x, lambda x: size @ x, matrix.shape[-1])


def matrix_behind(matrix: Tensor) -> AxisMap:
    """``x @ matrix``."""
    size = matrix.abs()
    return AxisMap(lambda x: x @ matrix, lambda x: x @ size, matrix.shape[-2])


def rows(slope: Tensor) -> AxisMap:
    """From ``(..., T)`` to ``(..., M)`` by slopes ``(B, ..., M, T)``."""

    def times(slope: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: (slope @ x[..., None])[..., 0]

    return AxisMap(times(slope), times(slope.abs()), slope.shape[-1])


def between(
    below: tuple[Tensor, Tensor], above: tuple[Tensor, Tensor], box: Bounds
) -> tuple[Tensor, Tensor, Tensor]:
    """One linear function between two: its slopes, the middle of the rest, and half of it.

    Args:
        below: slopes ``(B, ..., M, T)`` and intercepts ``(B, ..., M)``.
        above: likewise.
        box: range of what they read, ``(B, ..., T)``.
    """
    (low, start), (high, end) = below, above
    slope, differ = (low + high) / 2, (high - low) / 2
    lower, upper = (side[..., None, :] for side in box)
    most = torch.maximum(differ * lower, differ * upper).sum(-1)
    sizes = ((slope.abs() + differ.abs()) * largest(lower, upper)).sum(-1)
    middle, half = (start + end) / 2, (end - start) / 2 + most
    return slope, middle, half + slack(sizes * slope.shape[-1], start, end)
