"""Certified accuracy and radii as torchmetrics metrics.

The states carry the metric's settings in their names: a MetricCollection merges metrics whose
states agree after the first batch, and two of these may well agree there and not later.

B: batch, R: radii of the curve, Q: quantiles.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from popqorn_train.evaluation.certification import count_certified, lower_quantile
from popqorn_train.plots import AccuracyCurve, draw_accuracy_curves


def _tag(*numbers: float) -> str:
    """Numbers as part of an attribute's name."""
    return "_".join(f"{number:g}" for number in numbers).translate(str.maketrans(".-+", "pmp"))


class _Base(Metric):
    """What all of these share."""

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0


class CertifiedAccuracyCurve(_Base):
    """Share of samples whose certified radius reaches each epsilon, ``(R,)`` in [0, 1].

    Args:
        epsilons: positive and increasing, in the units of the input.
        **kwargs: see ``torchmetrics.Metric``.

    Raises:
        ValueError: ``epsilons`` empty, not positive or not increasing.
    """

    higher_is_better = True
    plot_upper_bound = 1.0

    def __init__(self, epsilons: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilons = tuple(float(epsilon) for epsilon in epsilons)
        increasing = list(self.epsilons) == sorted(set(self.epsilons))
        if not self.epsilons or not self.epsilons[0] > 0 or not increasing:
            raise ValueError(f"`epsilons` must be positive and increasing, got {self.epsilons}.")
        zeros = torch.zeros(len(self.epsilons) + 1, dtype=torch.long)
        self._counts = f"counts_at_{_tag(*self.epsilons)}"  # certified at each, then all samples
        self.add_state(self._counts, zeros, dist_reduce_fx="sum")

    def update(self, radii: Tensor) -> None:
        """Add the certified radii ``(B,)`` of a batch; 0 where the prediction is wrong.

        NaN, of a sample that cannot be asked about, is left out.
        """
        radii = radii[~radii.isnan()]
        epsilons = torch.tensor(self.epsilons, dtype=torch.float64, device=radii.device)
        certified = count_certified(radii, epsilons)
        counts = torch.cat([certified, certified.new_tensor([len(radii)])])
        setattr(self, self._counts, getattr(self, self._counts) + counts)

    def compute(self) -> Tensor:
        """Return the certified accuracy at each epsilon, ``(R,)``."""
        counts: Tensor = getattr(self, self._counts)
        return counts[:-1] / counts[-1]

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


class CertifiedAccuracy(CertifiedAccuracyCurve):
    """Share of samples whose certified radius reaches one epsilon, in [0, 1].

    Args:
        epsilon: positive, in the units of the input.
        **kwargs: see ``torchmetrics.Metric``.

    Raises:
        ValueError: ``epsilon`` not positive.
    """

    def __init__(self, epsilon: float, **kwargs: Any) -> None:
        super().__init__((epsilon,), **kwargs)

    def compute(self) -> Tensor:
        """Return the certified accuracy, a scalar."""
        return super().compute()[0]

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the value, or a list of values over time; see ``torchmetrics.Metric.plot``."""
        return self._plot(val, ax)


class CertifiedRadius(_Base):
    """Mean and quantiles of certified radii; a wrong prediction counts as 0.

    The names are those that the monitor logs, and every value is float64.

    Args:
        quantiles: shares from 0 to 1, each reported as ``p<percent>``, one half as ``median``.
        **kwargs: see ``torchmetrics.Metric``.

    Raises:
        ValueError: a share out of range.
    """

    higher_is_better = True

    radii: list[Tensor]
    capped: list[Tensor]
    index: list[Tensor]

    def __init__(self, quantiles: Sequence[float] = (0.1, 0.5, 0.9), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.quantiles = tuple(quantiles)
        if not all(0 <= share <= 1 for share in self.quantiles):
            raise ValueError(f"`quantiles` must lie between 0 and 1, got {self.quantiles}.")
        for name in ("radii", "capped", "index"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self, radii: Tensor, capped: Tensor | None = None, index: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            radii: ``(B,)`` certified, finite; NaN, of a sample that cannot be asked about, is left
                out.
            capped: ``(B,)`` whether each is the largest that was tried.
            index: ``(B,)`` positions in the data set; a sample that several processes saw counts
                once. Give it always or never.

        Raises:
            ValueError: a radius that is infinite.
        """
        answered = ~radii.isnan()
        capped, index = (None if part is None else part[answered] for part in (capped, index))
        radii = radii[answered]
        if not radii.isfinite().all():
            raise ValueError("`radii` must be finite; cap them, and say so with `capped`.")
        known = sum(len(part) for part in self.radii)
        fresh = -1 - torch.arange(known, known + len(radii), device=radii.device)
        self.radii.append(radii.double())
        self.capped.append(torch.zeros_like(radii, dtype=torch.bool) if capped is None else capped)
        self.index.append(fresh if index is None else index.long())

    def compute(self) -> dict[str, Tensor]:
        """Return ``mean``, ``capped_fraction``, and ``median`` or ``p<percent>`` by quantile."""
        radii, capped, index = (
            dim_zero_cat(part) for part in (self.radii, self.capped, self.index)
        )
        if (index >= 0).all():
            order = index.argsort()
            first = torch.ones_like(index, dtype=torch.bool)
            first[1:] = index[order].diff() > 0
            radii, capped = radii[order][first], capped[order][first]
        values = {"mean": radii.mean(), "capped_fraction": capped.double().mean()}
        for share in self.quantiles:
            name = "median" if share == 0.5 else f"p{100 * share:g}".replace(".", "p")
            values[name] = lower_quantile(radii, share)
        return values

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the values; see ``torchmetrics.Metric.plot``."""
        return self._plot(val, ax)


class RobustnessGap(_Base):
    """Mean empirical minus mean certified radius: what neither proof nor attack decides.

    Args:
        **kwargs: see ``torchmetrics.Metric``.
    """

    higher_is_better = False

    gap_sums: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("gap_sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, certified: Tensor, empirical: Tensor) -> None:
        """Add the certified and the empirical radii of a batch, ``(B,)`` each; NaN is left out.

        Raises:
            ValueError: an empirical radius below the certified one, which one of them gets wrong.
        """
        answered = ~(certified.isnan() | empirical.isnan())
        certified, empirical = certified[answered], empirical[answered]
        below = empirical < certified
        if below.any():
            raise ValueError(
                f"`empirical` must not be below `certified`; it is for {int(below.sum())} samples, "
                "so the certificate or the attack is wrong."
            )
        sums = torch.stack([certified.sum(), empirical.sum(), certified.new_tensor(len(certified))])
        self.gap_sums += sums.to(self.gap_sums)

    def compute(self) -> Tensor:
        """Return the gap in the units of the input, a scalar."""
        certified, empirical, count = self.gap_sums
        return (empirical - certified) / count

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the value, or a list of values over time; see ``torchmetrics.Metric.plot``."""
        return self._plot(val, ax)
