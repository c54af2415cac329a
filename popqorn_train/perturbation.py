"""The set an input may move in, and the least value a linear function takes on it.

    minimum of slope . x over ||x - center||_p <= epsilon
        = slope . center - epsilon * ||slope||_q,      1/p + 1/q = 1        (Hoelder; attained)

B: batch, K: bounded outputs, T: frames, N: features of a frame, O: outputs of a linear layer.
"""

import math
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

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

    A power like q = 101 (p = 1.01) underflows on small entries, which would make the norm, and
    so the reach of the ball, too small: the largest entry is factored out first.
    """
    q = dual_exponent(p)
    if q in (1.0, 2.0, math.inf):
        return vector_norm(slope, q, dim=-1)
    scale = slope.detach().abs().amax(-1, keepdim=True).clamp(min=torch.finfo(slope.dtype).tiny)
    return scale.squeeze(-1) * vector_norm(slope / scale, q, dim=-1)


@dataclass(frozen=True, eq=False)
class LpBall:
    """What may move, and how far: every frame in its own l_p ball, or the sequence in one.

    Frames are axis 1 of the moved tensor as it enters the first recurrent layer (axis 0 is the
    batch, the rest are features). Everything is in the units of the input that moves.

    Attributes:
        epsilon: size of the ball; a float, ``(B,)``, or ``(B, T)`` with ``scope="frame"``.
        p: norm, any real from 1 to ``math.inf``.
        frames: ``(T,)`` or ``(B, T)`` boolean mask of the frames that move; None moves all.
        scope: ``"frame"``: each frame has a ball of its own (POPQORN's setting);
            ``"sequence"``: one ball around the whole sequence.
        low: least value an input can have, a float or broadcastable to ``(B, T, N)``.
        high: greatest value, likewise.

    Raises:
        ValueError: a value out of range, at construction.

    Source:
        Ko et al., "POPQORN", ICML 2019, section 3 (the per-frame ball).
    """

    epsilon: float | Tensor
    p: float = math.inf
    _: KW_ONLY
    frames: Tensor | None = None
    scope: Scope = "frame"
    low: float | Tensor | None = None
    high: float | Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.p, int | float) or not self.p >= 1:
            raise ValueError(f"`p` must be a number from 1 to math.inf, got {self.p!r}.")
        if self.scope not in ("frame", "sequence"):
            raise ValueError(f"`scope` must be 'frame' or 'sequence', got {self.scope!r}.")
        self._check_epsilon()
        self._check_mask()
        self._check_domain()

    def _check_epsilon(self) -> None:
        epsilon = _numbers("epsilon", self.epsilon)
        if epsilon.ndim > 2 or epsilon.numel() == 0:
            shape = tuple(epsilon.shape)
            raise ValueError(f"`epsilon` must be a float, (B,) or (B, T), got shape {shape}.")
        if not (torch.isfinite(epsilon) & (epsilon >= 0)).all():
            raise ValueError(f"`epsilon` must be finite and not negative, got {self.epsilon}.")
        if epsilon.ndim == 2 and self.scope == "sequence":
            raise ValueError(
                "`epsilon` of shape (B, T) needs scope='frame'; "
                "one ball around the sequence has one epsilon a sample, (B,)."
            )

    def _check_mask(self) -> None:
        if self.frames is None:
            return
        if not isinstance(self.frames, Tensor):
            kind = type(self.frames).__name__
            raise TypeError(f"`frames` must be a boolean tensor, (T,) or (B, T), got {kind}.")
        if self.frames.dtype != torch.bool or self.frames.ndim not in (1, 2):
            found = f"{self.frames.dtype} of shape {tuple(self.frames.shape)}"
            raise ValueError(f"`frames` must be a boolean (T,) or (B, T) mask, got {found}.")
        if not self.frames.any(-1).all():
            raise ValueError(
                "`frames` moves nothing in at least one sample; mark a frame, "
                "or leave that sample out."
            )

    def _check_domain(self) -> None:
        edges = {
            name: _numbers(name, edge)
            for name, edge in (("low", self.low), ("high", self.high))
            if edge is not None
        }
        for name, edge in edges.items():
            if edge.isnan().any():
                raise ValueError(f"`{name}` must not be NaN.")
        if len(edges) < 2:
            return
        try:
            ordered = bool((edges["low"] <= edges["high"]).all())
        except RuntimeError as error:
            shapes = [tuple(edge.shape) for edge in edges.values()]
            raise ValueError(f"`low` and `high` must fit together, got {shapes}.") from error
        if not ordered:
            low, high = (_shown(edge) for edge in edges.values())
            raise ValueError(f"`low` must not exceed `high`, got low={low} and high={high}.")

    def around(
        self, center: Tensor, value: Tensor | None = None, scale: Tensor | None = None
    ) -> "Region":
        """Place the ball around an input.

        Args:
            center: ``(B, T, N)`` clean input, in its own units.
            value: ``(B, T, N)`` what the network reads there, ``scale * center + shift``;
                None means ``center``.
            scale: broadcastable to ``(B, T, N)``; None means 1.

        Raises:
            ValueError: shapes that do not fit, or an input outside ``[low, high]``.
        """
        batch, time, _ = center.shape
        moved = self._moved(batch, time, center.device)
        epsilon = self._per_frame_epsilon(batch, time, center) * moved
        down = up = epsilon[..., None].expand_as(center)
        if self.low is not None:
            down = torch.minimum(down, _room("low", center, self.low))
        if self.high is not None:
            up = torch.minimum(up, _room("high", center, self.high))
        clipped = self.low is not None or self.high is not None
        value = center if value is None else value
        return Region(value, scale, epsilon, moved, down, up, self.p, self.scope, clipped)

    @property
    def speaks_of_frames(self) -> bool:
        """Whether it matters which entries of an input make a frame."""
        per_frame = isinstance(self.epsilon, Tensor) and self.epsilon.ndim == 2
        return self.p < math.inf or self.frames is not None or per_frame

    def pick(self, chosen: Tensor, batch: int) -> "LpBall":
        """The ball of some samples of a batch."""

        def cut(value: Any, samples_at: int) -> Any:
            whole = isinstance(value, Tensor) and value.ndim >= samples_at and len(value) == batch
            return value[chosen.to(value.device)] if whole else value

        return replace(
            self,
            epsilon=cut(self.epsilon, 1),
            frames=cut(self.frames, 2),
            low=cut(self.low, 3),
            high=cut(self.high, 3),
        )

    def _moved(self, batch: int, time: int, device: torch.device) -> Tensor:
        if self.frames is None:
            return torch.ones(batch, time, dtype=torch.bool, device=device)
        if self.frames.shape not in ((time,), (batch, time)):
            shape = tuple(self.frames.shape)
            raise ValueError(f"`frames` must be ({time},) or ({batch}, {time}), got {shape}.")
        return self.frames.to(device).expand(batch, time)

    def _per_frame_epsilon(self, batch: int, time: int, center: Tensor) -> Tensor:
        epsilon = torch.as_tensor(self.epsilon, dtype=center.dtype, device=center.device)
        if epsilon.shape not in ((), (batch,), (batch, time)):
            shape = tuple(epsilon.shape)
            raise ValueError(
                f"`epsilon` must be a float, ({batch},) or ({batch}, {time}), got shape {shape}."
            )
        return (epsilon if epsilon.ndim != 1 else epsilon[:, None]).expand(batch, time)


def _numbers(name: str, value: Any) -> Tensor:
    """An argument as float64.

    Raises:
        TypeError: not real numbers.
    """
    real = isinstance(value, Tensor) and not value.is_complex() and value.dtype != torch.bool
    if not (real or (isinstance(value, int | float) and not isinstance(value, bool))):
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"`{name}` must be a float or a tensor of real numbers, got {kind}.")
    return torch.as_tensor(value, dtype=torch.float64)


def _room(name: str, center: Tensor, edge: float | Tensor) -> Tensor:
    """How far every input can move towards an edge of the domain.

    An input on its edge may lie beyond it by the rounding of its own precision.
    """
    bound = torch.as_tensor(edge, dtype=center.dtype, device=center.device)
    try:
        bound = bound.expand_as(center)
    except RuntimeError as error:
        raise ValueError(
            f"`{name}` must be a float or fit {tuple(center.shape)}, got {tuple(bound.shape)}."
        ) from error
    room = center - bound if name == "low" else bound - center
    if (room < -1e-6 * (1 + bound.abs())).any():
        raise ValueError(
            f"`inputs` must lie inside [low, high]; with {name}={_shown(bound)} the input "
            f"is outside by up to {-room.min().item():.3g}. Scale the inputs, or widen "
            f"`{name}`."
        )
    return room.clamp(min=0)


def _shown(edge: Tensor) -> str:
    alike = bool((edge == edge.flatten()[0]).all())
    return f"{edge.flatten()[0].item():g}" if alike else f"a tensor of shape {tuple(edge.shape)}"


class Region(NamedTuple):
    """A ball placed around an input, seen through a per-feature affine map.

    Attributes:
        value: ``(B, T, N)`` what the network reads at the centre.
        scale: broadcastable to ``(B, T, N)``, from input units to what the network reads; or None.
        epsilon: ``(B, T)``, 0 on frames that stay.
        moved: ``(B, T)`` boolean.
        down: ``(B, T, N)`` how far each input can fall, in its own units.
        up: ``(B, T, N)`` how far it can rise.
        p: norm.
        scope: one ball a frame, or one for the sequence.
        clipped: whether ``down`` and ``up`` are cut by a domain.
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

    def box(self) -> tuple[Tensor, Tensor]:
        """Coordinate box ``(offset of its centre from value, half width)``, ``(B, T, N)`` each."""
        middle, half = (self.up - self.down) / 2, (self.up + self.down) / 2
        if self.scale is None:
            return middle, half
        return middle * self.scale, half * self.scale.abs()

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
        value = self.value[:, :time]
        if self.p == math.inf:
            middle, half = (part[:, :time] for part in self.box())
            return _dot(slope, value + middle) - _dot(slope.abs(), half)
        own = slope if self.scale is None else slope * self._cut(self.scale, time)
        if self.scope == "sequence":
            own = own * self.moved[:, None, :time, None]
            fall = -self.epsilon.amax(1, keepdim=True) * dual_norm(own.flatten(2), self.p)
        else:
            fall = -self.epsilon[:, None, :time] * dual_norm(own, self.p)  # (B, K, t)
        if self.clipped:
            fall = torch.maximum(fall, self._box_fall(slope, time))
        return _dot(slope, value) + (fall if self.scope == "sequence" else fall.sum(-1))

    def _cut(self, scale: Tensor, time: int) -> Tensor:
        return scale.expand(self.value.shape)[:, None, :time]

    def _box_fall(self, slope: Tensor, time: int) -> Tensor:
        """How far ``slope . x`` can fall over the box: ``(B, K, t)``, or ``(B, K)`` in all."""
        middle, half = (part[:, None, :time] for part in self.box())
        fall = (slope * middle - slope.abs() * half).sum(-1)
        return fall.sum(-1) if self.scope == "sequence" else fall

    def linear_bounds(self, weight: Tensor) -> Bounds:
        """Range of ``weight @ x[t]`` in every frame.

        Args:
            weight: ``(O, N)``.

        Returns:
            Bounds of shape ``(B, T, O)``, exact without a domain and for p = inf.
        """
        center = self.value @ weight.T
        middle, half = self.box()
        fall, rise = (
            middle @ weight.T - half @ weight.abs().T,
            middle @ weight.T + half @ weight.abs().T,
        )
        if self.p < math.inf:
            scaled = weight if self.scale is None else weight * self.scale.unsqueeze(-2)
            reach = self.epsilon[..., None] * dual_norm(scaled, self.p)
            if self.clipped:
                fall, rise = torch.maximum(fall, -reach), torch.minimum(rise, reach)
            else:
                fall, rise = -reach, reach
        return Bounds(center + fall, center + rise)

    def coordinate_bounds(self) -> Bounds:
        """Range of every coordinate, ``(B, T, N)``."""
        middle, half = self.box()
        return Bounds(self.value + middle - half, self.value + middle + half)


def _dot(slope: Tensor, x: Tensor) -> Tensor:
    """Inner product of ``(B, K, ...)`` slopes with ``(B, ...)`` values: ``(B, K)``."""
    return (slope.flatten(2) @ x.flatten(1)[..., None]).squeeze(-1)
