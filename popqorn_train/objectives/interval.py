"""Objectives on interval bounds, alone or beside others."""

import math

from torch import Tensor

from popqorn_train.perturbations.box import Box
from popqorn_train.perturbations.masks import Mask
from popqorn_train.perturbations.region import Scope
from popqorn_train.perturbations.substitutions import Substitutions
from popqorn_train.training.crown_ibp_loss import CrownIBPLoss
from popqorn_train.training.loss import CertifiedLoss


def ibp(
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
    signal: float = 0.0,
    compiled: bool = False,
) -> CertifiedLoss:
    """Interval bounds: the method to beat, and the one for many frames.

    Costs 5, 5 and 4 steps.

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
        signal: weight of the term that keeps intervals of states narrow, see ``CertifiedLoss``.
        compiled: compile the bound term and its gradients, likewise.

    Source:
        Gowal et al., "On the effectiveness of interval bound propagation for training verifiably
        robust models", ICCV 2019.
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
        method="ibp",
        signal=signal,
        compiled=compiled,
    )


def crown_ibp(
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
    beta: float = 1.0,
    fused: bool = False,
    signal: float = 0.0,
    compiled: bool = False,
) -> CrownIBPLoss:
    """Interval ranges and one backward pass, mixed with interval margins.

    Starts from tighter margins than ``ibp``; ``EpsilonSchedule`` lowers beta to 0 over the ramp,
    from where on it is ``ibp``.

    Costs 23, 26 and 28 steps, and as much as ``ibp`` once beta is 0; ``fused`` takes a third off.

    Args:
        epsilon: see ``CertifiedLoss``; so are those up to ``kappa``.
        p: norm.
        low: least value of an input.
        high: greatest value of an input.
        frames: mask of the perturbed frames.
        features: mask of the perturbed features.
        scope: one ball per frame, or one for the sequence.
        box: what may move, by its ends, instead; see ``CertifiedLoss``.
        words: words that may be replaced, instead; see ``CertifiedLoss``.
        kappa: weight of the clean term.
        beta: weight of the linear margin against the interval margin, at the start of a ramp.
        fused: bound the cross entropy by one backward row, see ``CrownIBPLoss``.
        signal: weight of the term that keeps intervals of states narrow, see ``CertifiedLoss``.
        compiled: compile the bound term and its gradients, likewise.

    Source:
        Zhang et al., "Towards stable and efficient training of verifiably robust neural
        networks", ICLR 2020.
    """
    return CrownIBPLoss(
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
        beta=beta,
        fused=fused,
        signal=signal,
        compiled=compiled,
    )
