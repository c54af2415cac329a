"""A certified loss: cross entropy on clean, attacked and worst-case logits.

    kappa CE(clean) + (1 - kappa) (alpha CE(bound) + (1 - alpha) CE(attack))

where the worst-case logits are minus the certified margins, 0 at the label.

Sources: Wong and Kolter, ICML 2018 (worst-case logits); Gowal et al., "IBP", ICCV 2019 (kappa);
De Palma et al., "MTL-IBP", ICLR 2024 (alpha).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from popqorn_train.attack import search
from popqorn_train.bound import BoundModel, Inputs, as_tuple, bound
from popqorn_train.case import Case, full_precision, undisturbed
from popqorn_train.certificate import check_target, margins_of, proved
from popqorn_train.methods import TRAINING, Method, method_named
from popqorn_train.perturbation import LpBall
from popqorn_train.region import Scope
from popqorn_train.wrapped import as_written

_CHECK_EVERY = 20  # calls between two comparisons of the trace with the model


class LossParts(NamedTuple):
    """Scalars for logging; a term with weight 0 is not computed and reads 0.

    Attributes:
        total: the loss.
        clean: cross entropy on the model's logits.
        bound: cross entropy on the worst-case logits.
        attack: cross entropy on logits under attack.
        certified: share of the batch with a positive certified margin.
    """

    total: Tensor
    clean: Tensor
    bound: Tensor
    attack: Tensor
    certified: Tensor


class CertifiedLoss(nn.Module):
    """Loss whose gradient raises certified margins.

    ``epsilon`` and ``kappa`` are plain attributes, not in the state dict: ramp them by hand or by
    ``EpsilonSchedule``.

    Args:
        epsilon: size of the ball, in the units of the input.
        p: norm.
        low: least value of an input, or None.
        high: greatest value, or None.
        frames: ``(T,)`` or ``(B, T)`` mask of the frames that move.
        scope: one ball a frame, or one for the sequence.
        method: bounding method; ``"ibp"`` costs least and trains best.
        kappa: weight of the clean term, from 0 to 1.
        alpha: weight of the bound against the attack, from 0 to 1.
        attack_steps: gradient steps of the attack.

    Raises:
        ValueError, TypeError: an argument out of range.
    """

    def __init__(
        self,
        epsilon: float,
        p: float = math.inf,
        *,
        low: float | Tensor | None = None,
        high: float | Tensor | None = None,
        frames: Tensor | None = None,
        scope: Scope = "frame",
        method: str | Method = "ibp",
        kappa: float = 0.0,
        alpha: float = 1.0,
        attack_steps: int = 5,
    ) -> None:
        super().__init__()
        _check_share("kappa", kappa)
        _check_share("alpha", alpha)
        if attack_steps < 1:
            raise ValueError(f"`attack_steps` must be at least 1, got {attack_steps}.")
        LpBall(epsilon, p, frames=frames, scope=scope, low=low, high=high)
        self.epsilon, self.p, self.kappa, self.alpha = epsilon, p, kappa, alpha
        self.low, self.high, self.frames, self.scope = low, high, frames, scope
        self.method, self.attack_steps = method_named(method, TRAINING), attack_steps
        self._calls = 0

    def extra_repr(self) -> str:
        """Settings, for ``print(loss)``."""
        return (
            f"epsilon={self.epsilon}, p={self.p:g}, low={self.low}, high={self.high}, "
            f"scope={self.scope}, method={self.method}, kappa={self.kappa:g}, alpha={self.alpha:g}"
        )

    def forward(self, model: nn.Module, inputs: Inputs, target: Tensor) -> Tensor:
        """The loss, a scalar with gradients to every weight.

        Args:
            model: a classifier, or ``bound(model)``.
            inputs: what its forward takes.
            target: ``(B,)`` integer labels.

        Raises:
            ValueError, TypeError, UnsupportedModelError: as ``certify``.
        """
        return self.parts(model, inputs, target).total

    @as_written
    def parts(self, model: nn.Module, inputs: Inputs, target: Tensor) -> LossParts:
        """The loss with its terms; see ``forward``.

        Clean and attack terms run in the model's mode, the attack is searched and the bounds are
        computed in eval mode.
        """
        layer = bound(model)
        ball = LpBall(
            self.epsilon,
            self.p,
            frames=self.frames,
            scope=self.scope,
            low=self.low,
            high=self.high,
        )
        _check_share("kappa", self.kappa)
        case = layer.case(inputs, check=self._calls % _CHECK_EVERY == 0)
        self._calls += 1
        check_target(target, len(case.center), case.plan.classes)
        target = target.long()
        clean = worst = attacked = certified = case.value.new_zeros(())
        if self.kappa > 0:
            called = layer.model if isinstance(model, BoundModel) else model  # with its wrapper
            clean = cross_entropy(case.as_logits(_precise(called(*as_tuple(inputs)))), target)
        if self.kappa < 1 and self.alpha > 0:
            worst, certified = self._worst(layer.model, case, target, ball)
        if self.kappa < 1 and self.alpha < 1:
            attacked = self._attacked(layer.model, case, target, ball)
        robust = self.alpha * worst + (1 - self.alpha) * attacked
        total = self.kappa * clean + (1 - self.kappa) * robust
        return LossParts(total, clean.detach(), worst.detach(), attacked.detach(), certified)

    def _worst(
        self, model: nn.Module, case: Case, target: Tensor, ball: LpBall
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy on the worst-case logits, and the share that is certified."""
        with undisturbed(model):
            margins = margins_of(case.graph(ball), target, self.method, case.value)
        own = nn.functional.one_hot(target, margins.shape[1]).bool()
        worst = cross_entropy(-margins.masked_fill(own, 0), target)
        return worst, proved(margins.detach().amin(1)).float().mean()

    def _attacked(self, model: nn.Module, case: Case, target: Tensor, ball: LpBall) -> Tensor:
        """Cross entropy on the logits under attack."""
        with torch.no_grad(), undisturbed(model):
            found = search(case, target, ball, steps=self.attack_steps, restarts=1, seed=0)
        with full_precision(model):
            return cross_entropy(case.logits(found.moved), target)


def _precise(logits: Tensor) -> Tensor:
    """At least float32: the model may run in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"`{name}` must lie between 0 and 1, got {share}.")
