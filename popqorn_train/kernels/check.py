"""Whether a compiled library reckons right on this machine, which is asked before it is used.

A compiler, or a processor other than it was told, may be wrong; a false plane would be a false
certificate. Planes are looked at on boxes of all kinds, rows on a few numbers: some milliseconds.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from popqorn_train.kernels.signatures import pointers


def is_right(loops: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> bool:
    """Compare the loops of one dtype, by name, with what torch says."""
    like, kinds = torch.empty(0, dtype=dtype, device=device), (False, True)
    enclosed = all(
        _encloses(loops["planes"], like, *kind) for kind in itertools.product(kinds, repeat=3)
    )
    narrow = all(_misses_no_more(loops["strips"], like, curved) for curved in kinds)
    rest = _substitutes(loops["substitute"], like) and _concretises(loops["minimum"], like)
    summed = "pairs" not in loops or _adds(loops["absolute"], loops["pairs"], like)
    return enclosed and narrow and rest and summed


def _boxes(like: Tensor) -> list[Tensor]:
    """lx, ux, ly, uy of boxes from a point to saturation."""
    places = like.new_tensor([-30.0, -3.0, -0.4, 0.0, 0.7, 2.0, 30.0])
    halves = like.new_tensor([0.0, 1e-3, 0.5, 4.0])
    x, y, half, other = (
        part.flatten() for part in torch.meshgrid(places, places, halves, halves, indexing="ij")
    )
    return [x - half, x + half, y - other, y + other]


def _inside(ends: list[Tensor], curved: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Points of the boxes in float64, and the product there."""
    lx, ux, ly, uy = (end.double() for end in ends)
    share = torch.linspace(0, 1, 5, dtype=torch.float64, device=lx.device)
    x = torch.lerp(lx, ux, share[:, None])[:, None]
    y = torch.lerp(ly, uy, share[:, None])[None]
    return x, y, x.sigmoid() * (y.tanh() if curved else y)


def _encloses(loop: Any, like: Tensor, curved: bool, octagon: bool, tilted: bool) -> bool:
    ends = _boxes(like)
    bands = [torch.full_like(ends[0], band) for band in (-2, 2, -2, 2)]
    found = like.new_empty(6, len(ends[0]))
    parts = ends + bands if octagon else ends
    loop(
        len(ends[0]), curved, octagon, tilted, 3, 0.25, -0.1, 0.25,
        pointers(*parts), found.data_ptr(),
    )  # fmt: skip
    x, y, f = _inside(ends, curved)
    lower, upper = (side[0] * x + side[1] * y + side[2] for side in found.double().view(2, 3, -1))
    room = 1e-14 * (1 + y.abs())  # the points are rounded
    return bool(((lower <= f + room) & (f <= upper + room)).all())


def _misses_no_more(loop: Any, like: Tensor, curved: bool) -> bool:
    ends = _boxes(like)
    bands = [torch.full_like(ends[0], band) for band in (-2, 2, -2, 2)]
    found = like.new_empty(4, len(ends[0]))
    loop(len(ends[0]), curved, pointers(*ends, *bands), found.data_ptr())
    x, y, f = _inside(ends, curved)
    a, b, middle, half = found.double()
    return bool(((f - a * x - b * y - middle).abs() <= half + 1e-14 * (1 + y.abs())).all())


def _adds(alone: Any, pairs: Any, like: Tensor) -> bool:
    x, on = rows_of_numbers(like)
    x, y, other = x.transpose(0, 1).contiguous(), x.transpose(0, 1).cos().contiguous(), on.sin()
    sums, plus, minus = (torch.zeros_like(on) for _ in range(3))
    alone(3, 2, 37, x.data_ptr(), 74, 37, sums.data_ptr())
    ends = [part.data_ptr() for part in (on, other, plus, minus)]
    pairs(3, 2, 37, x.data_ptr(), 74, 37, y.data_ptr(), 74, 37, *ends)
    right = close(plus, (on * x + other * y).abs().sum(0))
    right &= close(minus, (on * x - other * y).abs().sum(0))
    return right and close(sums, x.abs().sum(0))


def rows_of_numbers(like: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes ``(2, 3, 37)``, and numbers ``(2, 37)`` beside them."""
    slope = torch.linspace(-3, 3, 222).to(like).sin().view(2, 3, 37)
    return slope, torch.linspace(0, 9, 74).to(like).cos().view(2, 37)


def close(one: Tensor, other: Tensor) -> bool:
    """Whether all numbers are the same, up to rounding."""
    return torch.allclose(one, other, rtol=0, atol=256 * torch.finfo(one.dtype).eps)


def _substitutes(loop: Any, like: Tensor) -> bool:
    slope, side = rows_of_numbers(like)
    lower, upper = [side, side - 1], [side + 1, side]
    found, constant = torch.empty_like(slope), slope.new_empty(2, 3)
    loop(
        2, 3, 37, 1, slope.data_ptr(), 111, pointers(*lower), pointers(*upper), 37, 0,
        pointers(found), constant.data_ptr(),
    )  # fmt: skip
    on_x, on_one = (
        torch.where(slope > 0, slope * low[:, None], slope * high[:, None])
        for low, high in zip(lower, upper, strict=True)
    )
    return torch.equal(found, on_x) and close(constant, on_one.sum(-1))


def _concretises(loop: Any, like: Tensor) -> bool:
    slope, center = rows_of_numbers(like)
    half, found = center.abs(), slope.new_empty(2, 3)
    loop(2, 3, 37, slope.data_ptr(), 111, center.data_ptr(), half.data_ptr(), 37, found.data_ptr())
    terms = slope * center[:, None] - slope.abs() * half[:, None]
    return close(found, terms.sum(-1))
