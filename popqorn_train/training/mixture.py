"""A weighted sum of objectives, all worked out on one trace of a batch."""

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import nn

from popqorn_train.training.objective import LossParts, Objective, Prepared


class Mixture(Objective):
    """A weighted sum of objectives.

    Its parts are the weighted sums of theirs, but for ``certified``, which is the largest.
    ``EpsilonSchedule`` ramps the objectives themselves, and ``weights`` where it is asked to.

    Args:
        objectives: at least one.
        weights: one each, not negative; they need not sum to 1.

    Raises:
        ValueError: weights that do not fit.
    """

    ramped: ClassVar[tuple[str, ...]] = ("weights",)

    def __init__(self, objectives: Sequence[Objective], weights: Sequence[float]) -> None:
        super().__init__()
        self.objectives = nn.ModuleList(objectives)
        self.weights = tuple(float(weight) for weight in weights)
        self._check()

    def _check(self) -> None:
        fits = len(self.weights) == len(self.objectives) > 0
        if not fits or not all(0 <= weight < float("inf") for weight in self.weights):
            raise ValueError(
                f"`weights` must hold one number that is not negative for each of the "
                f"{len(self.objectives)} objectives, got {self.weights}."
            )

    def extra_repr(self) -> str:
        """Settings, for ``print(loss)``."""
        return f"weights={self.weights}"

    @property
    def has_clean_term(self) -> bool:
        """Whether that of an objective counts."""
        pairs = zip(self.weights, self.objectives, strict=True)
        return any(weight > 0 and cast(Objective, one).has_clean_term for weight, one in pairs)

    def terms(self, batch: Prepared) -> LossParts:
        """See ``Objective``; an objective with weight 0 is not computed."""
        self._check()
        total = clean = worst = attacked = certified = signal = batch.zero()
        for weight, objective in zip(self.weights, self.objectives, strict=True):
            if weight > 0:
                parts = cast(Objective, objective).terms(batch)
                total = total + weight * parts.total
                clean = clean + weight * parts.clean
                worst = worst + weight * parts.bound
                attacked = attacked + weight * parts.attack
                signal = signal + weight * parts.signal
                certified = torch.maximum(certified, parts.certified)
        return LossParts(total, clean, worst, attacked, certified, signal)
