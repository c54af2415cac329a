"""A certified loss on small balls inside the ball: SABR.

    x' found by an attack with  ||x' - x||_p <= (1 - ratio) epsilon
    bounded:                    ||z - x'||_p <= ratio epsilon,  so that  ||z - x||_p <= epsilon

Müller et al., "Certified training: small boxes are all you need", ICLR 2023.

B: batch, T: frames, N: features of a frame.
"""

import math
from typing import ClassVar

from torch import Tensor

from popqorn_train.certificates.instance import Instance
from popqorn_train.certificates.unread import fitted
from popqorn_train.perturbations.box import Box, Perturbation
from popqorn_train.perturbations.masks import Mask
from popqorn_train.perturbations.region import Scope
from popqorn_train.perturbations.substitutions import Substitutions
from popqorn_train.training.loss import CertifiedLoss
from popqorn_train.training.objective import Prepared, check_share


class SmallBoxLoss(CertifiedLoss):
    """Certified loss on a part of the ball, around a point that an attack found.

    Its parts speak of that part: ``certified`` is the share of small balls in which the class
    cannot change, which proves nothing about the whole ball.

    Args:
        epsilon: see ``CertifiedLoss``; so are those up to ``kappa``.
        p: norm.
        low: least value of an input, or None.
        high: greatest value, or None.
        frames: mask of the perturbed frames.
        features: mask of the perturbed features.
        scope: one ball per frame, or one for the sequence.
        box: what may move, by its ends, instead; see ``CertifiedLoss``.
        kappa: weight of the clean term.
        ratio: size of the small ball as a share of epsilon, from 0 (an attack alone) to 1 (the
            whole ball).
        attack_steps: gradient steps of the attack.
        signal: weight of ``drowned``.
        compiled: see ``CertifiedLoss``.
    """

    ramped: ClassVar[tuple[str, ...]] = ("epsilon", "kappa", "ratio", "signal")

    def __init__(
        self,
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
    ) -> None:
        super().__init__(
            epsilon,
            p,
            low=low,
            high=high,
            frames=frames,
            features=features,
            scope=scope,
            box=box,
            kappa=kappa,
            attack_steps=attack_steps,
            signal=signal,
            compiled=compiled,
        )
        check_share("ratio", ratio)
        self.ratio = ratio

    def ball(self, share: float = 1.0) -> Perturbation:
        """See ``CertifiedLoss``; words are refused."""
        ball = super().ball(share)
        if isinstance(ball, Substitutions):
            raise ValueError(
                "`words` have no smaller set around a sentence that an attack found; use ibp, "
                "crown_ibp, mtl, pgd or popqorn."
            )
        return ball

    def _region(self, batch: Prepared) -> tuple[Instance, Perturbation]:
        instance = fitted(batch.instance, self.ball())
        if self.ratio == 1:
            return instance, self.ball()
        moved = self._found(batch, self.ball(1 - self.ratio))
        if self.box is None:
            return instance.shifted(moved), self.ball(self.ratio)
        whole = instance.in_own_units(self.ball())
        small = Box(moved - self.ratio * whole.down, moved + self.ratio * whole.up)
        return instance.shifted(moved), small
