"""A loss that grows certified radii themselves, up to a target.

    mean over the batch of   log(epsilon / min(radius, epsilon))   where the radius is positive
                             CE(clean)                             where it is 0

The logarithm, because radii start a hundred times below epsilon, where what they lack hardly
changes while they double. Ding et al., "MMA training", ICLR 2020, raise the distance that an attack
finds; here it is the certified radius (Ko et al., "POPQORN", ICML 2019) with the gradient of the
implicit function margin(radius) = 0.

B: batch.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from popqorn_train.bounds.memory import Chunks
from popqorn_train.bounds.methods import Method
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.module_probe import Claim
from popqorn_train.certificates.query import Query
from popqorn_train.certificates.radius import check_search
from popqorn_train.certificates.radius_gradient import with_gradient
from popqorn_train.certificates.search import answer
from popqorn_train.certificates.unread import fitted
from popqorn_train.perturbations.box import Box, Perturbation, check_searched
from popqorn_train.perturbations.masks import Mask
from popqorn_train.perturbations.region import Scope
from popqorn_train.perturbations.substitutions import Substitutions
from popqorn_train.training.loss import CertifiedLoss, Worst
from popqorn_train.training.objective import Prepared


class RadiusLoss(CertifiedLoss):
    """Loss whose gradient raises certified radii that are below ``epsilon``.

    Of its parts, ``bound`` is the loss above without the clean term, and ``certified`` the share
    whose radius reaches epsilon. Where epsilon is 0 there is nothing to reach, and it is the cross
    entropy.

    Args:
        epsilon: radius that is enough, in the units of the input.
        p: see ``CertifiedLoss``; so are those up to ``kappa``.
        low: least value of an input, or None.
        high: greatest value, or None.
        frames: mask of the perturbed frames.
        features: mask of the perturbed features.
        scope: one ball per frame, or one for the sequence.
        box: what may move, by its ends, instead; ``epsilon`` is then the share that is enough.
        method: bounding method.
        kappa: weight of the clean term.
        rtol: relative precision of the radii.

    Raises:
        ValueError, TypeError: an argument out of range.
    """

    ramped: ClassVar[tuple[str, ...]] = ("epsilon", "kappa")

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
        method: str | Method = "ibp",
        kappa: float = 0.0,
        rtol: float = 1e-2,
    ) -> None:
        if not isinstance(epsilon, int | float):
            kind = type(epsilon).__name__
            raise TypeError(f"`epsilon` must be one number for all samples, got {kind}.")
        check_search(rtol, None, None)
        if isinstance(box, Box):
            check_searched(box)
        super().__init__(
            epsilon,
            p,
            low=low,
            high=high,
            frames=frames,
            features=features,
            scope=scope,
            box=box,
            method=method,
            kappa=kappa,
        )
        self.rtol = rtol
        self._chunks = Chunks()

    def ball(self, share: float = 1.0) -> Perturbation:
        """See ``CertifiedLoss``; words are refused."""
        ball = super().ball(share)
        if isinstance(ball, Substitutions):
            raise ValueError(
                "`words` have no size to search; use ibp, crown_ibp, mtl, pgd or popqorn."
            )
        return ball

    @property
    def has_clean_term(self) -> bool:
        """See ``Objective``; it is what is left where a radius is 0."""
        return True

    def _worst(self, batch: Prepared) -> Worst:
        error = cross_entropy(batch.logits, batch.target, reduction="none")
        if self.epsilon == 0:
            return Worst(error.mean(), batch.zero(), None)
        radius = self._radius(batch)
        tiny = torch.finfo(radius.dtype).tiny
        lacking = math.log(self.epsilon) - radius.clamp(min=tiny).log()
        reached = radius.detach() >= self.epsilon * (1 - 1e-6)  # but for rounding
        loss = torch.where(radius > 0, lacking, error).mean()
        return Worst(loss, reached.float().mean(), None)

    def _radius(self, batch: Prepared) -> Tensor:
        """Certified radii ``(B,)`` up to epsilon, with gradients where they are wanted."""
        target = batch.target.to(batch.instance.center.device)
        ball = self.ball()
        instance = fitted(batch.instance, ball)
        question = Query(instance, target, None, ball, self.method, self._chunks)
        with undisturbed(batch.model):
            with torch.no_grad():
                found = answer(question, None, max_radius=self.epsilon, rtol=self.rtol)
                reached = ball.sized(found.radius)
                batch.probe(instance, reached, Claim(found.radius > 0))
            return with_gradient(question, found) if torch.is_grad_enabled() else found.radius
