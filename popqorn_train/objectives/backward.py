"""Objectives on the bounds that certificates are made with."""

import math

from torch import Tensor

from popqorn_train.bounds.methods import Method
from popqorn_train.perturbations.box import Box
from popqorn_train.perturbations.masks import Mask
from popqorn_train.perturbations.region import Scope
from popqorn_train.perturbations.substitutions import Substitutions
from popqorn_train.training.loss import CertifiedLoss
from popqorn_train.training.radius_loss import RadiusLoss


def popqorn(
    epsilon: float,
    p: float = math.inf,
    *,
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    frames: Mask | None = None,
    features: Mask | None = None,
    scope: Scope = "frame",
    box: Box | None = None,
    words: Substitutions | None = None,
    kappa: float = 0.0,
    compiled: bool = False,
) -> CertifiedLoss:
    """Full backward bounds, with closed-form planes: for short sequences and small models.

    Costs 720, 3100 and 870 steps.

    Args:
        epsilon: see ``CertifiedLoss``; so are the others.
        p: norm.
        low: least value of an input.
        high: greatest value of an input.
        frames: mask of the perturbed frames.
        features: mask of the perturbed features.
        scope: one ball per frame, or one for the sequence.
        box: what may move, by its ends, instead; see ``CertifiedLoss``.
        words: words that may be replaced, instead; see ``CertifiedLoss``.
        kappa: weight of the clean term.
        compiled: see ``CertifiedLoss``; beyond a few frames there is too much to compile.

    Source:
        Ko et al., "POPQORN", ICML 2019.
    """
    return CertifiedLoss(
        epsilon,
        p,
        low=low,
        high=high,
        frames=frames,
        features=features,
        scope=scope,
        box=box,
        words=words,
        kappa=kappa,
        method="popqorn",
        compiled=compiled,
    )


def radius(
    epsilon: float,
    p: float = math.inf,
    *,
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    frames: Mask | None = None,
    features: Mask | None = None,
    scope: Scope = "frame",
    box: Box | None = None,
    kappa: float = 0.0,
    method: str | Method = "ibp",
    rtol: float = 1e-2,
) -> RadiusLoss:
    """Certified radii made larger, up to epsilon: each sample at the radius it has.

    Costs 41, 42 and 36 steps.

    Args:
        epsilon: radius that is enough.
        p: see ``CertifiedLoss``; so are those up to ``kappa``.
        low: least value of an input.
        high: greatest value of an input.
        frames: mask of the perturbed frames.
        features: mask of the perturbed features.
        scope: one ball per frame, or one for the sequence.
        box: what may move, by its ends, instead; see ``CertifiedLoss``.
        kappa: weight of the clean term.
        method: bounding method.
        rtol: relative precision of the radii.

    Source:
        Ding et al., "MMA training", ICLR 2020, with certified radii for attacked ones.
    """
    return RadiusLoss(
        epsilon,
        p,
        low=low,
        high=high,
        frames=frames,
        features=features,
        scope=scope,
        box=box,
        kappa=kappa,
        method=method,
        rtol=rtol,
    )
