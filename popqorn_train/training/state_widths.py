"""How wide the intervals of a recurrent layer's states are, beside what the states tell apart.

    ratio[t] = mean radius of the state after t steps / mean over units of its spread

where the spread is the standard deviation, over the batch, of the middle of the intervals. Above
1, intervals are wider than inputs lie apart, and a certified loss has little to learn from.

B: batch, T: steps, H: units of all layers and directions.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.backward import Enclosure
from popqorn_train.perturbations.region import Bounds

_TINY = 1e-12  # added to a variance: the root of 0 has no gradient


class StateWidths(NamedTuple):
    """Widths of one kind of state, step by step.

    Attributes:
        radius: ``(T,)`` mean half width.
        spread: ``(T,)`` mean standard deviation of the middles over the batch.
        wide: ``(T,)`` share of half widths above .95, which is all of what bounded states can be.
    """

    radius: Tensor
    spread: Tensor
    wide: Tensor

    @property
    def ratio(self) -> Tensor:
        """Radius to signal, ``(T,)``."""
        return self.radius / self.spread


Kind = Literal["h", "c"]
KINDS: tuple[Kind, ...] = ("h", "c")


def widths(found: Enclosure, kind: Kind) -> StateWidths | None:
    """Widths of the states of every recurrent layer, as far as they reach the output.

    Args:
        found: ranges, of a batch.
        kind: hidden or cell states.

    Returns:
        With gradients; None where no layer has such states.
    """
    steps: dict[int, list[Bounds]] = {}
    for node, bounds in found.ranges.items():
        if node.state is not None and node.state[0] == kind:
            steps.setdefault(node.state[1], []).append(bounds)
    if not steps:
        return None
    rows = [_widths(steps[step]) for step in sorted(steps)]
    return StateWidths(*[torch.stack(column) for column in zip(*rows, strict=True)])


def drowned(found: Enclosure, tolerance: float = 1.0) -> Tensor:
    """How far intervals drown what states tell apart, to be kept small while epsilon grows.

        sum over steps of  max(0, log(ratio / tolerance))

    of hidden and of cell states. The logarithm, because where all inputs agree (blank rows of an
    image) a ratio is huge whatever the weights are, and must not outweigh the other steps.

    Args:
        found: ranges, of a batch of at least two samples.
        tolerance: ratio that does no harm.

    Returns:
        A scalar with gradients; 0 where nothing is drowned or no layer is recurrent.
    """
    if not found.ranges:
        return torch.zeros(())
    like = next(iter(found.ranges.values())).lower
    total = like.new_zeros(())
    for kind in KINDS:
        states = widths(found, kind)
        if states is not None and len(like) > 1:
            total = total + (states.ratio / tolerance).log().relu().sum()
    return total


def _widths(layers: list[Bounds]) -> StateWidths:
    """Of one step, scalars."""
    lower, upper = (torch.cat(ends, -1) for ends in zip(*layers, strict=True))  # (B, H)
    half, middle = (upper - lower) / 2, (upper + lower) / 2
    spread = (middle.var(0, correction=0) + _TINY).sqrt()
    return StateWidths(half.mean(), spread.mean(), (half > 0.95).to(half.dtype).mean())
