"""A root finder for many samples at once: where does the certified margin reach 0?

The margin falls smoothly with epsilon, from the clean margin at 0. Every sample keeps a bracket
``lower < upper`` (proved, not proved) and a parabola through what it has seen; the next epsilon
lies just beyond the parabola's root as seen from the nearer end, so that the far end of the
bracket jumps close to it.

B: batch.
"""

import math

import torch
from torch import Tensor

from popqorn_train.certificate import proved

_SMALLEST = 1e-7  # radii below this share of the largest count as 0
_TRIES = 60  # evaluations after which a sample keeps what it has


class Brackets:
    """One bracket a sample, in float64.

    Args:
        clean: ``(B,)`` margin at 0, positive where there is something to search.
        fall: ``(B,)`` how fast the margin falls at 0.
        cap: ``(B,)`` largest radius tried.
        guess: ``(B,)`` first epsilon.
        rtol: relative width at which a bracket is closed.
    """

    def __init__(
        self, clean: Tensor, fall: Tensor, cap: Tensor, guess: Tensor, rtol: float
    ) -> None:
        self.clean, self.fall, self.cap, self.rtol = clean, fall, cap, rtol
        self.lower, self.at_lower = torch.zeros_like(clean), clean.clone()
        unknown = torch.full_like(clean, math.nan)
        self.upper, self.at_upper = torch.full_like(clean, math.inf), unknown.clone()
        self.third, self.at_third = unknown.clone(), unknown.clone()
        guess = torch.where(guess.isfinite(), guess, cap / 100)
        self.next = torch.minimum(torch.maximum(guess, 10 * _SMALLEST * cap), cap)
        self.wrong = ~(clean > 0)
        self.evaluations = torch.zeros_like(clean, dtype=torch.long)

    def open(self) -> Tensor:
        """Indices of the samples that are not finished."""
        tight = self.upper <= self.lower * (1 + self.rtol)
        tiny = self.upper <= _SMALLEST * self.cap
        done = self.wrong | tight | tiny | (self.lower >= self.cap) | (self.evaluations >= _TRIES)
        return (~done).nonzero()[:, 0]

    def tell(self, chosen: Tensor, margin: Tensor) -> None:
        """Record margins at ``next`` and choose the next epsilons."""
        self.evaluations[chosen] += 1
        epsilon, good = self.next[chosen], proved(margin)
        margin = margin.nan_to_num(-1e30, -1e30, -1e30)
        for mask, ends, values in (
            (good, self.lower, self.at_lower),
            (~good, self.upper, self.at_upper),
        ):
            at = chosen[mask]
            known = ends[at].isfinite() & (ends[at] > 0)
            self.third[at] = torch.where(known, ends[at], self.third[at])
            self.at_third[at] = torch.where(known, values[at], self.at_third[at])
            ends[at], values[at] = epsilon[mask], margin[mask]
        self.next = torch.where(self.upper.isinf(), self._beyond(), self._between())
        self.next = torch.minimum(self.next, self.cap)

    def _parabola_from_zero(self, at: Tensor, margin: Tensor) -> Tensor:
        """Root of the parabola with the clean margin and its slope at 0, through one point."""
        bend = ((self.clean - self.fall * at - margin) / at**2).clamp(min=0)
        return 2 * self.clean / (self.fall + (self.fall**2 + 4 * bend * self.clean).sqrt())

    def _beyond(self) -> Tensor:
        """No upper end yet: extrapolate, between 1.2 and 4 times what is proved."""
        root = self._parabola_from_zero(self.lower, self.at_lower)
        return torch.clamp(root.nan_to_num(math.inf), self.lower * 1.2, self.lower * 4)

    def _between(self) -> Tensor:
        """Inside the bracket, aimed a little past the root at the end that is farther away."""
        lower, width = self.lower, self.upper - self.lower
        root = torch.where(self.lower > 0, lower + width * self._share(), self._first_root())
        far_below = root - lower > self.upper - root
        aimed = root * torch.where(far_below, 1 - 0.4 * self.rtol, 1 + 0.4 * self.rtol)
        stuck = self.evaluations % 6 == 5  # whatever the shape, halve now and then
        middle = torch.where(lower > 0, (lower * self.upper).sqrt(), self.upper / 16)
        usable = (aimed > lower) & (aimed < self.upper) & ~stuck
        return torch.where(usable, aimed, middle)

    def _first_root(self) -> Tensor:
        return self._parabola_from_zero(self.upper, self.at_upper)

    def _share(self) -> Tensor:
        """Where in the bracket, from 0 to 1, the parabola through three points is 0."""
        span = self.upper - self.lower
        chord = self.at_upper - self.at_lower
        outer = (self.at_third - self.at_upper) / (self.third - self.upper)
        bend = (outer - chord / span) / (self.third - self.lower) * span**2
        bend = torch.where(bend.isfinite(), bend, torch.zeros_like(bend))
        slope = chord - bend
        root = (slope**2 - 4 * bend * self.at_lower).clamp(min=0).sqrt()
        share = 2 * self.at_lower / (root - slope)
        return torch.where((share > 0) & (share < 1), share, -self.at_lower / chord)
