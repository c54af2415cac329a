"""Objectives for certified training, one function each.

Costs of a step are in steps of cross entropy on the same cell unrolled by hand: a GRU of 32 units
on 8 and on 29 frames, and a vanilla RNN of 128 units on 4 wide frames (``make bench-objectives``).

Every function returns an ``Objective``: call it as ``loss(model, inputs, target)``, read its terms
with ``loss.parts(...)``, and let ``EpsilonSchedule`` ramp it. All take what may move as
``CertifiedLoss`` does: ``epsilon``, ``p``, ``low``, ``high``, ``frames``, ``features`` and
``scope``.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from popqorn_train.bounds.methods import Method
from popqorn_train.perturbations.box import Box
from popqorn_train.perturbations.masks import Mask
from popqorn_train.perturbations.region import Scope
from popqorn_train.training.crown_ibp_loss import CrownIBPLoss
from popqorn_train.training.loss import CertifiedLoss
from popqorn_train.training.mixture import Mixture
from popqorn_train.training.objective import Objective
from popqorn_train.training.radius_loss import RadiusLoss
from popqorn_train.training.small_boxes import SmallBoxLoss


def standard() -> CertifiedLoss:
    """Cross entropy on clean inputs, to compare the others with."""
    return CertifiedLoss(0.0, kappa=1.0)


def pgd(
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
    attack_steps: int = 5,
) -> CertifiedLoss:
    """Adversarial training: cross entropy where an attack ends.

    For small epsilon and few frames, to be certified by backward bounds; intervals prove nothing
    about it.

    Costs 10, 9 and 23 steps.

    Args:
        epsilon: see ``CertifiedLoss``; so are the others.
        p: norm.
        low: least value of an input.
        high: greatest value of an input.
        frames: mask of the frames that move.
        features: mask of the features that move.
        scope: one ball per frame, or one for the sequence.
        box: what may move, by its ends, instead; see ``CertifiedLoss``.
        kappa: weight of the clean term.
        attack_steps: gradient steps of the attack.

    Source:
        Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
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
        kappa=kappa,
        alpha=0.0,
        attack_steps=attack_steps,
    )


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
    kappa: float = 0.0,
    signal: float = 0.0,
) -> CertifiedLoss:
    """Interval bounds: the method to beat, and the one for many frames.

    Costs 5, 5 and 4 steps.

    Args:
        epsilon: see ``CertifiedLoss``; so are the others.
        p: norm.
        low: least value of an input.
        high: greatest value of an input.
        frames: mask of the frames that move.
        features: mask of the features that move.
        scope: one ball per frame, or one for the sequence.
        box: what may move, by its ends, instead; see ``CertifiedLoss``.
        kappa: weight of the clean term.
        signal: weight of the term that keeps intervals of states narrow, see ``CertifiedLoss``.

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
        kappa=kappa,
        method="ibp",
        signal=signal,
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
    kappa: float = 0.0,
    beta: float = 1.0,
    fused: bool = False,
    signal: float = 0.0,
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
        frames: mask of the frames that move.
        features: mask of the features that move.
        scope: one ball per frame, or one for the sequence.
        box: what may move, by its ends, instead; see ``CertifiedLoss``.
        kappa: weight of the clean term.
        beta: weight of the linear margin against the interval margin, at the start of a ramp.
        fused: bound the cross entropy by one backward row, see ``CrownIBPLoss``.
        signal: weight of the term that keeps intervals of states narrow, see ``CertifiedLoss``.

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
        kappa=kappa,
        beta=beta,
        fused=fused,
        signal=signal,
    )


def mtl(
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
    alpha: float = 0.5,
    attack_steps: int = 5,
    signal: float = 0.0,
) -> CertifiedLoss:
    """Between ``ibp`` and ``pgd``: for small epsilon, where it keeps more clean accuracy.

    Costs 15, 14 and 26 steps, nearly all of it for the attack.

    Args:
        epsilon: see ``CertifiedLoss``; so are the others.
        p: norm.
        low: least value of an input.
        high: greatest value of an input.
        frames: mask of the frames that move.
        features: mask of the features that move.
        scope: one ball per frame, or one for the sequence.
        box: what may move, by its ends, instead; see ``CertifiedLoss``.
        kappa: weight of the clean term.
        alpha: weight of the bound against the attack.
        attack_steps: gradient steps of the attack.
        signal: weight of the term that keeps intervals of states narrow, see ``CertifiedLoss``.

    Source:
        De Palma et al., "Expressive losses for verified robustness via convex combinations"
        (MTL-IBP), ICLR 2024.
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
        kappa=kappa,
        alpha=alpha,
        attack_steps=attack_steps,
        signal=signal,
    )


def sabr(
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
    ratio: float = 0.7,
    attack_steps: int = 5,
    signal: float = 0.0,
) -> SmallBoxLoss:
    """Interval bounds on a small ball around an adversarial point inside the ball.

    Costs less clean accuracy than ``ibp``, and needs a stronger verifier in the end, the more so
    the smaller the ratio.

    Costs 13, 13 and 23 steps, likewise.

    Args:
        epsilon: see ``CertifiedLoss``; so are those up to ``kappa``.
        p: norm.
        low: least value of an input.
        high: greatest value of an input.
        frames: mask of the frames that move.
        features: mask of the features that move.
        scope: one ball per frame, or one for the sequence.
        box: what may move, by its ends, instead; see ``CertifiedLoss``.
        kappa: weight of the clean term.
        ratio: size of the small ball as a share of epsilon (the paper's lambda).
        attack_steps: gradient steps of the attack.
        signal: weight of the term that keeps intervals of states narrow, see ``CertifiedLoss``.

    Source:
        Müller et al., "Certified training: small boxes are all you need", ICLR 2023.
    """
    return SmallBoxLoss(
        epsilon,
        p,
        low=low,
        high=high,
        frames=frames,
        features=features,
        scope=scope,
        box=box,
        kappa=kappa,
        ratio=ratio,
        attack_steps=attack_steps,
        signal=signal,
    )


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
    kappa: float = 0.0,
) -> CertifiedLoss:
    """Full backward bounds, with closed-form planes: for short sequences and small models.

    Costs 720, 3100 and 870 steps.

    Args:
        epsilon: see ``CertifiedLoss``; so are the others.
        p: norm.
        low: least value of an input.
        high: greatest value of an input.
        frames: mask of the frames that move.
        features: mask of the features that move.
        scope: one ball per frame, or one for the sequence.
        box: what may move, by its ends, instead; see ``CertifiedLoss``.
        kappa: weight of the clean term.

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
        kappa=kappa,
        method="popqorn",
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
        frames: mask of the frames that move.
        features: mask of the features that move.
        scope: one ball per frame, or one for the sequence.
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
        kappa=kappa,
        method=method,
        rtol=rtol,
    )


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
