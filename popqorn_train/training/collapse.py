"""Tell from what a certified loss sees whether training learns, or has collapsed.

Certified training that fails ends in a constant prediction: the intervals of the states are wider
than inputs lie apart, the bound loss is that of a guess or worse, and what its gradient does to
the weights makes states alike. That begins long before predictions are constant.

B: batch, C: classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from popqorn_train.bounds.backward import Enclosure
from popqorn_train.training.state_widths import widths

_GUESS = 0.95  # of ln C: a bound loss from which little is learned


@dataclass
class LossSample:
    """What some samples look like to a loss, in plain numbers.

    Attributes:
        predicted: how many samples are predicted as each class.
        labels: how many belong to it.
        bound: bound loss, in units of ln C; NaN without bounds.
        widths: of the states, by name; empty without intervals.
    """

    predicted: list[int]
    labels: list[int]
    bound: float = math.nan
    widths: dict[str, float] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many."""
        return sum(self.labels)

    @property
    def modal_share(self) -> float:
        """Share of the class that is predicted most."""
        return max(self.predicted) / self.samples

    @property
    def constancy(self) -> float:
        """The same, so that 1 is a constant prediction and 0 what the labels have themselves."""
        natural = max(self.labels) / self.samples
        return (self.modal_share - natural) / (1 - natural) if natural < 1 else 0.0

    @property
    def ratio(self) -> float:
        """Radius to signal of the last state; NaN without intervals."""
        return self.widths.get("ratio_last", math.nan)


def sampled(logits: Tensor, target: Tensor, bound: float, found: Enclosure | None) -> LossSample:
    """Look at a batch.

    Args:
        logits: ``(B, C)`` of clean inputs.
        target: ``(B,)`` labels.
        bound: cross entropy on the worst-case logits; NaN without.
        found: ranges that it comes from, if any.
    """
    classes = logits.shape[1]
    counts = [torch.bincount(labels, minlength=classes) for labels in (logits.argmax(1), target)]
    predicted, labels = (count.tolist() for count in counts)
    return LossSample(predicted, labels, bound / math.log(classes), _named(found))


def _named(found: Enclosure | None) -> dict[str, float]:
    """Widths of the states, worth watching one by one."""
    hidden = None if found is None else widths(found, "h")
    if found is None or hidden is None:
        return {}
    ratio, last = hidden.ratio.tolist(), len(hidden.ratio) - 1
    named = {
        "hidden_radius": hidden.radius.mean().item(),
        "wide": hidden.wide[last].item(),
        "ratio_first": ratio[0],
        "ratio_middle": ratio[last // 2],
        "ratio_last": ratio[last],
    }
    cell = widths(found, "c")
    return named if cell is None else {**named, "cell_radius": cell.radius[last].item()}


def merged(samples: Sequence[LossSample]) -> LossSample | None:
    """One look at all samples; None where there are none."""
    samples = [part for part in samples if part.samples]
    if not samples:
        return None
    classes = range(max(len(part.labels) for part in samples))
    predicted, labels = (
        [sum(counts[c] for counts in column if c < len(counts)) for c in classes]
        for column in zip(*[(part.predicted, part.labels) for part in samples], strict=True)
    )
    bounded = [(part.bound, part.samples) for part in samples if not math.isnan(part.bound)]
    names = {name: None for part in samples for name in part.widths}
    means = {
        name: _mean([(part.widths[name], part.samples) for part in samples if name in part.widths])
        for name in names
    }
    return LossSample(predicted, labels, _mean(bounded) if bounded else math.nan, means)


def _mean(weighted: Sequence[tuple[float, int]]) -> float:
    return sum(value * weight for value, weight in weighted) / sum(w for _, w in weighted)


@dataclass
class Collapse:
    """Decides from one look after another whether training has collapsed.

    Attributes:
        ratio: radius to signal above which intervals drown what states tell apart.
        constancy: of predictions, above which they are constant.
        patience: steps that must look bad in a row.
        bad: how many do.
        learned: whether predictions ever were not constant.
    """

    ratio: float
    constancy: float
    patience: int
    bad: int = 0
    learned: bool = False

    def tell(self, seen: LossSample, steps: int) -> str | None:
        """Take notice of a look.

        Args:
            seen: of the last step.
            steps: since the last look.

        Returns:
            Why training has collapsed; None where it has not.
        """
        constant = seen.constancy >= self.constancy
        self.learned |= not constant
        drowned = seen.ratio > self.ratio
        vacuous = drowned and not seen.bound < _GUESS
        lost = constant and self.learned and not seen.ratio <= self.ratio
        self.bad = self.bad + steps if vacuous or lost else 0
        new = self.bad >= self.patience > self.bad - steps  # once, not as long as it lasts
        return self._reason(seen) if new else None

    def good(self, seen: LossSample) -> bool:
        """Whether weights are worth going back to: it predicts, and its bounds tell something."""
        if seen.constancy >= self.constancy:
            return False
        return not seen.widths or (seen.ratio <= self.ratio and seen.bound < _GUESS)

    def _reason(self, seen: LossSample) -> str:
        parts = [f"{seen.modal_share:.0%} of predictions are one class"]
        if seen.widths:
            parts.append(f"intervals are {seen.ratio:.3g} times as wide as states lie apart")
        if not math.isnan(seen.bound):
            parts.append(f"the bound loss is {seen.bound:.2f} ln C")
        return ", ".join(parts) + f", for {self.bad} steps"

    def forget(self) -> None:
        """Begin anew."""
        self.bad, self.learned = 0, False

    def state(self) -> dict[str, Any]:
        """What a resumed training goes on from, as plain values."""
        return {"bad": self.bad, "learned": self.learned}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.bad, self.learned = state["bad"], state["learned"]
