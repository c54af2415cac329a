"""Rounds of re-bounding (rebound.py), until margins are proved positive or nothing is gained."""

import math

import torch
from torch import Tensor

from popqorn_train.bounds.rebound import BadRegion, Budget
from popqorn_train.bounds.relaxer import Relaxation

_FASTER = 1.5  # times the last gain is the most that each round to come is expected to gain
_STALLED = 0.005  # gain in two rounds, in quarters of the margin's range, to go on


def refute(region: BadRegion, lower: Tensor, *, relaxation: Relaxation, budget: Budget) -> Tensor:
    """Try to prove that the margin of every pair is positive.

    Args:
        region: of the pairs.
        lower: ``(B,)`` bounds on the margins already known.
        relaxation: how to enclose products.
        budget: what it may cost.

    Returns:
        ``(B,)`` lower bounds, at least the given ones; positive where it is proved.
    """
    best, pairs, before = lower.clone(), torch.arange(len(lower), device=lower.device), lower
    for index in range(budget.rounds):
        region.tighten(relaxation, budget, 1 + 2 * 0.75**index)
        least, threshold = region.least_margin(), region.threshold
        proved = region.empty | (least > threshold) & least.isfinite()
        # Outside the region the margin exceeds the threshold anyway; overflow proves nothing.
        least = torch.where(least.isfinite(), least, -math.inf)
        least = torch.where(proved, threshold, torch.minimum(least, threshold))
        least = torch.fmax(least, best[pairs])
        gain, left = least - before[pairs], budget.rounds - 1 - index
        stalled = gain < _STALLED * region.spread
        stalled |= threshold - least > _FASTER * left * gain  # what is left is out of reach
        before, best = best, best.index_copy(0, pairs, least)
        going = ~proved & ~(stalled & (index > 1))
        if not going.any():
            break
        if going.sum() <= 0.75 * len(going):
            pairs, region = pairs[going], region.pick(going.nonzero()[:, 0])
    return best
