"""Logarithms of mel energies of a raw wave, as a module to put before any recurrent network.

    y_t = A' x[frame t]                     A: pre-emphasis, window, real DFT
    E_tk = sum_j W_kj y_tj^2                W: triangular mel filters
    f_tk = log(E_tk / max|x|^2 + c_k)       c_k = q_k 10^(floor / 10)

then less the mean of each filter and over one deviation. All of it is part of the model that is
certified, so the perturbation is one of the raw wave. q_k is what noise of amplitude 1 puts into a
filter at most (relaxations/curvature.py): the floor is that of noise of ``floor`` dB.

B: batch, L: samples of a wave, T: frames, N: samples of a frame, K: filters.
"""

import math

import torch
from torch import Tensor, nn

from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.curvature import curvature_of

_NEAR_0 = 1e-20  # the square of a peak that counts as silence


class LogMel(nn.Module):
    """``(B, L)`` waves to ``(B, T, K)`` features; only whole frames count.

    A frame starts every ``step`` samples; one that would read beyond the end is left out, of a
    sample in a batch beyond its own length: see ``frames``. Multiples of a wave have the same
    features.

    Args:
        filters: K.
        rate: samples a second.
        size: N.
        step: from one frame to the next.
        low: lower end of the first filter, in Hz; the last one ends at half the rate.
        emphasis: share of the sample before that is taken off each sample of a frame.
        floor: in dB below the peak, of the noise that drowns in the logarithm.

    Raises:
        ValueError: an argument out of range.
    """

    weights: Tensor
    mel: Tensor
    bend: Tensor
    floor: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        filters: int = 10,
        rate: int = 8000,
        *,
        size: int = 256,
        step: int = 200,
        low: float = 60.0,
        emphasis: float = 0.97,
        floor: float = -30.0,
    ) -> None:
        super().__init__()
        if min(filters, rate, size, step) < 1 or not 0 <= low < rate / 2:
            raise ValueError(
                "`filters`, `rate`, `size` and `step` must be at least 1 and `low` in [0, rate / 2)"
                f", got {filters}, {rate}, {size}, {step} and {low}."
            )
        self.size, self.step = size, step
        weights, mel = _transform(size, emphasis), _filters(filters, rate, size, low)
        bend = curvature_of(weights, mel).box
        self.register_buffer("weights", weights.T.float())
        self.register_buffer("mel", mel.T.float())
        self.register_buffer("bend", bend.float())
        self.register_buffer("floor", (bend * 10 ** (floor / 10)).float())
        self.register_buffer("mean", torch.zeros(filters))
        self.register_buffer("deviation", torch.ones(()))

    def forward(self, wave: Tensor) -> Tensor:
        """Features of whole frames."""
        energies = (wave.unfold(1, self.size, self.step) @ self.weights).square() @ self.mel
        peak = wave.abs().amax(1)
        scale = (peak.square() + _NEAR_0)[:, None, None]
        return (torch.log(energies / scale + self.floor) - self.mean) / self.deviation

    @torch.no_grad()
    def ranges(self, wave: Tensor, epsilon: float) -> Bounds:
        """Ends of all features, ``(B, T, K)`` each, when samples move by a share of the peak.

        To train on: closed forms in the precision of the wave, that cost less than the graph and
        prove nothing. With E and its gradient g at the wave, ``delta = epsilon max|x|`` and the
        curvature q of a filter,

            E - delta |g|_1  <=  E'  <=  E + delta |g|_1 + delta^2 q,
            (sqrt(E) - delta sqrt(q))^2  <=  E'  <=  (sqrt(E) + delta sqrt(q))^2

        where the closer ones count, and the peak moves by at most delta.

        Args:
            wave: ``(B, L)``.
            epsilon: of the perturbation, over the peak of each wave; below 1.
        """
        peak = wave.abs().amax(1).clamp(min=_NEAR_0**0.5)
        y = (wave / peak[:, None]).unfold(1, self.size, self.step) @ self.weights
        energy, reach = y.square() @ self.mel, epsilon * self._slopes(y)
        root, move = energy.sqrt(), epsilon * self.bend.sqrt()
        low = torch.maximum(energy - reach, (root - move).relu().square()).relu()
        high = torch.minimum(energy + reach + move.square(), (root + move).square())
        ends = low / (1 + epsilon) ** 2, high / (1 - epsilon) ** 2
        return Bounds(*((torch.log(end + self.floor) - self.mean) / self.deviation for end in ends))

    def _slopes(self, y: Tensor) -> Tensor:
        """The l_1 norms of the gradients of all energies, ``(B, T, K)``, from the DFT ``y``."""
        found = []
        for weight in self.mel.T:
            used = weight.nonzero()[:, 0]
            gradient = (2 * y[..., used] * weight[used]) @ self.weights[:, used].T
            found.append(gradient.abs().sum(-1))
        return torch.stack(found, -1)

    def frames(self, lengths: Tensor) -> Tensor:
        """How many whole frames waves of these lengths have, ``(B,)``."""
        return (lengths - self.size) // self.step + 1

    @torch.no_grad()
    def standardise(self, waves: list[Tensor]) -> None:
        """Take the mean of each filter, and one deviation, from waves ``(L_s,)`` to train on."""
        self.mean.zero_()
        self.deviation.fill_(1.0)
        found = torch.cat([self(wave[None])[0] for wave in waves if len(wave) >= self.size])
        self.mean.copy_(found.mean(0))
        self.deviation.copy_(found.std(0).mean())


def _transform(size: int, emphasis: float) -> Tensor:
    """Real and imaginary parts ``(2 (N // 2 + 1), N)`` of the DFT of a windowed frame."""
    position = torch.arange(size, dtype=torch.float64)
    window = 0.54 - 0.46 * torch.cos(2 * math.pi * position / size)
    angle = 2 * math.pi * torch.outer(torch.arange(size // 2 + 1).double(), position) / size
    parts = torch.cat([angle.cos(), -angle.sin()]) * window / math.sqrt(size)
    before = torch.zeros_like(parts)
    before[:, :-1] = parts[:, 1:]  # sample i is taken off sample i + 1
    return parts - emphasis * before


def _filters(count: int, rate: int, size: int, low: float) -> Tensor:
    """Triangles ``(K, 2 (N // 2 + 1))`` of equal width in mel, never narrower than one bin."""
    ends = [2595 * math.log10(1 + hz / 700) for hz in (low, rate / 2)]
    mel = torch.linspace(ends[0], ends[1], count + 2, dtype=torch.float64)
    left, middle, right = (700 * (10 ** (mel / 2595) - 1)).unfold(0, 3, 1)[..., None].unbind(1)
    left = torch.minimum(left, middle - rate / size)
    right = torch.maximum(right, middle + rate / size)
    hz = torch.arange(size // 2 + 1) * rate / size
    rises, falls = (hz - left) / (middle - left), (right - hz) / (right - middle)
    return torch.minimum(rises, falls).clamp(min=0).repeat(1, 2)
