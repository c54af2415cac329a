"""What may move, and how far: the argument that every public function takes.

B: batch, T: frames, N: features of a frame.
"""

import math
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from popqorn_train.perturbations.region import Region, Scope


@dataclass(frozen=True, eq=False)
class LpBall:
    """What may move, and how far: every frame in its own l_p ball, or the sequence in one.

    Frames are those that the first recurrent layer reads where layout changes and per-feature
    scalings alone lead to it. Else they lie on axis 1 of the tensor that moves, as passed (axis 0
    where time comes first), or on the ``frame_axis`` given to ``bound``; every other axis but the
    batch is features. Everything is in the units of the input that moves.

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
        epsilon = numbers("epsilon", self.epsilon)
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
            name: numbers(name, edge)
            for name, edge in (("low", self.low), ("high", self.high))
            if edge is not None
        }
        for name, edge in edges.items():
            if edge.isnan().any():
                raise ValueError(f"`{name}` must not be NaN.")
        if len(edges) == 2:
            check_order(edges)

    @property
    def speaks_of_frames(self) -> bool:
        """Whether other inputs are meant where frames lie on another axis."""
        apart = self.scope == "frame" and self.p < math.inf
        per_frame = isinstance(self.epsilon, Tensor) and self.epsilon.ndim == 2
        edges = edge_of_frames(self.low) or edge_of_frames(self.high)
        return apart or per_frame or edges or self.frames is not None

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
            down = torch.minimum(down, room("low", center, self.low))
        if self.high is not None:
            up = torch.minimum(up, room("high", center, self.high))
        clipped = self.low is not None or self.high is not None
        value = center if value is None else value
        return Region(value, scale, epsilon, moved, down, up, self.p, self.scope, clipped)

    def pick(self, chosen: Tensor, batch: int) -> "LpBall":
        """The ball of some samples of a batch."""

        return replace(
            self,
            epsilon=cut(self.epsilon, chosen, batch, 1),
            frames=cut(self.frames, chosen, batch, 2),
            low=cut(self.low, chosen, batch, 3),
            high=cut(self.high, chosen, batch, 3),
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


def cut(value: Any, chosen: Tensor, batch: int, samples_at: int) -> Any:
    """The part of some samples; ``samples_at`` axes mean that the first one is the batch."""
    whole = isinstance(value, Tensor) and value.ndim >= samples_at and len(value) == batch
    return value[chosen.to(value.device)] if whole else value


def edge_of_frames(edge: float | Tensor | None) -> bool:
    """Whether an end of the domain differs from frame to frame, or between features."""
    return isinstance(edge, Tensor) and any(size > 1 for size in edge.shape[-2:])


def check_order(edges: dict[str, Tensor]) -> None:
    """Refuse a lower end above the upper one."""
    (low, lower), (high, upper) = edges.items()
    try:
        ordered = bool((lower <= upper).all())
    except RuntimeError as error:
        shapes = [tuple(edge.shape) for edge in edges.values()]
        raise ValueError(f"`{low}` and `{high}` must fit together, got {shapes}.") from error
    if not ordered:
        raise ValueError(
            f"`{low}` must not exceed `{high}`, got {low}={shown(lower)} and {high}={shown(upper)}."
        )


def numbers(name: str, value: Any) -> Tensor:
    """An argument as float64.

    Raises:
        TypeError: not real numbers.
    """
    real = isinstance(value, Tensor) and not value.is_complex() and value.dtype != torch.bool
    if not (real or (isinstance(value, int | float) and not isinstance(value, bool))):
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"`{name}` must be a float or a tensor of real numbers, got {kind}.")
    return torch.as_tensor(value, dtype=torch.float64)


def room(name: str, center: Tensor, edge: float | Tensor) -> Tensor:
    """How far every input can move towards an edge of the domain.

    An input on its edge may lie beyond it by the rounding of its own precision.
    """
    bound = torch.as_tensor(edge, dtype=center.dtype, device=center.device)
    try:
        bound.expand_as(center)
    except RuntimeError as error:
        raise ValueError(
            f"`{name}` must be a float or fit {tuple(center.shape)}, got {tuple(bound.shape)}."
        ) from error
    room = center - bound if name.startswith("low") else bound - center
    if room.amin() >= 0:
        return room
    if (room + 1e-6 * (1 + bound.abs()) < 0).any():
        ends = "[low, high]" if name in ("low", "high") else "[lower, upper]"
        raise ValueError(
            f"`inputs` must lie inside {ends}; with {name}={shown(bound)} the input "
            f"is outside by up to {-room.min().item():.3g}. Scale the inputs, or widen "
            f"`{name}`."
        )
    return room.clamp(min=0)


def shown(edge: Tensor) -> str:
    """An end of the domain, for a message."""
    alike = bool((edge == edge.flatten()[0]).all())
    return f"{edge.flatten()[0].item():g}" if alike else f"a tensor of shape {tuple(edge.shape)}"
