"""Noise of a level below the peak of every sample, as audio is disturbed.

B: batch, T: frames, N: features of a frame.
"""

from dataclasses import dataclass, field

from torch import Tensor

from popqorn_train.perturbations.arguments import cut
from popqorn_train.perturbations.box import Box, Edge


@dataclass(frozen=True, eq=False)
class PeakBox(Box):
    """Every entry moves by at most a share of the greatest absolute value of its sample.

    In dB below the peak, that share is ``10 ** (dB / 20)``: 0.001 at -60 dB. A search for the
    largest box certifies shares, of every sample by its own peak, which is that of the input as
    passed, padding included. Like ``LpBall`` with ``p=inf`` otherwise.

    Attributes:
        share: of the peak, from 0 to 1; a float or ``(B,)``.
        frames: mask of the frames that move, see ``Box``.
        features: mask of the features that move, likewise.

    Raises:
        TypeError, ValueError: as ``Box``.
    """

    lower: Edge = field(default=-1.0, init=False, repr=False)
    upper: Edge = field(default=1.0, init=False, repr=False)

    @property
    def ends(self) -> tuple[float | Tensor, float | Tensor]:
        """No input is outside."""
        return -float("inf"), float("inf")

    def _rooms(self, center: Tensor, bounded: Tensor | None) -> tuple[Tensor, Tensor]:
        peak = center.abs().amax((1, 2), keepdim=True).expand_as(center)
        return peak, peak

    def pick(self, chosen: Tensor, batch: int) -> "PeakBox":
        """The box of some samples of a batch."""
        frames, features = (cut(mask, chosen, batch, 2) for mask in self.masks)
        return PeakBox(cut(self.share, chosen, batch, 1), frames=frames, features=features)
