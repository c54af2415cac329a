"""Whether the loops over lines of tanh and sigmoid, and over inputs, reckon right; see check.py."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from popqorn_train.kernels.check import close
from popqorn_train.kernels.signatures import pointers

_AREA = {True: 4, False: 5}  # the lines of least area, by kind as in chords.py


def lines_are_right(loops: Mapping[str, Any], dtype: torch.dtype) -> bool:
    """Look whether lines enclose their function, from a point to saturation."""
    center = torch.linspace(-30, 30, 61, dtype=dtype)
    half = torch.tensor([0.0, 1e-3, 0.5, 4.0, 40.0], dtype=dtype)
    lower, upper = (center - half[:, None]).flatten(), (center + half[:, None]).flatten()
    return all(
        _encloses(found, curved, lower, upper)
        for curved in (True, False)
        for found in (
            _least_area(loops["chords"], curved, lower, upper),
            _closest(loops["closest"], curved, lower, upper),
        )
    )


def _across(lower: Tensor, upper: Tensor) -> Tensor:
    share = torch.linspace(0, 1, 9, dtype=lower.dtype)[:, None]
    return torch.lerp(lower, upper, share).clamp(lower, upper)


def _least_area(loop: Any, curved: bool, lower: Tensor, upper: Tensor) -> Tensor:
    found = lower.new_empty(4, 1, len(lower))
    loop(_AREA[curved], len(lower), pointers(lower, upper), found.data_ptr())
    return found


def _closest(loop: Any, curved: bool, lower: Tensor, upper: Tensor) -> Tensor:
    """In nine rows, at points from end to end."""
    point = _across(lower, upper)
    found = lower.new_empty(4, *point.shape)
    ends = pointers(lower, upper)
    loop(curved, 1, *point.shape, ends, point.data_ptr(), found.data_ptr())
    return found


def inputs_are_right(loops: Mapping[str, Any], dtype: torch.dtype) -> bool:
    """Compare least values of five to eight rows with what torch says."""
    slope, weight = (torch.linspace(-9, 9, n, dtype=dtype).sin() for n in (16 * 8 * 3, 16 * 48))
    slope, weight, center = slope.view(8, 3, 16), weight.view(16, 48), weight[-144:].view(3, 48)
    half, turned, on_x = center.cos(), weight.T.contiguous(), slope @ weight
    known = (on_x * center - on_x.abs() * half).sum((1, 2))
    image = (center - on_x.sign() * half) @ turned
    for rows in range(5, 9):
        value, found = slope.new_empty(rows), torch.empty_like(slope[:rows])
        loops["carry"](
            1, rows, 3, 16, 48, 48, slope.data_ptr(), 0, weight.data_ptr(), turned.data_ptr(),
            center.data_ptr(), half.data_ptr(), 144, value.data_ptr(), found.data_ptr(),
        )  # fmt: skip
        if not (close(value / 64, known[:rows] / 64) and close(found, image[:rows])):
            return False
    return True


def _encloses(lines: Tensor, curved: bool, lower: Tensor, upper: Tensor) -> bool:
    below, low, above, high = lines.double()
    x = _across(lower, upper).double()[:, None]
    f, room = (x.tanh() if curved else x.sigmoid()), 1e-14
    return bool(((below * x + low <= f + room) & (f <= above * x + high + room)).all())
