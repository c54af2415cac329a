"""Certified accuracy as a torchmetrics metric.

B: batch, R: radii of the curve.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from popqorn_train.plots import AccuracyCurve, draw_accuracy_curves


def count_certified(radii: Tensor, epsilons: Tensor) -> Tensor:
    """Count the certified radii ``(B,)`` that reach each epsilon ``(R,)``; NaN reaches none.

    A radius of 0 means a wrong prediction or no proof, and counts nowhere.
    """
    radii = radii.to(epsilons)[None]
    return ((radii >= epsilons[:, None]) & (radii > 0)).sum(dim=1)


class CertifiedAccuracyCurve(Metric):
    """Share of samples whose certified radius reaches each epsilon, ``(R,)`` in [0, 1].

    One metric holds the whole curve: two metrics of one epsilon each would be merged by a
    MetricCollection when their first states happen to agree.

    Args:
        epsilons: positive and increasing, in the units of the input.
        **kwargs: see ``torchmetrics.Metric``.

    Raises:
        ValueError: ``epsilons`` empty, not positive or not increasing.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    certified: Tensor
    total: Tensor

    def __init__(self, epsilons: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilons = tuple(epsilons)
        increasing = list(self.epsilons) == sorted(set(self.epsilons))
        if not self.epsilons or not self.epsilons[0] > 0 or not increasing:
            raise ValueError(f"`epsilons` must be positive and increasing, got {self.epsilons}.")
        zeros = torch.zeros(len(self.epsilons), dtype=torch.long)
        self.add_state("certified", zeros, dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, radii: Tensor) -> None:
        """Add the certified radii ``(B,)`` of a batch; 0 where the prediction is wrong."""
        epsilons = torch.tensor(self.epsilons, dtype=torch.float64, device=radii.device)
        self.certified += count_certified(radii, epsilons)
        self.total += len(radii)

    def compute(self) -> Tensor:
        """Return the certified accuracy at each epsilon, ``(R,)``."""
        return self.certified / self.total

    def plot(self, val: Tensor | None = None, ax: Any = None) -> Any:
        """Draw certified accuracy against epsilon.

        Args:
            val: ``(R,)`` values to draw; None computes them.
            ax: a matplotlib axis, or None for a new figure.

        Returns:
            Figure and axis.
        """
        values = self.compute() if val is None else val
        curve = AccuracyCurve("certified", self.epsilons, tuple(values.reshape(-1).tolist()))
        return draw_accuracy_curves([curve], ax=ax)
