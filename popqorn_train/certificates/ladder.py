"""The epsilons at which a sample is tried again above the one that was not proved.

Rungs are the powers of 1.1, the same for every sample, search and start, and the epsilons at which
the caller counts what is certified.

B: batch, E: epsilons.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

RATIO = 1.1  # from one rung to the next
REACH = 1.5  # how far above what is proved rungs are tried, at most


class Ladder:
    """How far up every sample has been tried.

    Args:
        at: ``(B,)`` where it begins.
        epsilons: rungs beside the powers of ``RATIO``.
    """

    def __init__(self, at: Tensor, epsilons: Sequence[float]) -> None:
        self._at = at.clone()
        self._epsilons = at.new_tensor(sorted(epsilons))

    def climb(self, chosen: Tensor, epsilon: Tensor) -> None:
        """Say that samples were tried at these epsilons, ``(b,)`` each."""
        self._at[chosen] = epsilon

    def next(self, upper: Tensor) -> Tensor:
        """The lowest rung that was not tried, ``(B,)``, where ``upper`` was tried too."""
        rung = self._after(self._at)
        return torch.where(rung < upper, rung, self._after(torch.maximum(self._at, upper)))

    def above(self, upper: Tensor) -> Tensor:
        """Whether every rung below ``upper`` was tried, ``(B,)``."""
        return self._after(self._at) >= upper

    def _after(self, at: Tensor) -> Tensor:
        """The lowest rung above ``at``, ``(B,)``."""
        power = (at.log() / math.log(RATIO) + 1e-9).floor() + 1
        rung = RATIO**power
        if not len(self._epsilons):
            return rung
        asked = self._epsilons.expand(len(at), -1)
        asked = asked.masked_fill(asked <= at[:, None], torch.inf)
        return torch.minimum(rung, asked.amin(1))
