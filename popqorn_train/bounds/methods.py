"""The bounding methods: which ranges, and which last step.

    name              ranges of what nonlinearities read        bound on the output
    ibp               intervals                                 intervals
    crown-ibp         intervals                                 one backward pass
    popqorn           a backward pass each, cut with intervals  one backward pass
    popqorn-tight     as popqorn, then of the last frame, as if the class flipped (rebound.py)
    popqorn-tightest  the same, then of all frames

Every margin is at least the interval one, and that of the method before it from popqorn on.

Sources: Gowal et al., "IBP", ICCV 2019; Zhang et al., "CROWN-IBP", ICLR 2020; Ko et al.,
"POPQORN", ICML 2019.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from popqorn_train.bounds.backward import Enclosure, minimum
from popqorn_train.bounds.contradiction import refute
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.node import Logits, Node
from popqorn_train.bounds.picking import alike
from popqorn_train.bounds.rebound import BadRegion, Budget
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.products import PRODUCTS
from popqorn_train.relaxations.slopes import POLICIES


@dataclass(frozen=True)
class Method:
    """A way to bound linear functions of the output from below.

    Attributes:
        shares_rows: whether rows that are the same for all samples cost next to nothing.
        monotone: whether no bound is larger on a larger ball.
        graded: whether the size of every positive margin says how much larger the ball can be.
    """

    shares_rows: ClassVar[bool] = False
    monotone: ClassVar[bool] = False
    graded: ClassVar[bool] = True

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


@dataclass(frozen=True)
class CrownIBP(Method):
    """Interval ranges, then one backward pass through linear relaxations.

    Attributes:
        beta: None takes the larger of the linear and the interval bound; a number from 0 to 1
            makes ``beta linear + (1 - beta) interval`` of them, as for training.
    """

    beta: float | None = None

    def __post_init__(self) -> None:
        if self.beta is not None and not 0 <= self.beta <= 1:
            raise ValueError(f"`beta` must be None or lie between 0 and 1, got {self.beta!r}.")

    def bounded(self, output: Node, rows: Tensor) -> tuple[Tensor, Enclosure]:
        """See ``Method``."""
        if self.beta == 0:
            return IBP().bounded(output, rows)
        found = enclose(output, relax=Relaxation())
        linear = minimum(output, rows, found)
        if self.beta == 1:
            return linear, found
        interval = minimum(output, rows, found, intervals=True)
        if self.beta is None:
            return torch.maximum(linear, interval), found
        return torch.lerp(interval, linear, self.beta), found


@dataclass(frozen=True)
class Popqorn(Method):
    """A backward bound for everything a nonlinearity reads, quadratic in the number of frames.

    Attributes:
        slopes: how planes are chosen: ``"lambda"``, ``"tilted"``, ``"constant"`` or ``"line"``
            (slopes.py), or ``"best"``, the larger margin of lambda and tilted.
        octagons: the products that are enclosed on octagons, by name (products.py). All four
            cost about twice as much as boxes; the default has nearly all of the gain.
        own_lines: let every bounded row choose the lines around tanh, sigmoid and relu that are
            closest where its worst input lies; three times the cost for networks that have them.

    Gradients hold tilted slopes and own lines fixed; those of
    ``Popqorn("lambda", octagons=(), own_lines=False)`` are exact.
    """

    slopes: str = "tilted"
    octagons: tuple[str, ...] = ("sigmoid_tanh", "reset")
    own_lines: bool = True

    def __post_init__(self) -> None:
        if self.slopes not in (*POLICIES, "best"):
            known = ", ".join(repr(name) for name in (*POLICIES, "best"))
            raise ValueError(f"`slopes` must be one of {known}, got {self.slopes!r}.")
        if isinstance(self.octagons, str) or not set(self.octagons) <= set(PRODUCTS):
            raise ValueError(
                f"`octagons` must be a tuple of {', '.join(PRODUCTS)}, got {self.octagons!r}."
            )

    @property
    def policies(self) -> tuple[str, ...]:
        """What ``slopes`` stands for."""
        return ("lambda", "tilted") if self.slopes == "best" else (self.slopes,)

    def bounded(self, output: Node, rows: Tensor) -> tuple[Tensor, Enclosure]:
        """See ``Method``; the ranges are those of the last policy."""
        bounds = []
        for policy in self.policies:
            relaxation = Relaxation(policy, self.octagons)
            found = enclose(output, relax=relaxation, backward=True, chosen=self.own_lines)
            bounds.append(minimum(output, rows, found))
            bounds.append(minimum(output, rows, found, intervals=True))
        return functools.reduce(torch.maximum, bounds), found


_HOPE = 1.5  # how far below 0 a margin may be bounded, in its upper bounds, to be tried
_LAST_FRAME = Budget(rounds=24, units=20, frames=1)
_EVERYTHING = Budget(rounds=24, units=None, frames=None)


@dataclass(frozen=True)
class TightPopqorn(Popqorn):
    """Popqorn, then a proof by contradiction for every margin that is not positive (rebound.py).

    A margin proved that way is reported as a positive number that just stands out from the
    rounding. The hardest class of a sample comes first; where it fails, the others are left.
    Bounds on logits are those of ``Popqorn``, and there are no gradients.

    Attributes:
        budgets: how much each attempt may cost; a later one takes up what the earlier left.
    """

    budgets: tuple[Budget, ...] = (_LAST_FRAME,)
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


METHODS: dict[str, Method] = {
    "ibp": IBP(),
    "crown-ibp": CrownIBP(),
    "popqorn": Popqorn(),
    "popqorn-tight": TightPopqorn(),
    "popqorn-tightest": TightPopqorn(budgets=(_LAST_FRAME, _EVERYTHING)),
}
# For losses: closed forms, through which gradients are exact.
TRAINING = {
    "ibp": IBP(),
    "crown-ibp": CrownIBP(),
    "popqorn": Popqorn("lambda", (), own_lines=False),
}


def method_named(method: str | Method, known: Mapping[str, Method] = METHODS) -> Method:
    """Look a method up.

    Args:
        method: a name, or a method, which is returned.
        known: methods by name.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a ``Method``.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(f"`method` must be a name or a Method, got {type(method).__name__}.")
    if method not in known:
        names = ", ".join(repr(name) for name in known)
        raise ValueError(f"`method` must be one of {names}, got {method!r}.")
    return known[method]


def name_of(method: Method) -> str:
    """The name of a method, or how it is made where its options have no name."""
    return next((name for name, known in METHODS.items() if known == method), repr(method))
