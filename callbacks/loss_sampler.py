"""What the certified losses of a module see at some steps, from all processes."""

import math
from collections.abc import Sequence

import torch

from popqorn_train.bounds.backward import Enclosure
from popqorn_train.callbacks.gather import all_values
from popqorn_train.callbacks.lightning_packages import Trainer
from popqorn_train.training.collapse import LossSample, merged, sampled
from popqorn_train.training.loss import CertifiedLoss
from popqorn_train.training.objective import LossParts, Prepared


class LossSampler:
    """Looks at every batch of a step, or at none.

    Args:
        every_n_steps: how often to look, in optimizer steps.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._losses: Sequence[CertifiedLoss] = ()
        self._samples: list[LossSample] = []
        self._step: int | None = None  # that is looked at

    def attach(self, losses: Sequence[CertifiedLoss]) -> None:
        """See what these losses see."""
        self._losses = losses

    def release(self) -> None:
        """Leave the losses alone."""
        self._look(False)
        self._losses, self._samples, self._step = (), [], None

    def begin(self, step: int) -> None:
        """A batch of a step starts: decide whether to look, in every process alike."""
        self._step = step if step % self.every_n_steps == 0 else None
        self._look(self._step is not None)

    def _look(self, wanted: bool) -> None:
        """Be shown what losses work out, or not: what nobody looks at may cost less."""
        for loss in self._losses:
            loss.observer = self._observe if wanted else None

    def ends(self, step: int) -> bool:
        """A batch ends, with so many steps done: whether one that was looked at is complete."""
        looked, self._step = self._step, None
        self._look(False)
        return looked is not None and step > looked

    def _observe(self, batch: Prepared, parts: LossParts, found: Enclosure | None) -> None:
        bound = math.nan if found is None else parts.bound.item()
        with torch.no_grad():
            self._samples.append(sampled(batch.eval_logits(), batch.target, bound, found))

    def together(self, trainer: Trainer, own: int) -> tuple[LossSample | None, int]:
        """What all processes saw, and the largest of a number that each of them has.

        Every process must call it, whatever happened to it before.
        """
        samples, self._samples = self._samples, []
        parts = all_values(trainer, (samples, own))
        return merged([seen for part, _ in parts for seen in part]), max(n for _, n in parts)
