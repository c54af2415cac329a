"""What may move, as ends of every coordinate; and everything that may say what moves.

B: batch, T: frames, N: features of a frame.
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from popqorn_train.perturbations.arguments import (
    as_numbers,
    check_mask,
    check_order,
    cut,
    edge_of_frames,
    numbers,
    placed_masks,
    room,
    shown,
)
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.perturbations.masks import Mask, as_mask
from popqorn_train.perturbations.region import Region, Scope

# A configuration has lists in place of tensors.
Edge = float | Tensor | Sequence[float] | Sequence[Sequence[float]] | NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Box:
    """A range for each coordinate of the perturbed tensor, instead of a ball.

    Everything is in the units of that tensor. A coordinate whose ends coincide stays fixed.

    Attributes:
        lower: least value of every coordinate, a float or broadcastable to ``(B, T, N)``; a list
            or an array becomes a tensor.
        upper: greatest value, likewise.
        share: how far each coordinate may move from the input towards its ends, from 0 (not at
            all) to 1 (the whole range); a float or ``(B,)``. It is what a search maximises.
        frames: ``(T,)`` or ``(B, T)`` boolean mask of the perturbed frames; None perturbs all.
        features: ``(N,)`` or ``(B, N)`` boolean mask of the perturbed features in those frames;
            None perturbs all. The others stay fixed, also outside the box.

    Raises:
        TypeError: an end that is no number, and no tensor, array or list of numbers; no mask.
        ValueError: an end that is not finite, ``lower`` above ``upper``, or a share or a mask out
            of range, at construction.
    """

    lower: Edge
    upper: Edge
    share: float | Tensor = 1.0
    _: KW_ONLY
    frames: Mask | None = None
    features: Mask | None = None

    def __post_init__(self) -> None:
        edges = {}
        for name in ("lower", "upper"):
            object.__setattr__(self, name, as_numbers(name, getattr(self, name)))
            edges[name] = numbers(name, getattr(self, name))
        for name, edge in edges.items():
            if not edge.isfinite().all():
                raise ValueError(f"`{name}` must be finite, got {shown(edge)}.")
        check_order(edges)
        self._check_share()
        for name, axis in (("frames", "T"), ("features", "N")):
            object.__setattr__(self, name, as_mask(name, getattr(self, name)))
            check_mask(name, getattr(self, name), axis)

    def _check_share(self) -> None:
        if isinstance(self.share, Tensor):
            known = self.share.ndim == 1 and bool(((self.share >= 0) & (self.share <= 1)).all())
        else:
            known = isinstance(self.share, int | float) and 0 <= self.share <= 1
        if not known:
            raise ValueError(
                f"`share` must be a number from 0 to 1, or (B,) of them, got {self.share!r}."
            )

    @property
    def ends(self) -> tuple[float | Tensor, float | Tensor]:
        """Both ends, as numbers or tensors."""
        return cast("tuple[float | Tensor, float | Tensor]", (self.lower, self.upper))

    @property
    def masks(self) -> tuple[Tensor | None, Tensor | None]:
        """Of frames and of features."""
        return cast("tuple[Tensor | None, Tensor | None]", (self.frames, self.features))

    @property
    def speaks_of_frames(self) -> bool:
        """As of ``LpBall``."""
        masked = any(mask is not None for mask in self.masks)
        return masked or any(map(edge_of_frames, self.ends))

    def around(
        self,
        center: Tensor,
        value: Tensor | None = None,
        scale: Tensor | None = None,
        free: Tensor | None = None,
    ) -> Region:
        """The box seen from an input, as ``LpBall.around``.

        Raises:
            ValueError: shapes that do not fit, or an input outside the box.
        """
        bounded = self._bounded(center, free)
        down, up = self._rooms(center, bounded)
        if bounded is not None:
            down, up = (torch.where(bounded, size, 0) for size in (down, up))
        share = self._placed_share(center)
        down, up = share * down, share * up
        size = torch.maximum(down, up).amax(-1)
        value = center if value is None else value
        return Region(value, scale, size, size > 0, down, up, math.inf, "frame", True)

    def _rooms(self, center: Tensor, bounded: Tensor | None) -> tuple[Tensor, Tensor]:
        """How far every coordinate is from both ends."""
        lower, upper = self.ends
        return room("lower", center, lower, bounded), room("upper", center, upper, bounded)

    def _bounded(self, center: Tensor, free: Tensor | None) -> Tensor | None:
        """What moves, broadcastable to ``(B, T, N)``: what stays or is never read may be anywhere.

        None means all.
        """
        frames, features = self.masks
        if frames is None and features is None and free is None:
            return None
        moved, columns = placed_masks(frames, features, center)
        moved = moved[..., None] if free is None else (moved & ~free)[..., None]
        return moved if columns is None else moved & columns

    def _placed_share(self, center: Tensor) -> float | Tensor:
        if not isinstance(self.share, Tensor):
            return self.share
        if len(self.share) != len(center):
            given = f"({len(self.share)},)"
            raise ValueError(f"`share` must be a float or ({len(center)},), got {given}.")
        return self.share.to(center)[:, None, None]

    def pick(self, chosen: Tensor, batch: int) -> "Box":
        """The box of some samples of a batch."""
        lower, upper = (cut(edge, chosen, batch, 3) for edge in self.ends)
        frames, features = (cut(mask, chosen, batch, 2) for mask in self.masks)
        share = cut(self.share, chosen, batch, 1)
        return Box(lower, upper, share, frames=frames, features=features)

    def sized(self, size: float | Tensor) -> "Box":
        """The box with another share: a float, or ``(B,)``."""
        return replace(self, share=size)

    def first_fall(self, gradient: Tensor, region: Region) -> Tensor:
        """How fast a function falls at first as the share grows; see ``LpBall.first_fall``.

        Args:
            gradient: ``(B, T, N)`` of the function, at the input.
            region: the whole box around the input.
        """
        return (gradient.abs() * torch.where(gradient > 0, region.down, region.up)).sum((1, 2))

    def length(self, change: Tensor, region: Region) -> Tensor:
        """The least share of the box that holds a change, ``(B,)``; see ``LpBall.length``."""
        room = torch.where(change > 0, region.up, region.down)
        part = torch.where(change == 0, 0, change.abs() / room).amax((1, 2))
        return part * torch.as_tensor(self.share).to(part)


Perturbation = LpBall | Box


def searched(
    box: Box | None,
    *,
    p: float,
    frames: Mask | None = None,
    features: Mask | None = None,
    scope: Scope = "frame",
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
) -> Perturbation:
    """What moves while its size is searched: the box, or the ball that the rest describes.

    Raises:
        TypeError, ValueError: no box, or one beside what describes a ball; see ``LpBall``.
    """
    ball = LpBall(
        0.0,
        p,
        frames=as_mask("frames", frames),
        features=as_mask("features", features),
        scope=scope,
        low=low,
        high=high,
    )
    if box is None:
        return ball
    check_box(box, ball)
    return check_searched(box)


def check_box(box: Any, ball: LpBall) -> None:
    """Refuse what is no box, and a box beside what describes a ball.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(box, Box):
        raise TypeError(f"`box` must be a Box or None, got {type(box).__name__}.")
    if not is_plain(ball):
        raise ValueError(
            "`box` describes the perturbation: leave out p, low, high and scope, and pass frames "
            "and features to Box."
        )


def is_plain(ball: LpBall) -> bool:
    """Whether nothing but its size is said of a ball."""
    parts = (ball.low, ball.high, ball.frames, ball.features)
    return ball.p == math.inf and ball.scope == "frame" and all(part is None for part in parts)


def check_searched(ball: Perturbation) -> Perturbation:
    """Refuse what has no size to search, and a box whose share is given.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    check_ball(ball)
    if isinstance(ball, Box) and (isinstance(ball.share, Tensor) or ball.share != 1):
        raise ValueError(
            f"`share` of the box must be left at 1, got {ball.share!r}: the share is what is "
            "searched. To search up to it, pass `max_radius`."
        )
    return ball


def check_ball(ball: Perturbation) -> Perturbation:
    """Refuse what is no perturbation.

    Raises:
        TypeError: naming the argument.
    """
    if not isinstance(ball, Perturbation):
        raise TypeError(f"`ball` must be an LpBall or a Box, got {type(ball).__name__}.")
    return ball
