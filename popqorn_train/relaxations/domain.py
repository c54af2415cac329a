"""Sets of pairs (x, y) on which a product is enclosed: a box, or an octagon inside it.

The two arguments of a product are functions of the same input, so that the corners of their box
are mostly out of reach. An octagon also bounds their sum and difference. With the box scaled to
the square, p = (x - middle) / half and q likewise:

    |p| <= 1,  |q| <= 1,  sum_low <= p + q <= sum_high,  diff_low <= p - q <= diff_high

Mine, "The octagon abstract domain", HOSC 2006, for the shape.
B: batch, H: units.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_FLAT = 128.0  # units in the last place


class Rectangle(NamedTuple):
    """``[lx, ux] x [ly, uy]``, each ``(B, H)``."""

    lx: Tensor
    ux: Tensor
    ly: Tensor
    uy: Tensor

    @property
    def box(self) -> "Rectangle":
        """The smallest rectangle around it: itself."""
        return self

    def with_mirror(self) -> "Rectangle":
        """This box and its mirror image in y, stacked on a new first axis.

        The ends in x, which are the same for both, have one entry there.
        """
        lx, ux, ly, uy = self
        return Rectangle(lx[None], ux[None], torch.stack([ly, -uy]), torch.stack([uy, -ly]))

    def expanded(self) -> "Rectangle":
        """The same, with the ends in x as often as those in y."""
        return Rectangle(*[end.expand_as(self.ly) for end in self])

    def vertices(self) -> tuple[Tensor, Tensor]:
        """Corners in turn, scaled to the square: p and q, ``(4, B, H)`` each."""
        one = torch.ones_like(self.lx)
        return torch.stack([one, one, -one, -one]), torch.stack([-one, one, one, -one])

    def scale(self) -> "Scale":
        """From the square to the box. A side of no width gets one of a few rounding errors."""
        lx, ux, ly, uy = self
        least = 8 * torch.finfo(lx.dtype).eps
        x, y = (lx + ux) / 2, (ly + uy) / 2
        # Up to the end that is farther from the middle, which is rounded.
        reach_x, reach_y = torch.maximum(ux - x, x - lx), torch.maximum(uy - y, y - ly)
        half_x = torch.maximum(reach_x, least * (1 + x.abs().detach()))
        half_y = torch.maximum(reach_y, least * (1 + y.abs().detach()))
        return Scale(x, half_x, y, half_y)

    def covered(self) -> "Rectangle":
        """What the square is scaled to: more than the box where a side has next to no width."""
        (lx, ux, ly, uy), (x, half_x, y, half_y) = self, self.scale()
        return Rectangle(
            torch.minimum(lx, x - half_x),
            torch.maximum(ux, x + half_x),
            torch.minimum(ly, y - half_y),
            torch.maximum(uy, y + half_y),
        )

    def flat(self) -> tuple[Tensor, Tensor]:
        """Where a side, in x and in y, is no wider than the rounding of what it was made from."""
        lx, ux, ly, uy = (end.detach() for end in self)
        least = _FLAT * torch.finfo(lx.dtype).eps
        flat_x = ux - lx <= least * (1 + (lx + ux).abs())
        return flat_x, uy - ly <= least * (1 + (ly + uy).abs())


class Scale(NamedTuple):
    """Middle and half width of a box in x and y, each ``(B, H)``."""

    x: Tensor
    half_x: Tensor
    y: Tensor
    half_y: Tensor


class Bands(NamedTuple):
    """Ranges of p + q and of p - q, each ``(B, H)``."""

    sum_low: Tensor
    sum_high: Tensor
    diff_low: Tensor
    diff_high: Tensor


class Octagon(NamedTuple):
    """A box cut by bands."""

    box: Rectangle
    bands: Bands

    def ends(self) -> list[Tensor]:
        """Those of the box and of the bands, all as often as those in y."""
        shape = self.box.ly.shape
        ends = (*self.box, *self.bands)
        return [end if end.shape == shape else end.expand(shape) for end in ends]

    def with_mirror(self) -> "Octagon":
        """This octagon and its mirror image in y: sums become differences."""
        sums, diffs = self.bands[:2], self.bands[2:]
        pairs = zip(self.bands, (*diffs, *sums), strict=True)
        return Octagon(
            self.box.with_mirror().expanded(), Bands(*[torch.stack(pair) for pair in pairs])
        )

    def scale(self) -> Scale:
        """From the square to the box."""
        return self.box.scale()

    def vertices(self) -> tuple[Tensor, Tensor]:
        """Corners in turn, scaled to the square: p and q, ``(8, B, H)`` each.

        Every bound is first drawn in to where it touches the others, so that no side is empty and
        the corners are those of the octagon, not of more: maxima that lie in no band are left
        out. The side after corner 0 has the greatest p, that after corner 1 the greatest sum, and
        so on, anticlockwise.
        """
        sum_low, sum_high, diff_low, diff_high = self.bands
        p_high, p_low = _reach(sum_high, diff_high), -_reach(-sum_low, -diff_low)
        q_high, q_low = _reach(sum_high, -diff_low), -_reach(-sum_low, diff_high)
        sum_high = torch.minimum(sum_high, p_high + q_high)
        sum_low = torch.maximum(sum_low, p_low + q_low)
        diff_high = torch.minimum(diff_high, p_high - q_low)
        diff_low = torch.maximum(diff_low, p_low - q_high)
        corners = (
            (p_high, p_high - diff_high),
            (p_high, sum_high - p_high),
            (sum_high - q_high, q_high),
            (diff_low + q_high, q_high),
            (p_low, p_low - diff_low),
            (p_low, sum_low - p_low),
            (sum_low - q_low, q_low),
            (diff_high + q_low, q_low),
        )
        p, q = (torch.stack(part) for part in zip(*corners, strict=True))
        return p.clamp(-1, 1), q.clamp(-1, 1)


def _reach(one: Tensor, other: Tensor) -> Tensor:
    """Greatest coordinate where the other one, added and subtracted, leaves so much of the sum."""
    in_square = 1 + torch.minimum(one, other)
    return torch.minimum((one + other) / 2, in_square).clamp(max=1)


Domain = Rectangle | Octagon
