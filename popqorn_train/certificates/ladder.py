"""The epsilons at which a sample is tried again above the one that was not proved.

Rungs are the powers of 1.1, the same for every sample, search and start, and the epsilons at which
the caller counts what is certified. Of every sample one run of epsilons is kept that were tried and
not proved, without an untried rung between them.

B: batch, E: epsilons.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

RATIO = 1.1  # from one rung to the next
REACH = 1.5  # how far above what is proved rungs are tried, at most


class Ladder:
    """Where every sample was tried and not proved.

    Args:
        like: ``(B,)`` epsilons of the precision of the search.
        epsilons: rungs beside the powers of ``RATIO``.

    Attributes:
        bottom: ``(B,)`` lower end of the run; infinite where there is none.
        top: ``(B,)`` its upper end.
        ended: ``(B,)`` whether the margin at the top is so far below 0 that no rung follows.
    """

    def __init__(self, like: Tensor, epsilons: Sequence[float]) -> None:
        self.bottom = torch.full_like(like, math.inf)
        self.top, self.ended = self.bottom.clone(), torch.zeros_like(like, dtype=torch.bool)
        self._epsilons = like.new_tensor(sorted(epsilons))

    def failed(self, chosen: Tensor, epsilon: Tensor, ended: Tensor) -> None:
        """Say that samples were not proved at these epsilons, ``(b,)`` each."""
        bottom, top = self.bottom[chosen], self.top[chosen]
        below = (epsilon < bottom) & _reaches(self.after(epsilon), bottom)
        longer = below | (epsilon > top)  # one that leaves a gap begins a new run
        self.bottom[chosen] = torch.minimum(epsilon, bottom)
        self.top[chosen] = torch.where(longer, torch.maximum(epsilon, top), epsilon)
        self.ended[chosen] = torch.where(below, self.ended[chosen], ended)

    def proved(self, chosen: Tensor, epsilon: Tensor) -> None:
        """Say that samples were proved at these epsilons, ``(b,)`` each."""
        over = epsilon >= self.top[chosen]
        self.bottom[chosen] = torch.where(over, math.inf, self.bottom[chosen])
        self.top[chosen] = torch.where(over, math.inf, self.top[chosen])
        self.ended[chosen] &= ~over

    def tried(self, rung: Tensor) -> Tensor:
        """Whether a rung belongs to the run or lies above it, ``(B,)``."""
        return _reaches(rung, self.bottom)

    def after(self, at: Tensor) -> Tensor:
        """The lowest rung above ``at``, ``(B,)``."""
        power = (at.log() / math.log(RATIO) + 1e-9).floor() + 1
        rung = RATIO**power
        if not len(self._epsilons):
            return rung
        asked = self._epsilons.expand(len(at), -1)
        asked = asked.masked_fill(asked <= at[:, None], torch.inf)
        return torch.minimum(rung, asked.amin(1))


def _reaches(one: Tensor, other: Tensor) -> Tensor:
    # The last bit of a power depends on where it stands in a tensor.
    return one >= (1 - 1e-12) * other
