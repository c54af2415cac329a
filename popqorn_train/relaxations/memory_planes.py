"""The lowest plane above ``sigmoid(x) y`` on a box, for a given slope in x, with its gradient.

The function is linear in y. With h(y) = max over x of sigmoid(x) y - a x, at both ends of y,

    b    (h(uy) - h(ly)) / (uy - ly), kept among the values of the gate
    top  max(h(ly) - b ly, h(uy) - b uy)

and the envelope theorem gives the gradient of h: the maximising x is held, but follows an end on
which it lies. It is written out, since a training step takes it for every gate of every frame.

B: batch, H: units; a leading axis of 2 stacks a box and its mirror, for which the ends in x have
one entry.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.relaxations.extremum import (
    LEAST_GATE,
    largest,
    on_ends,
    prefer,
    product_edge,
    slack,
)


class _Edge(NamedTuple):
    """Where ``sigmoid(x) y - a x`` is largest for one y, the gate there, and how large."""

    x: Tensor
    gate: Tensor
    height: Tensor


def _edge(a: Tensor, lx: Tensor, ux: Tensor, y: Tensor) -> _Edge:
    x = product_edge(a, lx, ux, y)
    gate = x.sigmoid()
    return _Edge(x, gate, (gate * y).addcmul_(a, x, value=-1))


class _MemoryPlane(torch.autograd.Function):
    """See ``plane_above``."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor
    ) -> tuple[Tensor, Tensor]:
        low, high = _edge(a, lx, ux, ly), _edge(a, lx, ux, uy)
        width, least = uy - ly, 1e-3 if a.dtype == torch.float32 else 1e-7
        narrow = (least - width).sign_().relu_()
        quotient = (high.height - low.height).div_(width + narrow)
        (free,) = prefer(narrow, (quotient, (low.gate + high.gate).div_(2)))
        closed, opened = lx.sigmoid(), ux.sigmoid()
        b = torch.minimum(torch.maximum(free, closed), opened)
        at_low = low.height.addcmul(b, ly, value=-1)
        at_high = high.height.addcmul(b, uy, value=-1)
        size = largest(ly, uy)
        allowance = slack(size * opened.clamp(min=LEAST_GATE), b * size, a * largest(lx, ux))
        above = (at_high - at_low).sign_().relu_()
        kept = (low.x, low.gate, high.x, high.gate, b, free, narrow, above, closed, opened)
        ctx.save_for_backward(a, lx, ux, ly, uy, *kept)
        return b, torch.maximum(at_low, at_high).add_(allowance)

    @staticmethod
    def backward(ctx: Any, of_b: Tensor, of_top: Tensor) -> tuple[Tensor, ...]:
        a, lx, ux, ly, uy, *kept = ctx.saved_tensors
        x_low, gate_low, x_high, gate_high, b, free, narrow, above, closed, opened = kept
        of_high = of_top * above
        of_low = of_top - of_high
        of_b = of_b.addcmul(of_low, ly, value=-1).addcmul_(of_high, uy, value=-1)
        of_ly, of_uy = -of_low * b, -of_high * b
        # b follows the gate on whose range it ends.
        of_rest = of_b * (free - closed).relu_().sign_()
        of_free = of_rest * (opened - free).relu_().sign_()
        of_closed, of_opened = of_b - of_rest, of_rest - of_free
        of_lx, of_ux = of_closed * closed * (1 - closed), of_opened * opened * (1 - opened)
        of_gates = of_free * narrow / 2
        rise = of_free.addcmul(of_free, narrow, value=-1).div_(uy - ly + narrow)
        of_ly.addcmul_(rise, free)
        of_uy.addcmul_(rise, free, value=-1)
        of_low, of_high = of_low.sub_(rise), of_high.add_(rise)
        of_a = torch.zeros_like(a)
        for of_height, of_y, y, x, gate in (
            (of_low, of_ly, ly, x_low, gate_low), (of_high, of_uy, uy, x_high, gate_high)
        ):  # fmt: skip
            of_y.addcmul_(of_height, gate)
            of_a.addcmul_(of_height, x, value=-1)
            steep = gate - gate * gate
            of_x = (of_height * y).add_(of_gates).mul_(steep).addcmul_(of_height, a, value=-1)
            for total, part in zip((of_lx, of_ux), on_ends(of_x, x, lx, ux), strict=True):
                total.add_(part)
        sums = [part.sum_to_size(lx.shape) for part in (of_lx, of_ux)]
        return (of_a, *sums, of_ly, of_uy)


def plane_above(a: Tensor, lx: Tensor, ux: Tensor, ly: Tensor, uy: Tensor) -> tuple[Tensor, Tensor]:
    """Slope in y and intercept of the lowest plane above ``sigmoid(x) y``.

    Args:
        a: slope in x, of the shape of the ends in y.
        lx: least x.
        ux: greatest x.
        ly: least y.
        uy: greatest y.
    """
    found: tuple[Tensor, Tensor] = _MemoryPlane.apply(a, lx, ux, ly, uy)  # type: ignore[no-untyped-call]
    return found
