"""Radii in the precision of the inputs, which never say more than was proved."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def rungs_of(
    epsilons: Sequence[float], max_radius: float | Tensor | None, dtype: torch.dtype
) -> tuple[list[float], float | Tensor | None]:
    """Epsilons rounded up, so that a radius in that precision reaches what it proves.

    Returns:
        They, and the largest radius tried, which they raise where they have passed it.
    """
    rungs = [_rounded_up(epsilon, dtype) for epsilon in epsilons]
    if isinstance(max_radius, int | float):
        reached = [r for r, one in zip(rungs, epsilons, strict=True) if one <= max_radius]
        max_radius = max(max_radius, *reached, 0.0)
    return rungs, max_radius


def rounded_down(radius: Tensor, dtype: torch.dtype) -> Tensor:
    """In the precision of the inputs, never above what was proved."""
    rounded = radius.to(dtype)
    below = torch.nextafter(rounded, torch.zeros_like(rounded))
    return torch.where(rounded.double() > radius, below, rounded)


def _rounded_up(epsilon: float, dtype: torch.dtype) -> float:
    """The least number of a precision that is not below an epsilon."""
    rounded = torch.tensor(epsilon, dtype=torch.float64).to(dtype)
    below = rounded.double() < epsilon
    above = torch.nextafter(rounded, torch.full_like(rounded, math.inf))
    return torch.where(below, above, rounded).item()
