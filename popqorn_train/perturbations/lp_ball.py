"""What may move, and how far: the argument that every public function takes.

B: batch, T: frames, N: features of a frame.
"""

import math
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from popqorn_train.perturbations.arguments import (
    as_norm,
    as_numbers,
    check_mask,
    check_order,
    cut,
    edge_of_frames,
    numbers,
    placed_masks,
    room,
)
from popqorn_train.perturbations.masks import as_mask
from popqorn_train.perturbations.region import Region, Scope, dual_norm


@dataclass(frozen=True, eq=False)
class LpBall:
    """An l_p ball around the input: one for each frame, or one for the whole sequence.

    Frames are what the first recurrent layer reads at each step, if only layout changes and
    per-feature scalings lead to it. Otherwise they lie on axis 1 of the perturbed tensor, as passed
    (axis 0 if time comes first), or on the ``frame_axis`` given to ``bound``; all other axes but
    the batch are features. Everything is in the units of the perturbed tensor. Numbers may also be
    numpy numbers, arrays, lists, or ``"inf"``; they become floats and tensors.

    Attributes:
        epsilon: size of the ball; a float, ``(B,)``, or ``(B, T)`` with ``scope="frame"``.
        p: norm, any real from 1 to ``math.inf``.
        frames: ``(T,)`` or ``(B, T)`` boolean mask of the perturbed frames; None perturbs all.
        scope: ``"frame"``: each frame has a ball of its own (POPQORN's setting);
            ``"sequence"``: one ball around the whole sequence.
        low: least value an input can have, a float or broadcastable to ``(B, T, N)``.
        high: greatest value, likewise.
        features: ``(N,)`` or ``(B, N)`` boolean mask of the perturbed features in those frames;
            None perturbs all. The others stay fixed: categories, for example.

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
    features: Tensor | None = None

    def __post_init__(self) -> None:
        self._read()
        if self.scope not in ("frame", "sequence"):
            raise ValueError(f"`scope` must be 'frame' or 'sequence', got {self.scope!r}.")
        self._check_epsilon()
        check_mask("frames", self.frames, "T")
        check_mask("features", self.features, "N")
        self._check_domain()

    def _read(self) -> None:
        """Take the arguments as they come: numbers of numpy, arrays, lists, ``"inf"``."""
        read: dict[str, Any] = {"p": as_norm(self.p)}
        for name in ("epsilon", "low", "high"):
            value = getattr(self, name)
            read[name] = as_numbers(name, value) if value is not None or name == "epsilon" else None
        for name in ("frames", "features"):
            read[name] = as_mask(name, getattr(self, name))
        for name, value in read.items():
            object.__setattr__(self, name, value)

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
                "one ball around the sequence has one epsilon per sample, (B,)."
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
        masked = self.frames is not None or self.features is not None
        return apart or per_frame or edges or masked

    def around(
        self,
        center: Tensor,
        value: Tensor | None = None,
        scale: Tensor | None = None,
        free: Tensor | None = None,
    ) -> "Region":
        """Place the ball around an input.

        Args:
            center: ``(B, T, N)`` clean input, in its own units.
            value: ``(B, T, N)`` what the network reads there, ``scale * center + shift``;
                None means ``center``.
            scale: broadcastable to ``(B, T, N)``; None means 1.
            free: ``(B, T)`` frames that are never read: the domain does not cut them.

        Raises:
            ValueError: shapes that do not fit, or an input outside ``[low, high]``.
        """
        batch, time, _ = center.shape
        moved, features = placed_masks(self.frames, self.features, center)
        epsilon = self._per_frame_epsilon(batch, time, center) * moved
        down = up = epsilon[..., None].expand_as(center)
        if features is not None:
            down = up = down * features
            scale = features.to(center) if scale is None else scale * features
        bounded = None
        if self.frames is not None or features is not None or free is not None:
            bounded = moved[..., None] if features is None else moved[..., None] & features
            bounded = bounded if free is None else bounded & ~free[..., None]
        if self.low is not None:
            down = torch.minimum(down, room("low", center, self.low, bounded))
        if self.high is not None:
            up = torch.minimum(up, room("high", center, self.high, bounded))
        clipped = self.low is not None or self.high is not None
        value = center if value is None else value
        return Region(value, scale, epsilon, moved, down, up, self.p, self.scope, clipped, features)

    def sized(self, size: float | Tensor) -> "LpBall":
        """The ball with another epsilon: a float, or ``(B,)``."""
        return replace(self, epsilon=size)

    def first_fall(self, gradient: Tensor, region: Region) -> Tensor:
        """How fast a function falls at first as epsilon grows, ``(B,)``.

        Args:
            gradient: ``(B, T, N)`` of the function, at the input.
            region: around the input, of any size but 0.
        """
        free = torch.where(gradient > 0, region.down, region.up) > 0  # not stopped by the domain
        gradient = gradient * free
        if region.scope == "sequence":
            gradient = gradient.flatten(1)[:, None]
        return dual_norm(gradient, region.p).sum(1)

    def length(self, change: Tensor, region: Region) -> Tensor:
        """The least epsilon of a ball that holds a change ``(B, T, N)`` of the input, ``(B,)``."""
        blocks = change.flatten(1)[:, None] if region.scope == "sequence" else change
        return torch.linalg.vector_norm(blocks, region.p, dim=-1).amax(1)

    def pick(self, chosen: Tensor, batch: int) -> "LpBall":
        """The ball of some samples of a batch."""

        return replace(
            self,
            epsilon=cut(self.epsilon, chosen, batch, 1),
            frames=cut(self.frames, chosen, batch, 2),
            features=cut(self.features, chosen, batch, 2),
            low=cut(self.low, chosen, batch, 3),
            high=cut(self.high, chosen, batch, 3),
        )

    def _per_frame_epsilon(self, batch: int, time: int, center: Tensor) -> Tensor:
        epsilon = torch.as_tensor(self.epsilon, dtype=center.dtype, device=center.device)
        if epsilon.shape not in ((), (batch,), (batch, time)):
            shape = tuple(epsilon.shape)
            raise ValueError(
                f"`epsilon` must be a float, ({batch},) or ({batch}, {time}), got shape {shape}."
            )
        return (epsilon if epsilon.ndim != 1 else epsilon[:, None]).expand(batch, time)
