"""A certified loss on raw waves, by closed forms for the front end instead of its graph.

Every sample of a wave moves by epsilon times its peak; ``LogMel.ranges`` says in which box the
features then lie, and a ``CertifiedLoss`` on that box trains what reads them. A step costs a
tenth of one through the graph, which certificates still go through.
"""

from typing import Any

from torch import Tensor, nn

from popqorn_train.certificates.inputs import Inputs, as_tuple
from popqorn_train.perturbations.box import Box, Perturbation
from popqorn_train.perturbations.substitutions import Substitutions
from popqorn_train.recipes.networks import SpeechNet
from popqorn_train.training.loss import CertifiedLoss
from popqorn_train.training.objective import LossParts


class WaveLoss(CertifiedLoss):
    """Certified loss of a ``SpeechNet`` by intervals; its inputs are ``(waves, lengths)``.

    Args:
        epsilon: how far every sample moves, over the peak of the wave: ``10 ** (dB / 20)``.
        kappa: weight of the clean term.
        signal: see ``CertifiedLoss``.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, epsilon: float, *, kappa: float = 0.0, signal: float = 0.0) -> None:
        self._ends: Box | None = None
        super().__init__(epsilon, kappa=kappa, signal=signal)

    def ball(self, share: float = 1.0) -> Perturbation | Substitutions:
        """The box of the features now; before the first batch a ball of the wave."""
        return super().ball(share) if self._ends is None else self._ends.sized(share)

    def parts(self, model: nn.Module, inputs: Inputs, target: Tensor) -> LossParts:
        """See ``Objective``.

        Raises:
            TypeError: a model that is no ``SpeechNet``.
        """
        if not isinstance(model, SpeechNet):
            raise TypeError(f"`model` must be a SpeechNet, got {type(model).__name__}.")
        wave, lengths = _of(as_tuple(inputs))
        features = model.front(wave)
        lower, upper = model.front.ranges(wave, self.epsilon)
        # Rounding must not leave the features outside.
        self._ends = Box(lower.minimum(features), upper.maximum(features))
        frames = model.front.frames(lengths)
        return super().parts(model.reader, (features, frames), target)


def _of(inputs: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Waves and their lengths."""
    wave, lengths = inputs
    return wave, lengths
