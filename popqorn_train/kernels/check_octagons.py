"""Whether planes on octagons enclose, and move as their gradient says; see check.py."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from popqorn_train.kernels.signatures import pointers

_BANDS = (-0.9, 0.6, -0.7, 1.1)
_STEP = 2.0**-7


def octagons_are_right(loops: Mapping[str, Any], dtype: torch.dtype) -> bool:
    """Look at 64 octagons whose corners are cut off, in the closed form."""
    places, halves = torch.tensor([-2.0, -0.4, 0.7, 2.0]), torch.tensor([0.25, 1.0])
    grid = torch.meshgrid(places, places, halves, halves, indexing="ij")
    x, y, half, other = (part.flatten().to(dtype) for part in grid)
    bands = [torch.full_like(x, band) for band in _BANDS]
    ends = torch.stack([x - half, x + half, y - other, y + other, *bands])
    return all(
        _encloses(_planes(loops["planes"], ends, curved), ends, curved)
        and _moves(loops["planes"], loops["octagon_gradient"], ends, curved)
        for curved in (False, True)
    )


def _planes(loop: Any, ends: Tensor, curved: bool) -> Tensor:
    found = ends.new_empty(6, ends.shape[1])
    loop(
        ends.shape[1], curved, True, False, 0, 0.25, 0.0, 0.0, pointers(*ends), found.data_ptr()
    )  # fmt: skip
    return found


def _encloses(planes: Tensor, ends: Tensor, curved: bool) -> bool:
    """At points of the border and inside, none of them within rounding of a band."""
    lx, ux, ly, uy = ends[:4].double()
    share = torch.linspace(-1, 1, 21, dtype=torch.float64)
    p, q = (part.flatten()[:, None] for part in torch.meshgrid(share, share, indexing="ij"))
    low, high, diff_low, diff_high = _BANDS
    held = (p + q > low - 1e-9) & (p + q < high + 1e-9)
    held &= (p - q > diff_low - 1e-9) & (p - q < diff_high + 1e-9)
    p, q = (part[held[:, 0]] * (1 - 1e-5) for part in (p, q))
    x, y = (lx + ux) / 2 + (ux - lx) / 2 * p, (ly + uy) / 2 + (uy - ly) / 2 * q
    f = x.sigmoid() * (y.tanh() if curved else y)
    lower, upper = (side[0] * x + side[1] * y + side[2] for side in planes.double().view(2, 3, -1))
    return bool(((lower <= f) & (f <= upper)).all())


def _moves(loop: Any, gradient: Any, ends: Tensor, curved: bool) -> bool:
    """Compare with a difference; on some octagons another point takes over."""
    known, found = _planes(loop, ends, curved), torch.empty_like(ends)
    count = ends.shape[1]
    worth = torch.linspace(-1, 1, 6 * count, dtype=ends.dtype).cos().view(6, count)
    gradient(
        count, curved, False, 0.25, pointers(*ends), known.data_ptr(), pointers(*worth),
        found.data_ptr(),
    )  # fmt: skip
    aside = _STEP * torch.linspace(1, 9, 8 * count, dtype=ends.dtype).sin().view(8, count)
    change = _planes(loop, ends + aside, curved) - _planes(loop, ends - aside, curved)
    missed = ((found * aside).sum(0) - (worth * change).sum(0) / 2).abs() / _STEP
    return bool(missed.max() < 0.12 and missed.median() < 0.01)
