"""The bounding methods: which ranges, and which last step.

    name          ranges of what nonlinearities read        bound on the output
    ibp           intervals                                 intervals
    crown-ibp     intervals                                 one backward pass
    popqorn       a backward pass each, cut with intervals  one backward pass

Every margin is the larger of the method's and the interval one.

Sources: Gowal et al., "IBP", ICCV 2019; Zhang et al., "CROWN-IBP", ICLR 2020; Ko et al.,
"POPQORN", ICML 2019.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from popqorn_train.graph import enclose, minimum
from popqorn_train.node import Node


@dataclass(frozen=True)
class Method:
    """A way to bound linear functions of the output from below."""

    def lower(self, output: Node, rows: Tensor) -> Tensor:
        """Bound ``rows . output`` from below.

        Args:
            output: node of shape ``(C,)``.
            rows: ``(B, K, C)`` or ``(1, K, C)``.

        Returns:
            ``(B, K)``.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class IBP(Method):
    """Intervals alone: the cheapest, linear in the number of frames."""

    def lower(self, output: Node, rows: Tensor) -> Tensor:
        """See ``Method``."""
        return minimum(output, rows, enclose(output, relax=False), intervals=True)


@dataclass(frozen=True)
class CrownIBP(Method):
    """Interval ranges, then one backward pass through linear relaxations."""

    refined = False

    def lower(self, output: Node, rows: Tensor) -> Tensor:
        """See ``Method``."""
        found = enclose(output, backward=self.refined)
        linear = minimum(output, rows, found)
        return torch.maximum(linear, minimum(output, rows, found, intervals=True))


@dataclass(frozen=True)
class Popqorn(CrownIBP):
    """A backward bound for everything a nonlinearity reads, quadratic in the number of frames."""

    refined = True


METHODS: dict[str, Method] = {"ibp": IBP(), "crown-ibp": CrownIBP(), "popqorn": Popqorn()}


def method_named(method: str | Method) -> Method:
    """Look a method up.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a ``Method``.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(f"`method` must be a name or a Method, got {type(method).__name__}.")
    if method not in METHODS:
        known = ", ".join(repr(name) for name in METHODS)
        raise ValueError(f"`method` must be one of {known}, got {method!r}.")
    return METHODS[method]


def name_of(method: Method) -> str:
    """The name of a method, or how it is made where its options have no name."""
    return next((name for name, known in METHODS.items() if known == method), repr(method))
