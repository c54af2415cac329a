"""CROWN-IBP: a certified loss on bounds that are a mixture of linear ones and intervals."""

import math
from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from popqorn_train.bounds.methods import CrownIBP, Method
from popqorn_train.bounds.node import Node
from popqorn_train.certificates.module_probe import Claim
from popqorn_train.perturbations.box import Box
from popqorn_train.perturbations.masks import Mask
from popqorn_train.perturbations.region import Scope
from popqorn_train.perturbations.substitutions import Substitutions
from popqorn_train.training.loss import Bounded, CertifiedLoss
from popqorn_train.training.loss_fusion import fused_cross_entropy
from popqorn_train.training.objective import check_share


class CrownIBPLoss(CertifiedLoss):
    """Certified loss on bounds that are beta parts linear and 1 - beta parts intervals.

    With beta = 1 they are those of one backward pass, with beta = 0 of intervals alone, which
    cost no backward pass.

    Args:
        epsilon: see ``CertifiedLoss``; so are the others.
        p: norm.
        low: least value of an input, or None.
        high: greatest value, or None.
        frames: mask of the perturbed frames.
        features: mask of the perturbed features.
        scope: one ball per frame, or one for the sequence.
        box: what may move, by its ends, instead; see ``CertifiedLoss``.
        words: words that may be replaced, instead; see ``CertifiedLoss``.
        kappa: weight of the clean term.
        beta: weight of the linear margin, from 0 to 1.
        fused: bound the cross entropy by one backward row per sample (loss_fusion.py), and mix it
            with that of interval margins; else mix margins, with a row for every other class.
            Costs about half on wide layers, but the bound is looser: it leaves the intervals of
            margins by a chord, which is long where they are wide.
        signal: weight of ``drowned``.
        compiled: see ``CertifiedLoss``.

    Sources:
        Zhang et al., "Towards stable and efficient training of verifiably robust neural
        networks", ICLR 2020; Xu et al., "Automatic perturbation analysis for scalable certified
        robustness and beyond", NeurIPS 2020 (fused).
    """

    ramped: ClassVar[tuple[str, ...]] = ("epsilon", "kappa", "beta", "signal")

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
        words: Substitutions | None = None,
        kappa: float = 0.0,
        beta: float = 1.0,
        fused: bool = False,
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
            words=words,
            method="crown-ibp",
            kappa=kappa,
            signal=signal,
            compiled=compiled,
        )
        check_share("beta", beta)
        self.beta, self.fused = beta, fused

    @property
    def _numbers(self) -> Sequence[float]:
        return [self.beta] if self.beta > 0 else []

    @property
    def _variant(self) -> Hashable:
        return self.beta > 0, self.fused

    def _bounding(self, *numbers: Tensor) -> Method:
        return CrownIBP(*(numbers or [self.beta]))

    def _bounded(self, graph: Node, target: Tensor, *numbers: Tensor) -> Bounded:
        if not self.fused or self.beta == 0:
            return super()._bounded(graph, target, *numbers)
        assert graph.region is not None
        bounds = fused_cross_entropy(graph, target, graph.region.value)
        (beta,) = numbers or [self.beta]
        loss, good = torch.lerp(bounds.interval, bounds.linear, beta).mean(), bounds.certified
        return Bounded(loss, good.float().mean(), Claim(good), bounds.found)
