"""Which objectives does certified training have, one function each?

Costs of a step are in steps of cross entropy on the same cell unrolled by hand: a GRU of 32 units
on 8 and on 29 frames, and a vanilla RNN of 128 units on 4 wide frames (``make bench-objectives``).

Every function returns an ``Objective``: call it as ``loss(model, inputs, target)``, read its terms
with ``loss.parts(...)``, and let ``EpsilonSchedule`` ramp it. All take what may move as
``CertifiedLoss`` does: ``epsilon``, ``p``, ``low``, ``high``, ``frames``, ``features`` and
``scope``, or a ``box``; but for ``sabr`` and ``radius`` also ``words``.

Goes in: settings. Comes out: an objective of training/. Must not know: how a loss is worked out.
"""

from collections.abc import Callable, Mapping, Sequence

from popqorn_train.objectives.attacked import mtl, pgd, sabr
from popqorn_train.objectives.backward import popqorn, radius
from popqorn_train.objectives.interval import crown_ibp, ibp
from popqorn_train.training.loss import CertifiedLoss
from popqorn_train.training.mixture import Mixture
from popqorn_train.training.objective import Objective

__all__ = [
    "OBJECTIVES",
    "crown_ibp",
    "ibp",
    "mixture",
    "mtl",
    "pgd",
    "popqorn",
    "radius",
    "sabr",
    "standard",
]


def standard() -> CertifiedLoss:
    """Cross entropy on clean inputs, to compare the others with."""
    return CertifiedLoss(0.0, kappa=1.0)


def mixture(objectives: Sequence[Objective], weights: Sequence[float]) -> Mixture:
    """A weighted sum of objectives, for example of two epsilons.

    Args:
        objectives: at least one.
        weights: one each, not negative.

    Raises:
        ValueError: weights that do not fit.
    """
    return Mixture(objectives, weights)


OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "standard": standard,
    "pgd": pgd,
    "ibp": ibp,
    "crown-ibp": crown_ibp,
    "mtl": mtl,
    "sabr": sabr,
    "popqorn": popqorn,
    "radius": radius,
}
