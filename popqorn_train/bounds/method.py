"""What a bounding method is, and the two whose ranges are intervals.

Sources: Gowal et al., "IBP", ICCV 2019; Zhang et al., "CROWN-IBP", ICLR 2020.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from popqorn_train.bounds.backward import Enclosure, minimum
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.memory import bytes_a_sample, bytes_of_ranges
from popqorn_train.bounds.node import Logits, Node
from popqorn_train.bounds.relaxer import Relaxation


@dataclass(frozen=True)
class Method:
    """A way to bound linear functions of the output from below.

    Attributes:
        shares_rows: whether rows that are the same for all samples cost next to nothing.
        monotone: whether no bound is larger on a larger ball.
        graded: whether the size of every positive margin says how much larger the ball can be.
        dip: how far below 0 margins fall, in clean margins, before they may rise above 0 again on
            larger balls; as measured, for searches.
    """

    shares_rows: ClassVar[bool] = False
    monotone: ClassVar[bool] = False
    graded: ClassVar[bool] = True
    dip: ClassVar[float] = 0.25

    def bounded(self, output: Node, rows: Tensor) -> tuple[Tensor, Enclosure]:
        """Bound ``rows . output`` from below.

        Args:
            output: node of shape ``(C,)``.
            rows: ``(B, K, C)`` or ``(1, K, C)``.

        Returns:
            ``(B, K)``, and the ranges that it comes from.
        """
        raise NotImplementedError

    def lower(self, output: Node, rows: Tensor) -> Tensor:
        """Bound ``rows . output`` from below, ``(B, K)``; see ``bounded``."""
        return self.bounded(output, rows)[0]

    def margins(self, output: Logits, rows: Tensor) -> tuple[Tensor, Enclosure]:
        """Bound margins ``(B, K)``, of which all have to be positive; see ``bounded``."""
        return self.bounded(output, rows)

    def differentiates(self, output: Node) -> bool:
        """Whether bounding takes derivatives, even where nobody asks for those of the bounds.

        A method of which this is False is run in inference mode where it can be. A subclass that
        calls autograd must say True.
        """
        return True

    def bytes_a_sample(self, output: Node, like: Tensor) -> int:
        """Estimate of what bounding one sample takes, from above; see memory.py."""
        return bytes_a_sample(output, like)

    @property
    def deciding(self) -> "Method":
        """What proves the same, with smaller bounds where all that a sample needs are positive."""
        return self

    @property
    def cheaper(self) -> "Method | None":
        """A method whose margins tell where the radius of this one may lie, if any."""
        return None


@dataclass(frozen=True)
class IBP(Method):
    """Intervals alone: the cheapest, linear in the number of frames."""

    shares_rows: ClassVar[bool] = True
    monotone: ClassVar[bool] = True  # every range contains that of a smaller ball

    def bounded(self, output: Node, rows: Tensor) -> tuple[Tensor, Enclosure]:
        """See ``Method``."""
        found = enclose(output)
        return minimum(output, rows, found, intervals=True), found

    def differentiates(self, output: Node) -> bool:
        """See ``Method``."""
        return False

    def bytes_a_sample(self, output: Node, like: Tensor) -> int:
        """See ``Method``; ranges, and no slopes."""
        return bytes_of_ranges(output, like)


@dataclass(frozen=True)
class CrownIBP(Method):
    """Interval ranges, then one backward pass through linear relaxations.

    Attributes:
        beta: None takes the larger of the linear and the interval bound; a number from 0 to 1
            makes ``beta linear + (1 - beta) interval`` of them, as for training; so does a scalar
            tensor, which is not looked at.
    """

    beta: float | Tensor | None = None

    def __post_init__(self) -> None:
        if isinstance(self.beta, int | float) and not 0 <= self.beta <= 1:
            raise ValueError(f"`beta` must be None or lie between 0 and 1, got {self.beta!r}.")

    def bounded(self, output: Node, rows: Tensor) -> tuple[Tensor, Enclosure]:
        """See ``Method``."""
        known = None if isinstance(self.beta, Tensor) else self.beta
        if known == 0:
            return IBP().bounded(output, rows)
        found = enclose(output, relax=Relaxation())
        linear = minimum(output, rows, found)
        if known == 1:
            return linear, found
        interval = minimum(output, rows, found, intervals=True)
        if self.beta is None:
            return torch.maximum(linear, interval), found
        return torch.lerp(interval, linear, self.beta), found

    def differentiates(self, output: Node) -> bool:
        """See ``Method``."""
        return False
