"""POPQORN, then a proof by contradiction for what it leaves open."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from popqorn_train.bounds.backward import Enclosure
from popqorn_train.bounds.contradiction import refute
from popqorn_train.bounds.method import Method
from popqorn_train.bounds.node import Logits
from popqorn_train.bounds.picking import alike
from popqorn_train.bounds.popqorn import Popqorn
from popqorn_train.bounds.rebound import BadRegion, Budget
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.products import PRODUCTS

_HOPE = 1.5  # how far below 0 a margin may be bounded, in its upper bounds, to be tried
LAST_FRAME = Budget(rounds=24, units=20, frames=1)
EVERYTHING = Budget(rounds=24, units=None, frames=None)


@dataclass(frozen=True)
class TightPopqorn(Popqorn):
    """Popqorn, then a proof by contradiction for every margin that is not positive (rebound.py).

    A margin proved that way is reported as a positive number that just stands out from the
    rounding. The hardest class of a sample comes first; where it fails, the others are left.
    Bounds on logits are those of ``Popqorn``, and there are no gradients.

    Attributes:
        budgets: how much each attempt may cost; a later one takes up what the earlier left.
    """

    budgets: tuple[Budget, ...] = (LAST_FRAME,)
    graded: ClassVar[bool] = False

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
        for budget in self.budgets:
            lower = self._raised(output, rows, found, Bounds(lower, -minus_upper), budget)
        return lower

    def _raised(
        self, output: Logits, rows: Tensor, found: Enclosure, bounds: Bounds, budget: Budget
    ) -> Tensor:
        """Lower bounds, raised where a proof by contradiction succeeds."""
        lower, relaxation = bounds.lower.clone(), Relaxation(self.policies[-1], tuple(PRODUCTS))
        missing = ~(lower > 0) & (rows != 0).any(-1)
        # A bound that far below 0 is never turned, and one class that fails is enough.
        hopeless = missing & ~(lower > -_HOPE * bounds.upper)
        hard = (missing.any(1) & ~hopeless.any(1)).nonzero()[:, 0]
        first = torch.where(missing, lower, math.inf).argmin(1)

        def attempt(samples: Tensor, classes: Tensor) -> None:
            pairs = (samples, classes)
            if len(samples):
                known = Bounds(lower[pairs], bounds.upper[pairs])
                region = BadRegion.of(output, found, samples, rows[pairs], known)
                lower[pairs] = refute(region, known.lower, relaxation=relaxation, budget=budget)

        attempt(hard, first[hard])
        won = hard[lower[hard, first[hard]] > 0]
        index, classes = (missing & ~(lower > 0))[won].nonzero(as_tuple=True)
        attempt(won[index], classes)
        return lower
