"""Weighted sums of squares of linear functions, as the energies of filters: one convex node.

    E[t, k](x) = sum_j W[k, j] (a[j] . x[t] + b[j])^2,      W >= 0

With the box x0 +- r of a frame, delta = max r, and g the gradient at x0:

    tangent  <=  E  <=  tangent + delta^2 q[k]                          (relaxations/curvature.py)

so both sides have the slopes g, and the bounds keep the correlations between the filters of a
frame and between frames that overlap. Where the tangent may fall below 0, it is the tangent at
``s x0`` for the s in [0, 1] with the greatest minimum. In an l2 ball, a frame moves by at most rho
in all, and its curvature is at most rho^2 lambda_max. All is worked out in float64 and moved
outward by its rounding.

B: batch, R: bounded rows, T: frames, N: entries of a frame, J: squares, K: sums.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.coordinates import on_input, value_of
from popqorn_train.bounds.node import Node, Nonlinear
from popqorn_train.bounds.relaxer import Relaxer
from popqorn_train.bounds.tape import Tape
from popqorn_train.perturbations.region import Bounds, Region, dot
from popqorn_train.relaxations.curvature import Curvature, curvature_of
from popqorn_train.relaxations.extremum import slack

_SAFETY = 4.0  # times the error of a sum


class Tangents(NamedTuple):
    """``share * slope . x + lower  <=  E  <=  slope . x + upper``.

    Attributes:
        slope: ``(B, T, K, N)`` gradients at the centre.
        share: ``(B, T, K)`` in [0, 1], of the lower side.
        lower: ``(B, T, K)``.
        upper: likewise.
    """

    slope: Tensor
    share: Tensor
    lower: Tensor
    upper: Tensor


class _Around(NamedTuple):
    """What is known around the centre of a box, in float64, each ``(B, T, K)`` but for the first.

    Attributes:
        slope: ``(B, T, K, N)``.
        offset: ``(B, T, N)`` the centre.
        energy: at the centre.
        reach: of the gradient over the box.
        bend: the curvature.
        error: how much rounding may change a tangent.
    """

    slope: Tensor
    offset: Tensor
    energy: Tensor
    reach: Tensor
    bend: Tensor
    error: Tensor


class Quadratic(Nonlinear):
    """Sums of squares of a sequence ``(T, N)``, which the perturbation moves entry by entry.

    Args:
        x: node of shape ``(T, N)`` of which every entry reads one coordinate of the input.
        a: ``(J, N)``.
        b: ``(J,)`` or None.
        weight: ``(K, J)``, not negative.
    """

    def __init__(self, x: Node, a: Tensor, b: Tensor | None, weight: Tensor) -> None:
        super().__init__([x], (*x.shape[:-1], len(weight)), x.batch_axis)
        self._a, self._weight = a.double(), weight.double()
        self._b = self._a.new_zeros(len(a)) if b is None else b.double()
        if a.requires_grad or weight.requires_grad:
            self._bends  # noqa: B018 - of weights that train, with their gradient
        self._used = [row.nonzero()[:, 0] for row in self._weight.detach()]
        self._stretch = self._stretched() if _is_round(self.region) else None

    @functools.cached_property
    def _bends(self) -> Curvature:
        """Worked out when it is first asked for: not every node that is made is bounded."""
        return curvature_of(self._a, self._weight)

    def _gradients(self, y: Tensor) -> Tensor:
        """``(B, T, K, N)`` from the linear functions ``(B, T, J)``."""
        parts = [
            (2 * y[..., used] * self._weight[k, used]) @ self._a[used]
            for k, used in enumerate(self._used)
        ]
        return torch.stack(parts, -2)

    def _around(self, x: Bounds) -> _Around:
        lower, upper = (end.double() for end in x)
        center = (lower + upper) / 2
        half = torch.maximum(upper - center, center - lower)
        y = center @ self._a.T + self._b
        energy, slope = y.square() @ self._weight.T, self._gradients(y)
        reach = (slope.abs() @ half[..., None])[..., 0]
        most = half.amax(-1, keepdim=True)
        bend = most.square() * self._bends.box
        if self._stretch is not None:
            bend = torch.minimum(bend, self._rho(half)[..., None] * self._bends.ball)
        return _Around(slope, center, energy, reach, bend, self._rounding(center, most, y))

    @torch.no_grad()
    def _rounding(self, center: Tensor, most: Tensor, y: Tensor) -> Tensor:
        """How far energies and tangents at the ends of the box may be off in float64."""
        eps = _SAFETY * sum(self._a.shape) * torch.finfo(y.dtype).eps
        norm = torch.linalg.vector_norm(self._a, dim=1)
        size = torch.linalg.vector_norm(center, dim=-1, keepdim=True) * norm + self._b.abs()
        of_y = eps * size
        across = (of_y + eps * y.abs()) * self._a.abs().sum(1)
        terms = 2 * y.abs() * of_y + of_y.square() + eps * y.square() + 2 * most * across
        return terms @ self._weight.T

    def _rho(self, half: Tensor) -> Tensor:
        """The square of how far a frame moves in an l2 ball, ``(B, T)``; 0 where nothing moves."""
        assert isinstance(self.region, Region)
        assert self._stretch is not None
        radii = self.region.epsilon.double()
        if self.region.scope == "sequence":
            widest = (self._stretch * self.region.moved[:, None]).amax(2)
            return radii.amax(1, keepdim=True).square() * widest
        return (radii[:, None].square() * self._stretch).sum(2)

    @torch.no_grad()
    def _stretched(self) -> Tensor:
        """The greatest squared stretch from a frame of the input to one of x, ``(B, T, t)``.

        Every entry of x reads one coordinate, so the squares of what reads a coordinate add up.
        """
        assert isinstance(self.region, Region)
        (x,), value = self.inputs, self.region.value
        zero, one = (value_of(x, torch.full_like(value, number)) for number in (0.0, 1.0))
        time = x.shape[0]
        eye = torch.eye(time, dtype=value.dtype, device=value.device)
        rows = (one - zero)[:, None] * eye[None, :, :, None]
        squares = on_input(x, rows, len(value)).double()  # (B, T, t, L)
        if self.region.scale is not None:
            scale = self.region.scale.expand(value.shape)[:, None, : squares.shape[2]]
            squares = squares * scale.double().square()
        squares = squares.abs() * (1 + 1e-5)  # its rounding
        rest = value.shape[1] - squares.shape[2]
        return torch.nn.functional.pad(squares.amax(-1), (0, rest))

    def range(self, *inputs: Bounds) -> Bounds:
        """Both tangents over the box; an energy of at most 0 is 0."""
        near = self._around(inputs[0])
        rest = near.error + slack(near.energy, near.reach, near.bend)
        reach = self._ball_reach(near) if self._stretch is not None else near.reach
        root = (near.energy.clamp(min=1e-300).sqrt() - near.bend.sqrt()).clamp(min=0)
        low = torch.maximum(near.energy - reach, root.square()) - rest
        upper = near.energy + reach + near.bend + rest
        dtype = inputs[0].lower.dtype
        return Bounds(*(_outward(*ends, dtype) for ends in ((low.clamp(min=0), -1), (upper, 1))))

    def _ball_reach(self, near: _Around) -> Tensor:
        """How far the gradient reaches over the perturbation itself, ``(B, T, K)``."""
        assert isinstance(self.region, Region)
        batch, time, sums, _ = near.slope.shape
        eye = torch.eye(time, dtype=near.slope.dtype, device=near.slope.device)
        rows = torch.einsum("btkn,ts->btksn", near.slope, eye).flatten(1, 2)
        rows = rows.to(self.region.value)
        low = self.region.fall(on_input(self.inputs[0], rows, batch))
        reach = -low.view(batch, time, sums).double() * (1 + 1e-4)
        return torch.minimum(near.reach, reach)

    def relax(self, relaxer: Relaxer | None, *inputs: Bounds) -> Tangents:
        """The tangent at the centre above, one with the greatest minimum below."""
        near = self._around(inputs[0])
        slope = near.slope.to(inputs[0].lower.dtype)
        rounded = slope.double()
        with torch.no_grad():
            best = 1 - near.reach / (2 * near.energy.clamp(min=1e-300))
            fits = near.energy >= near.reach
            share = torch.where(fits, 1.0, best.clamp(0, 1)).to(slope)
        s = share.double()
        at_center = (rounded @ near.offset[..., None])[..., 0]
        # The slopes are rounded to the precision of the bounds.
        eps = torch.finfo(slope.dtype).eps
        rest = near.error + eps * near.reach + slack(near.energy, at_center, near.bend)
        lower = s * (2 - s) * near.energy - s * at_center - rest
        upper = near.energy - at_center + near.bend + rest
        dtype = slope.dtype
        return Tangents(slope, share, _outward(lower, -1, dtype), _outward(upper, 1, dtype))

    def strip(self, x: Bounds) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients ``(B, T, K, N)``, and the middle and half of what they miss."""
        whole = self.relax(None, x)
        near = self._around(x)
        at_center = (whole.slope.double() @ near.offset[..., None])[..., 0]
        low = (near.energy - at_center - near.error).to(whole.upper)
        rest = slack(low, whole.upper) + torch.finfo(low.dtype).eps * near.reach.to(low)
        return whole.slope, (low + whole.upper) / 2, (whole.upper - low) / 2 + rest

    def at(self, relaxation: Tangents, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Nonlinear``."""
        on_x = (relaxation.slope @ inputs[0][..., None])[..., 0]
        return relaxation.share * on_x + relaxation.lower, on_x + relaxation.upper

    def size(self, relaxation: Tangents, *inputs: Tensor) -> Tensor:
        """Terms of the larger side."""
        on_x = (relaxation.slope.abs() @ inputs[0][..., None])[..., 0]
        return on_x + torch.maximum(relaxation.lower.abs(), relaxation.upper.abs())

    def backward(self, slope: Tensor, tape: Tape, relaxation: Tangents) -> Tensor:
        """Replace every sum by the tangent on the side that matters."""
        gradients, share, lower, upper = (part[:, : slope.shape[2]] for part in relaxation)
        positive = slope.relu()
        negative = slope - positive
        on_tangents = positive * share[:, None] + negative  # (B, R, t, K)
        on_x = on_tangents.transpose(1, 2) @ gradients  # (B, t, R, N)
        tape.add(self.inputs[0], on_x.transpose(1, 2))
        return dot(positive, lower) + dot(negative, upper)


def _is_round(region: Any) -> bool:
    """Whether an l2 ball around the centre of its box holds all of it."""
    return isinstance(region, Region) and region.p <= 2 and not region.clipped


def _outward(x: Tensor, sign: int, dtype: torch.dtype) -> Tensor:
    """A float64 bound in another precision, rounded outward."""
    rest = torch.finfo(dtype).eps * x.detach().abs()
    return (x + sign * rest).to(dtype)
