"""POPQORN, then joint bounds and proofs by contradiction for what it leaves open."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from popqorn_train.bounds.attempts import Pairs, bytes_of_pair
from popqorn_train.bounds.backward import Enclosure, ancestors
from popqorn_train.bounds.gated import Blend, Gated
from popqorn_train.bounds.joint import Jointly
from popqorn_train.bounds.method import Method
from popqorn_train.bounds.node import Logits, Node
from popqorn_train.bounds.picking import alike
from popqorn_train.bounds.popqorn import Popqorn
from popqorn_train.bounds.rebound import Budget
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.products import PRODUCTS

_HOPE = 1.5  # how far below 0 a margin may be bounded, in its upper bounds, to be tried
LAST_FRAME = Budget(rounds=24, units=20, frames=1)
EVERYTHING = Budget(rounds=24, units=None, frames=None)
ONCE = Jointly(rounds=1, hope=0.3)
LEARNED = Jointly(rounds=1, hope=0.37, trials=4, gates=False)
SHRINKING = Jointly(rounds=10, hope=0.8, trials=16)


@dataclass(frozen=True)
class TightPopqorn(Popqorn):
    """Popqorn, then attempts to prove every margin that is not positive.

    An attempt is a proof by contradiction (rebound.py), or one joint bound of all gaps (joint.py).
    A margin proved by contradiction is reported as a positive number that just stands out from the
    rounding. The hardest class of a sample comes first; where it fails, the others are left.
    Bounds on logits are those of ``Popqorn``, and there are no gradients.

    Attributes:
        budgets: how much each attempt may cost; a later one takes up what the earlier left.
    """

    budgets: tuple[Budget | Jointly, ...] = (LAST_FRAME, ONCE, LEARNED)
    graded: ClassVar[bool] = False

    def differentiates(self, output: Node) -> bool:
        """Attempts ascend."""
        return True

    @property
    def cheaper(self) -> Method:
        """See ``Method``."""
        return Popqorn(self.slopes, self.octagons)

    def margins(self, output: Logits, rows: Tensor) -> tuple[Tensor, Enclosure]:
        """See ``Method``; the ranges are those from before the class was assumed to flip."""
        with torch.no_grad():
            lower, found = self.bounded(output, rows)
            undecided = (~(lower > 0) & (rows != 0).any(-1)).any(1).nonzero()[:, 0]
            # Among samples of other lengths, the last frame is not that of every sample.
            for part in alike(output, undecided) if len(undecided) else []:
                own_rows = rows.expand(len(lower), -1, -1)[part]
                lower[part] = self._retried(output.anew(part), own_rows, lower[part])
        return lower, found

    def _retried(self, output: Logits, rows: Tensor, lower: Tensor) -> Tensor:
        """Bounds of samples on which the cheaper method failed; every product on octagons."""
        fine = replace(self, octagons=tuple(PRODUCTS))
        bounds, found = fine.bounded(output, torch.cat([rows, -rows], 1))
        finer, minus_upper = bounds.chunk(2, 1)
        lower = torch.fmax(lower, finer)
        gates = any(isinstance(node, Gated | Blend) for node in ancestors(output))
        for budget in self.budgets:
            if gates and isinstance(budget, Jointly) and not budget.gates:
                continue
            lower = self._raised(output, rows, found, Bounds(lower, -minus_upper), budget)
        return lower

    def _raised(
        self,
        output: Logits,
        rows: Tensor,
        found: Enclosure,
        bounds: Bounds,
        budget: Budget | Jointly,
    ) -> Tensor:
        """Lower bounds, raised where a proof succeeds."""
        lower = bounds.lower.clone()
        missing = ~(lower > 0) & (rows != 0).any(-1)
        # A bound that far below 0 is never turned, and one class that fails is enough.
        hope = budget.hope if isinstance(budget, Jointly) else _HOPE
        hopeless = missing & ~(lower > -hope * bounds.upper)
        hard = (missing.any(1) & ~hopeless.any(1)).nonzero()[:, 0]
        first = torch.where(missing, lower, math.inf).argmin(1)

        def attempt(samples: Tensor, classes: Tensor) -> None:
            pairs = Pairs(output, found, samples, rows[samples, classes])
            known = Bounds(*(end[samples, classes] for end in bounds))
            if len(samples):
                lower[samples, classes] = pairs.raised(known, budget, self._fine)

        attempt(hard, first[hard])
        won = hard[lower[hard, first[hard]] > 0]
        index, classes = (missing & ~(lower > 0))[won].nonzero(as_tuple=True)
        attempt(won[index], classes)
        return lower

    @property
    def _fine(self) -> Relaxation:
        return Relaxation(self.policies[-1], tuple(PRODUCTS))

    def bytes_a_sample(self, output: Node, like: Tensor) -> int:
        """See ``Method``; the matrices of a joint bound, or what the cheaper method takes."""
        known = super().bytes_a_sample(output, like)
        jointly = any(isinstance(budget, Jointly) for budget in self.budgets)
        return max(known, bytes_of_pair(output)) if jointly else known
