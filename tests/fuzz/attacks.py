"""Attacks on a drawn model in float64, written without the package.

B: batch, T: frames, N: features, C: classes.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tests.fuzz.balls import Balls

LARGEST = 5.0  # size up to which is attacked and certified
SMALLEST = 1e-7
MOST_POINTS = 30_000  # of a grid


@dataclass
class Oracle:
    """The model itself, from ``(B, T, N)`` in float64 to logits ``(B, C)``."""

    run: Callable[..., Tensor]
    lengths: Tensor | None
    target: Tensor
    points: list[int] = field(default_factory=lambda: [0])  # counted over all copies

    def logits(self, x: Tensor) -> Tensor:
        """Logits at samples that repeat the batch."""
        self.points[0] += len(x)
        times = len(x) // len(self.target)
        lengths = None if self.lengths is None else self.lengths.repeat(times)
        return self.run(x, lengths)

    def margins(self, x: Tensor) -> Tensor:
        """The label's logit minus the best other one, ``(B,)``."""
        z = self.logits(x)
        own = self.target.repeat(len(x) // len(self.target))[:, None]
        return z.gather(1, own)[:, 0] - z.scatter(1, own, -math.inf).amax(1)

    def pick(self, chosen: Tensor) -> "Oracle":
        """Some samples."""
        lengths = None if self.lengths is None else self.lengths[chosen]
        return replace(self, lengths=lengths, target=self.target[chosen])


def descend(oracle: Oracle, balls: Balls, size: Tensor, change: Tensor, steps: int) -> Tensor:
    """Projected gradient descent on the margins; the best change of every sample."""
    best, least = change, torch.full_like(size, math.inf)
    for step in range(steps + 1):
        change = change.detach().requires_grad_()
        margin = oracle.margins(balls.center + change)
        (gradient,) = torch.autograd.grad(margin.sum(), change)
        better = margin.detach() < least
        least = torch.where(better, margin.detach(), least)
        best = torch.where(better[:, None, None], change.detach(), best)
        pace = size[:, None, None] * (2.5 / steps) * (1 - 0.9 * step / steps)
        change = balls.inside(change.detach() + pace * balls.steepest(gradient), size)
    return best


@torch.no_grad()
def _shortest(oracle: Oracle, balls: Balls, change: Tensor, slack: Tensor) -> Tensor:
    """The least share of a change at which the class flips, ``(B,)``; infinite where it stays."""
    low, high = torch.zeros(len(change), dtype=torch.float64), torch.ones(len(change)).double()
    flips = oracle.margins(balls.center + change) < -slack
    for _ in range(26):
        middle = (low + high) / 2
        flipped = oracle.margins(balls.center + middle[:, None, None] * change) < -slack
        low, high = torch.where(flipped, low, middle), torch.where(flipped, middle, high)
    return torch.where(flips, high, math.inf)


def smallest_flip(
    oracle: Oracle, balls: Balls, slack: Tensor, generator: torch.Generator, steps: int = 12
) -> Tensor:
    """The least size found at which the class flips by more than ``slack``, ``(B,)``.

    All shapes are star-shaped around the input, so a share of a change lies in as large a share.
    """
    batch = len(balls.center)
    found = torch.full((batch,), math.inf, dtype=torch.float64)
    spans = [(SMALLEST, LARGEST, 12, 1)] + [(0.3, 1.0, 5, 2)] * 2
    for low, high, count, starts in spans:
        around = torch.where(found.isfinite(), found, LARGEST) if high <= 1 else torch.ones(batch)
        grid = torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64)
        sizes = (grid[:, None] * around).repeat(starts, 1).flatten()
        many = balls.repeated(count * starts)
        start = many.points(sizes, generator, corners=True)
        first = torch.arange(len(sizes)) < batch * count  # from the input itself once
        start = torch.where(first[:, None, None], 0.01 * start, start)
        best = descend(oracle, many, sizes, start, steps)
        share = _shortest(oracle, many, best, slack.repeat(count * starts))
        found = torch.minimum(found, (share * sizes).view(-1, batch).amin(0))
    return found


@torch.no_grad()
def least_of_grid(oracle: Oracle, balls: Balls, size: Tensor, side: int = 13) -> Tensor | None:
    """Least margin by subdivision, where no more than three numbers move; ``(B,)``."""
    places = balls.moving.amax(0).flatten().nonzero()[:, 0].tolist()
    if len(places) > 3 or len(size) * side ** len(places) > MOST_POINTS:
        return None
    batch, rows = len(size), torch.linspace(-1, 1, side, dtype=torch.float64)
    grid = torch.tensor(list(itertools.product(rows.tolist(), repeat=len(places)))).double()
    unit = torch.zeros(len(grid), balls.center[0].numel(), dtype=torch.float64)
    unit[:, places] = grid
    unit = unit.repeat_interleave(batch, 0).view(-1, *balls.center.shape[1:])
    many, sizes = balls.repeated(len(grid)), size.repeat(len(grid))
    widest = balls.reach if balls.reach.ndim == 3 else balls.reach[..., None]
    middle, span = torch.zeros_like(balls.center), size[:, None, None] * widest
    least = torch.full_like(size, math.inf)
    for _ in range(4):  # each time a cell of the grid before, at twice its size
        change = (middle + unit.view(len(grid), *middle.shape) * span).flatten(0, 1)
        change = many.inside(change, sizes)
        margins, at = oracle.margins(many.center + change).view(len(grid), batch).min(0)
        least = torch.minimum(least, margins)
        middle = change.view(len(grid), *middle.shape)[at, torch.arange(batch)]
        span = span * 2 / (side - 1)
    return least
