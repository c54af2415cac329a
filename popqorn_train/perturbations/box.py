"""What may move, as ends of every coordinate; and everything that may say what moves.

B: batch, T: frames, N: features of a frame.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from popqorn_train.perturbations.arguments import (
    as_numbers,
    check_order,
    cut,
    edge_of_frames,
    numbers,
    room,
    shown,
)
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.perturbations.region import Region


@dataclass(frozen=True, eq=False)
class Box:
    """What may move, given by the ends of every coordinate instead of a size.

    Everything is in the units of the input that moves. A frame whose ends coincide stays.

    Attributes:
        lower: least value of every coordinate, a float or broadcastable to ``(B, T, N)``.
        upper: greatest value, likewise.
        share: how much of the way from the input to the ends may be gone, from 0 to 1.

    Raises:
        TypeError: an end that is no number, and no tensor, array or list of numbers.
        ValueError: an end that is not finite, ``lower`` above ``upper``, or a share out of range,
            at construction.
    """

    lower: float | Tensor
    upper: float | Tensor
    share: float = 1.0

    def __post_init__(self) -> None:
        edges = {}
        for name in ("lower", "upper"):
            object.__setattr__(self, name, as_numbers(name, getattr(self, name)))
            edges[name] = numbers(name, getattr(self, name))
        for name, edge in edges.items():
            if not edge.isfinite().all():
                raise ValueError(f"`{name}` must be finite, got {shown(edge)}.")
        check_order(edges)
        if not isinstance(self.share, int | float) or not 0 <= self.share <= 1:
            raise ValueError(f"`share` must be a number from 0 to 1, got {self.share!r}.")

    @property
    def speaks_of_frames(self) -> bool:
        """As of ``LpBall``."""
        return edge_of_frames(self.lower) or edge_of_frames(self.upper)

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
        bounded = None if free is None else ~free[..., None]
        down = room("lower", center, self.lower, bounded)
        up = room("upper", center, self.upper, bounded)
        down, up = (self.share * size for size in (down, up))
        if bounded is not None:  # what is never read stays, wherever it is
            down, up = (torch.where(bounded, size, 0) for size in (down, up))
        size = torch.maximum(down, up).amax(-1)
        value = center if value is None else value
        return Region(value, scale, size, size > 0, down, up, math.inf, "frame", True)

    def pick(self, chosen: Tensor, batch: int) -> "Box":
        """The box of some samples of a batch."""
        lower, upper = (cut(edge, chosen, batch, 3) for edge in (self.lower, self.upper))
        return Box(lower, upper, self.share)


Perturbation = LpBall | Box


def check_ball(ball: Perturbation) -> Perturbation:
    """Refuse what is no perturbation.

    Raises:
        TypeError: naming the argument.
    """
    if not isinstance(ball, Perturbation):
        raise TypeError(f"`ball` must be an LpBall or a Box, got {type(ball).__name__}.")
    return ball
