"""Numbers of a short-time Fourier transform, and which of them every entry of a tensor is.

    y[t, j] = sum_n a[j, n] x[t, n]         j < F: real parts of F frequencies, then imaginary ones
    P[t, f] = y[t, f]^2 + y[t, F + f]^2     the powers

Complex numbers have no bound. What is asked of a spectrum has one: its parts are linear, its powers
are sums of two squares, and its absolute values are their roots. So a complex tensor is kept as the
places of its entries among the frequencies of frames, through everything that only moves entries.
What filters sum up of powers is again a sum of squares, which has one convex function
(bounds/quadratic.py).

B: batch, T: frames, N: samples of a frame, F: frequencies, K: filters.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.affine import Linear
from popqorn_train.bounds.coordinates import picks_input
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.quadratic import Quadratic
from popqorn_train.bounds.single_reads import Affine
from popqorn_train.relaxations.curves import CURVES


@dataclass(frozen=True, eq=False)
class Transform:
    """Real linear functions of windows, the parts of F frequencies.

    Attributes:
        windows: node of shape ``(T, N)``.
        a: ``(2 F, N)`` in float64.
        dtype: of the bounds.
    """

    windows: Node
    a: Tensor
    dtype: torch.dtype

    @property
    def frequencies(self) -> int:
        """F."""
        return len(self.a) // 2

    @functools.cached_property
    def parts(self) -> Node:
        """``(T, 2 F)``."""
        return Linear(self.windows, self.a.to(self.dtype))

    @functools.cached_property
    def powers(self) -> Node:
        """``(T, F)``."""
        return self.filtered(torch.eye(self.frequencies, dtype=self.dtype, device=self.a.device))

    def filtered(self, weight: Tensor) -> Node:
        """Sums of powers ``(T, K)``, by weights ``(K, F)`` that are not negative."""
        both = torch.cat([weight, weight], 1)
        if picks_input(self.windows):
            return Quadratic(self.windows, self.a, None, both)
        return Linear(Activation(CURVES["square"](), self.parts), both)

    def scaled(self, factor: float | Tensor) -> "Transform":
        """Of a spectrum that is multiplied by a real number."""
        return replace(self, a=self.a * factor)


@dataclass(frozen=True, eq=False)
class Places:
    """Where the entries of a tensor are.

    Attributes:
        at: numbers of places, in the shape of a sample of the tensor.
        axis: of the batch in it.
    """

    at: Tensor
    axis: int

    def moved(self, function: Callable[[Tensor], Tensor], axis: int, batch: int) -> "Places | None":
        """Behind a function that moves entries; None where it does not treat samples alike.

        Args:
            function: of the tensor.
            axis: of the batch in its result.
            batch: number of samples.
        """
        whole = self.at.expand(batch, *self.at.shape).movedim(0, self.axis).contiguous()
        found = function(whole)
        if found.ndim <= axis or found.shape[axis] != batch:
            return None
        rows = found.movedim(axis, 0)
        return Places(rows[0], axis) if bool((rows == rows[:1]).all()) else None


class Spectrum(NamedTuple):
    """A complex tensor.

    Attributes:
        windows: node that is transformed.
        transform: of it.
        places: of the entries, ``t F + f``.
    """

    windows: Node
    transform: Transform
    places: Places

    @classmethod
    def of(cls, transform: Transform, places: Places) -> "Spectrum":
        """Of what a transform gives."""
        return cls(transform.windows, transform, places)

    def part(self, number: int) -> "Parts":
        """The real parts, 0, or the imaginary ones, 1."""
        count, at = self.transform.frequencies, self.places.at
        place = at // count * 2 * count + at % count + number * count
        return Parts(self.transform, Places(place, self.places.axis))

    def magnitude(self) -> Activation:
        """Absolute values."""
        return magnitude(Powers(self.transform, self.places))


class Placed(Affine):
    """A tensor of which every entry is a number of a transform.

    Args:
        transform: of windows.
        places: in ``source``.
    """

    def __init__(self, transform: Transform, places: Places) -> None:
        self.transform, self.places = transform, places

        def pick(values: Tensor) -> Tensor:
            picked = values.flatten(1)[:, places.at.flatten()]
            return picked.view(-1, *places.at.shape).movedim(0, places.axis)

        super().__init__(pick, [self.source(transform)], tuple(places.at.shape), places.axis)

    @staticmethod
    def source(transform: Transform) -> Node:
        """Where the entries are picked."""
        raise NotImplementedError


class Parts(Placed):
    """Real and imaginary parts; places are ``2 t F + j``."""

    @staticmethod
    def source(transform: Transform) -> Node:
        """The linear functions."""
        return transform.parts


class Powers(Placed):
    """Squared absolute values; places are ``t F + f``."""

    @staticmethod
    def source(transform: Transform) -> Node:
        """Sums of two squares."""
        return transform.powers

    def filtered(self, weight: Tensor) -> Node | None:
        """Weighted sums along the last axis, as one convex function of each frame.

        Args:
            weight: ``(K, entries)``.

        Returns:
            None where a weight is negative, or where the entries of that axis are not the same
            frequencies of one frame.
        """
        at, count = self.places.at, self.transform.frequencies
        if at.shape[-1:] != weight.shape[1:]:  # one weight for all of them
            return None
        frame, frequency = at // count, at % count
        alike = (frame == frame[..., :1]).all() and (frequency == frequency.flatten(0, -2)[0]).all()
        if not alike or bool((weight < 0).any()):
            return None
        row = frequency.flatten(0, -2)[0]
        sums = self.transform.filtered(
            weight.new_zeros(len(weight), count).index_add(1, row, weight)
        )
        frames, axis = frame[..., 0], self.places.axis
        if axis == 0 and torch.equal(frames, torch.arange(sums.shape[0], device=frames.device)):
            return sums
        shape = (*frames.shape, len(weight))
        return Affine(lambda x: x[:, frames].movedim(0, axis), [sums], shape, axis)

    def permuted(self, order: Sequence[int]) -> "Powers":
        """With the axes of the user's layout in another order."""
        places = self.places.moved(lambda at: at.permute(*order), order.index(self.places.axis), 2)
        assert places is not None  # samples stay apart
        return Powers(self.transform, places)

    def across(self, weight: Tensor) -> Node | None:
        """The same along the axis before the last one."""
        at, axis = self.places.at, self.places.axis
        if at.ndim < 2 or axis > at.ndim - 2:
            return None
        sums = Powers(self.transform, Places(_transposed(at), axis)).filtered(weight)
        if sums is None:
            return None
        *lead, frames, filters = sums.shape
        return Affine(_transposed, [sums], (*lead, filters, frames), axis)


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


def magnitude(powers: Powers) -> Activation:
    """Absolute values, of their squares."""
    return Activation(CURVES["sqrt"](), powers)


def is_magnitude(x: object) -> bool:
    """Whether a node holds absolute values of a spectrum."""
    if not isinstance(x, Activation) or x.curve != CURVES["sqrt"]():
        return False
    return isinstance(x.inputs[0], Powers)


def placed(x: object) -> Placed | None:
    """The node whose entries a node has, or the roots of whose entries; None for others."""
    if isinstance(x, Activation) and is_magnitude(x):
        return placed(x.inputs[0])
    return x if isinstance(x, Placed) else None
