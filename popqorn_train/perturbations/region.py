"""A ball placed around an input, and the least value a linear function takes on it.

    minimum of slope . x over ||x - center||_p <= epsilon
        = slope . center - epsilon * ||slope||_q,      1/p + 1/q = 1        (Hoelder; attained)

B: batch, K: bounded outputs, T: frames, N: features of a frame, O: outputs of a linear layer.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from popqorn_train.kernels.inputs import Box, filled_box
from popqorn_train.kernels.least_values import least

Scope = Literal["frame", "sequence"]


class Bounds(NamedTuple):
    """A lower and an upper bound on the same quantity, of one shape; NaN is a failure."""

    lower: Tensor
    upper: Tensor


def dual_exponent(p: float) -> float:
    """Return q with 1/p + 1/q = 1."""
    if p == 1:
        return math.inf
    return 1.0 if p == math.inf else p / (p - 1)


def dual_norm(slope: Tensor, p: float) -> Tensor:
    """``||slope||_q`` over the last axis, safe for any p.

    A power like q = 101 (p = 1.01), or the square of 1e-25 in float32, underflows, which would
    make the norm, and so the reach of the ball, too small: the largest entry is factored out.
    """
    q = dual_exponent(p)
    if q in (1.0, math.inf):
        return vector_norm(slope, q, dim=-1)
    scale = slope.detach().abs().amax(-1, keepdim=True).clamp(min=torch.finfo(slope.dtype).tiny)
    return scale.squeeze(-1) * vector_norm(slope / scale, q, dim=-1)


@dataclass(frozen=True, eq=False)
class Region:
    """A ball placed around an input, seen through a per-feature affine map.

    Attributes:
        value: ``(B, T, N)`` what the network reads at the centre.
        scale: broadcastable to ``(B, T, N)``, from input units to what the network reads; or None.
        epsilon: ``(B, T)``, 0 on frames that stay.
        moved: ``(B, T)`` boolean.
        down: ``(B, T, N)`` how far each input can fall, in its own units.
        up: ``(B, T, N)`` how far it can rise.
        p: norm.
        scope: one ball per frame, or one for the sequence.
        clipped: whether ``down`` and ``up`` are cut by a domain.
        features: ``(B, 1, N)`` boolean, those that move; their ``scale`` is 0 where they stay.
            None moves all.
    """

    value: Tensor
    scale: Tensor | None
    epsilon: Tensor
    moved: Tensor
    down: Tensor
    up: Tensor
    p: float
    scope: Scope
    clipped: bool
    features: Tensor | None = None

    @property
    def coordinates(self) -> Tensor:
        """Which coordinates move, boolean and broadcastable to ``(B, T, N)``."""
        moved = self.moved[..., None]
        return moved if self.features is None else moved & self.features

    def frame(self, t: int) -> "Region":
        """One frame alone, as a sequence of one."""
        scale = None if self.scale is None else self.scale.expand(self.value.shape)[:, t : t + 1]
        parts = (self.value, self.epsilon, self.moved, self.down, self.up)
        value, epsilon, moved, down, up = (part[:, t : t + 1] for part in parts)
        rest = self.p, self.scope, self.clipped, self.features
        return Region(value, scale, epsilon, moved, down, up, *rest)

    def _middle(self) -> Tensor:
        """From value to the centre of the coordinate box, ``(B, T, N)``."""
        middle = (self.up - self.down) / 2
        return middle if self.scale is None else middle * self.scale

    @functools.cached_property
    def box(self) -> tuple[Tensor, Tensor]:
        """Coordinate box ``(centre, half width)``, ``(B, T, N)`` each."""
        half = (self.up + self.down) / 2
        return self.value + self._middle(), half if self.scale is None else half * self.scale.abs()

    @functools.cached_property
    def filled_box(self) -> Box:
        """The same for a compiled loop."""
        return filled_box(*self.box)

    def minimum(self, slope: Tensor) -> Tensor:
        """Least value of ``sum(slope * x)`` over the first t frames.

        Exact without a domain and for p = inf. With a domain and p < inf it is the larger of the
        minima over the ball and over the box, frame by frame.

        Args:
            slope: ``(B, K, t, N)`` or ``(1, K, t, N)``.

        Returns:
            ``(B, K)``.
        """
        time = slope.shape[2]
        if self.p == math.inf:
            known = least(slope, *self.box)
            if known is not None:
                return known
            center, half = (part[:, :time] for part in self.box)
            return dot(slope, center) - dot(slope.abs(), half)
        return dot(slope, self.value[:, :time]) + self.fall(slope)

    def extremes(self, slope: Tensor) -> Bounds:
        """Least and greatest value of ``sum(slope * x)``; see ``minimum``.

        Args:
            slope: ``(B, K, t, N)`` or ``(1, K, t, N)``.

        Returns:
            Bounds of shape ``(B, K)``.
        """
        if self.p < math.inf or len(slope) > 1 or not torch.is_grad_enabled():
            return Bounds(self.minimum(slope), -self.minimum(-slope))
        center, half = (part[:, : slope.shape[2]].flatten(1) for part in self.box)
        rows = slope[0].flatten(1)  # the same for all samples: a product of matrices
        return around(center @ rows.T, half @ rows.abs().T)

    def fall(self, slope: Tensor, first: int = 0) -> Tensor:
        """How far ``sum(slope * x)`` may fall below its value at the centre, for p < inf.

        Args:
            slope: ``(B, K, t, N)`` or ``(1, K, t, N)``, on t frames.
            first: of these frames.

        Returns:
            ``(B, K)``, not positive.
        """
        frames = slice(first, first + slope.shape[2])
        own = slope if self.scale is None else slope * self._cut(self.scale, frames)
        if self.scope == "sequence":
            own = own * self.moved[:, None, frames, None]
            fall = -self.epsilon.amax(1, keepdim=True) * dual_norm(own.flatten(2), self.p)
        else:
            fall = -self.epsilon[:, None, frames] * dual_norm(own, self.p)  # (B, K, t)
        if self.clipped:
            fall = torch.maximum(fall, self._box_fall(slope, frames))
        return fall if self.scope == "sequence" else fall.sum(-1)

    def _cut(self, scale: Tensor, frames: slice) -> Tensor:
        return scale.expand(self.value.shape)[:, None, frames]

    def _box_fall(self, slope: Tensor, frames: slice) -> Tensor:
        """How far ``slope . x`` can fall over the box: ``(B, K, t)``, or ``(B, K)`` in all."""
        middle = self._middle()[:, None, frames]
        half = self.box[1][:, None, frames]
        fall = (slope * middle - slope.abs() * half).sum(-1)
        return fall.sum(-1) if self.scope == "sequence" else fall

    def linear_bounds(self, weight: Tensor) -> Bounds:
        """Range of ``weight @ x[t]`` in every frame.

        Args:
            weight: ``(O, N)``.

        Returns:
            Bounds of shape ``(B, T, O)``, exact without a domain and for p = inf.
        """
        if self.p == math.inf:
            return self._box_bounds(weight)
        scaled = weight if self.scale is None else weight * self.scale.unsqueeze(-2)
        reach = self.epsilon[..., None] * dual_norm(scaled, self.p)
        ball = around(self.value @ weight.T, reach)
        if not self.clipped:
            return ball
        box = self._box_bounds(weight)
        lower, upper = torch.maximum(ball.lower, box.lower), torch.minimum(ball.upper, box.upper)
        return Bounds(lower, upper)

    def _box_bounds(self, weight: Tensor) -> Bounds:
        center, half = self.box
        return around(center @ weight.T, half @ weight.abs().T)

    def coordinate_bounds(self) -> Bounds:
        """Range of every coordinate, ``(B, T, N)``."""
        return around(*self.box)


def around(center: Tensor, radius: Tensor) -> Bounds:
    """From a radius below to a radius above."""
    return Bounds(center - radius, center + radius)


def for_batch(x: Tensor, batch: int) -> Tensor:
    """A value ``(B or 1, *shape)`` for a batch; itself if it has one: views cost time."""
    return x if x.shape[0] == batch else x.expand(batch, *x.shape[1:])


def dot(slope: Tensor, x: Tensor) -> Tensor:
    """Inner product of ``(B, K, ...)`` slopes with ``(B, ...)`` values: ``(B, K)``."""
    if len(slope) == 1 < len(x):  # the same for all samples: a product of matrices
        return x.reshape(len(x), -1) @ slope.reshape(slope.shape[1], -1).T
    columns = x.reshape(len(x), -1, 1)  # one number per sample counts as one feature
    return (slope.reshape(*slope.shape[:2], -1) @ columns).squeeze(-1)
