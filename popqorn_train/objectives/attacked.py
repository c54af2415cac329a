"""Objectives that begin with an attack: on it, beside it, around it."""

import math

from torch import Tensor

from popqorn_train.perturbations.box import Box
from popqorn_train.perturbations.masks import Mask
from popqorn_train.perturbations.region import Scope
from popqorn_train.perturbations.substitutions import Substitutions
from popqorn_train.training.loss import CertifiedLoss
from popqorn_train.training.small_boxes import SmallBoxLoss


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
    words: Substitutions | None = None,
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
        frames: mask of the perturbed frames.
        features: mask of the perturbed features.
        scope: one ball per frame, or one for the sequence.
        box: what may move, by its ends, instead; see ``CertifiedLoss``.
        words: words that may be replaced, instead; see ``CertifiedLoss``.
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
        words=words,
        kappa=kappa,
        alpha=0.0,
        attack_steps=attack_steps,
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
    words: Substitutions | None = None,
    kappa: float = 0.0,
    alpha: float = 0.5,
    attack_steps: int = 5,
    signal: float = 0.0,
    compiled: bool = False,
) -> CertifiedLoss:
    """Between ``ibp`` and ``pgd``: for small epsilon, where it keeps more clean accuracy.

    Costs 15, 14 and 26 steps, nearly all of it for the attack.

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
        alpha: weight of the bound against the attack.
        attack_steps: gradient steps of the attack.
        signal: weight of the term that keeps intervals of states narrow, see ``CertifiedLoss``.
        compiled: compile the bound term and its gradients, likewise.

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
        words=words,
        kappa=kappa,
        alpha=alpha,
        attack_steps=attack_steps,
        signal=signal,
        compiled=compiled,
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
    compiled: bool = False,
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
        frames: mask of the perturbed frames.
        features: mask of the perturbed features.
        scope: one ball per frame, or one for the sequence.
        box: what may move, by its ends, instead; see ``CertifiedLoss``.
        kappa: weight of the clean term.
        ratio: size of the small ball as a share of epsilon (the paper's lambda).
        attack_steps: gradient steps of the attack.
        signal: weight of the term that keeps intervals of states narrow, see ``CertifiedLoss``.
        compiled: compile the bound term and its gradients, likewise.

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
        compiled=compiled,
    )
