"""Where the arguments of a product are, if a quadratic function of the input is small.

    x = middle_x + u, y = middle_y + v      with  (u, v) in the ellipse of a matrix, give or take

The ellipse is given by the squares of how far it reaches, ``u^2 <= xx`` and ``v^2 <= yy``, and by
xy, which make ``(a u + b v)^2 <= a^2 xx + 2 a b xy + b^2 yy`` for all a and b.

B: batch, U: units.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.relaxations.domain import Bands, Octagon
from popqorn_train.relaxations.extremum import largest

_WIDER = 32.0  # units in the last place by which a band is widened


class Ellipse(NamedTuple):
    """An ellipse of two arguments; every field is ``(B, U)``.

    Attributes:
        x: middle of the first argument.
        y: of the second.
        xx: greatest square of what it is off the middle.
        xy: see above.
        yy: as xx.
        rest_x: what is added to it.
        rest_y: likewise.
    """

    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor
    rest_x: Tensor
    rest_y: Tensor

    def cut(self, octagon: Octagon) -> Octagon:
        """The octagon, in its own precision, with bands no wider than the ellipse."""
        x, half_x, y, half_y = octagon.box.scale()
        p, q = (self.x - x) / half_x, (self.y - y) / half_y
        ends = largest(*octagon.box[:2]) + self.x.abs(), largest(*octagon.box[2:]) + self.y.abs()
        size = ends[0] / half_x + ends[1] / half_y + 2
        rest = self.rest_x / half_x + self.rest_y / half_y
        rest = rest + _WIDER * torch.finfo(x.dtype).eps * size
        squares = self.xx / half_x**2 + self.yy / half_y**2
        mixed = 2 * self.xy / (half_x * half_y)
        flat_x, flat_y = octagon.box.flat()
        found: list[Tensor] = []
        for sign, (low, high) in ((1, octagon.bands[:2]), (-1, octagon.bands[2:])):
            reach = (squares + sign * mixed).clamp(min=0).sqrt() * (1 + 1e-6) + rest
            reach = reach.masked_fill(flat_x | flat_y, torch.inf).nan_to_num(torch.inf)
            middle = (p + sign * q).nan_to_num(0)
            low, high = torch.maximum(low, middle - reach), torch.minimum(high, middle + reach)
            found += [torch.minimum(low, high), torch.maximum(low, high)]
        return Octagon(octagon.box, Bands(*[end.clamp(-2, 2).to(x) for end in found]))
