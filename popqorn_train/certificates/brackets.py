"""A search for many samples at once: the largest epsilon whose certified margin is positive.

Every sample keeps a bracket ``lower < upper`` (proved, not proved) and the curve of its margin
(margin_curve.py). A proof at one epsilon holds for all smaller ones, but the bound jumps where
planes are chosen anew, and can be positive again above ``upper``. So the first rung of a ladder
(ladder.py) above the estimated root is tried, then those above it until the margin lies so far
below 0 that those of the method are not known to rise again, and with what this tells of the
curve, one epsilon just below the root. It is finished when the bracket is narrow, or when both the
curve through its ends and the chord between them reach 0 just above ``lower``.

Proofs by contradiction have no size, and end in a jump, near the epsilon at which the margin itself
lies about half as far below 0 as the clean one lies above: there, brackets are halved.

B: batch.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from popqorn_train.certificates.ladder import RATIO, REACH, Ladder
from popqorn_train.certificates.margin_curve import MarginCurve
from popqorn_train.certificates.margins import proved

_SMALLEST = 1e-7  # radii below this share of the largest count as 0
_TRIES = 60  # evaluations after which a sample keeps what it has
_FAILED = -1e30  # stands for a margin that is no number
_SHY = 0.4  # how far below the estimated root to look, in relative tolerances
_SURE = 0.5, 0.75  # width of a bracket up to the estimated root, likewise, which may be off: less
_KNOWN = 3  # so from that many evaluations on
_NARROW = 0.9  # width of a finished bracket, in relative tolerances: the rest is for rounding
_MUTE = 1e-4  # a proof by contradiction shows as a margin below this share of the clean one
_FARTHEST = 8  # from one epsilon to the next, as a factor, before one fails
_HALVINGS = 2  # of a bracket between two steps up or down
BY_CONTRADICTION = -0.5  # margin, in clean ones, down to which proofs by contradiction reach
_APART = 0.01  # from one epsilon to another, as a share, that tell together how a curve bends
_FELL = 0.95  # from one epsilon to a lower one that tells whether margins still change
_DOUBT = 5e-3  # of clean margins: how little below 0 another precision may prove what is asked for
_PATIENCE = 7  # evaluations after which every second one halves, whatever the curve


class Brackets:
    """One bracket per sample, in float64.

    Finished means ``lower >= (1 - rtol) epsilon`` for every epsilon that is proved below
    ``upper``, as far as margins follow their curve, or that is proved on a rung.

    Args:
        clean: ``(B,)`` margin at 0, positive where there is something to search.
        fall: ``(B,)`` how fast the margin falls at 0.
        cap: ``(B,)`` largest radius tried.
        guess: ``(B,)`` first epsilon.
        rtol: relative width of a finished bracket.
        bend: ``(B,)`` how the curve of a margin like this one bent, see ``MarginCurve.bend_at``;
            NaN where nothing is known.
        epsilons: rungs beside those of the ladder.
        graded: whether the size of every positive margin says how far the root is.
        monotone: whether no ball above one that is not proved can be.
        dip: a rung at which the margin is that far below 0, in clean margins, is the last one.

    Attributes:
        lower: ``(B,)`` proved; 0 where nothing is.
        bend: ``(B,)`` how the curve bends, as it was given or as margins told.
        doubtful: ``(B,)`` the largest of ``epsilons`` that was only just not proved; 0 for none.
    """

    def __init__(
        self,
        clean: Tensor,
        fall: Tensor,
        cap: Tensor,
        guess: Tensor,
        rtol: float,
        *,
        bend: Tensor | None = None,
        epsilons: Sequence[float] = (),
        graded: bool = True,
        monotone: bool = False,
        dip: float = 0.25,
    ) -> None:
        self.clean, self.fall, self.dip = clean, fall.clamp(min=1e-12), dip
        self.cap, self.rtol, self.graded, self.monotone = cap, rtol, graded, monotone
        self.lower, self.upper = torch.zeros_like(clean), torch.full_like(clean, math.inf)
        self.doubtful, self._asked = torch.zeros_like(clean), clean.new_tensor(epsilons)
        # Margins at the ends, and the newest one in between; NaN where they tell nothing.
        self.at_lower, self.at_upper = (torch.full_like(clean, math.nan) for _ in range(2))
        self.newest, self.at_newest = self.at_lower.clone(), self.at_lower.clone()
        self.root = torch.full_like(clean, math.nan)
        self._step = math.exp(-math.log1p(-_NARROW * rtol) * 2**_HALVINGS)
        self.step = torch.full_like(clean, 2.0 if graded else self._step)
        self.ladder = Ladder(clean, epsilons)
        self.bend = torch.full_like(clean, math.nan) if bend is None else bend
        guess = torch.where(guess.isfinite(), guess, cap / 100)
        if graded and not monotone:
            # A rung above the root is tried anyway, and one margin and the bend tell the root.
            guess = torch.where(self.bend.isfinite(), self.ladder.after(guess), guess)
        self.next = torch.minimum(torch.maximum(guess, 10 * _SMALLEST * cap), cap)
        self.wrong = ~(clean > 0)
        self.evaluations = torch.zeros_like(clean, dtype=torch.long)

    def open(self) -> Tensor:
        """Indices of the samples that are not finished."""
        tiny = self.upper <= _SMALLEST * self.cap
        done = self.wrong | tiny | (self.lower >= self.cap) | (self.evaluations >= _TRIES)
        finished = self._narrow() & self._gap().isinf() & self._at_top()
        return (~done & ~finished).nonzero()[:, 0]

    def _narrow(self) -> Tensor:
        """Whether nothing is left to find between the ends, ``(B,)``."""
        most = self.lower / (1 - _NARROW * self.rtol)
        narrow = self.upper <= most
        if not self.graded:
            return narrow
        chord = self.at_lower / (self.at_lower - self.at_upper) * (self.upper - self.lower)
        likely = torch.maximum(self.root, self.lower + chord)
        sure = torch.where(self.evaluations < _KNOWN, *_SURE) * self.rtol
        close = (self.root > self.lower) & (likely <= self.lower / (1 - sure))
        return narrow | close & (self.upper <= RATIO**2 * self.lower)

    def _gap(self) -> Tensor:
        """The rung above ``lower`` that is yet to be tried, ``(B,)``; infinite where none is."""
        rung = self.ladder.after(self.lower)
        tried = rung >= self.upper if self.monotone else self.ladder.tried(rung)
        return torch.where(tried | self._beyond(rung), math.inf, rung)

    def _at_top(self) -> Tensor:
        """Whether no rung above those that were tried is worth trying, ``(B,)``."""
        if self.monotone:
            return torch.ones_like(self.wrong)
        return self.ladder.ended | self._beyond(self.ladder.after(self.ladder.top))

    def _beyond(self, rung: Tensor) -> Tensor:
        root = torch.where(self.root < self.upper, self.root, self.lower)
        return (rung > self.cap) | (rung > REACH * torch.fmax(self.lower, root))

    def tell(self, chosen: Tensor, margin: Tensor) -> None:
        """Record margins at ``next`` and choose the next epsilons."""
        self.evaluations[chosen] += 1
        asked, at = torch.zeros_like(self.wrong), torch.full_like(self.clean, math.nan)
        asked[chosen], at[chosen] = True, margin.to(at)
        good = proved(at)
        inside = asked & (good | ~(self.next >= self.upper))
        # Far beyond the root the margin may hardly change: then its slope tells nothing.
        fell = self.next < _FELL * self.newest
        flat = (self.at_newest < 0) & (at < 0.95 * self.at_newest) & fell | ~at.isfinite()
        silent = ~at.isfinite() | good & (at < _MUTE * self.clean) & (not self.graded)
        at = torch.where(silent, math.nan, at)
        doubt = asked & ~good & (at > -_DOUBT * self.clean) & torch.isin(self.next, self._asked)
        self.doubtful = torch.where(doubt & (self.next > self.doubtful), self.next, self.doubtful)
        self._estimate(inside, at, good)
        self._climb(asked & ~good, at)
        self._move(asked, at, good)
        self.newest = torch.where(inside, self.next, self.newest)
        self.at_newest = torch.where(inside, at, self.at_newest)
        self.next = torch.where(asked, self._choose(inside & ~good & flat), self.next)

    def _estimate(self, inside: Tensor, at: Tensor, good: Tensor) -> None:
        """Where the curve through the newest margin and that at the other end reaches 0."""
        end, at_end = (
            torch.where(good, *ends)
            for ends in ((self.upper, self.lower), (self.at_upper, self.at_lower))
        )
        end = torch.where(at_end.isfinite(), end, self.newest)
        at_end = torch.where(at_end.isfinite(), at_end, self.at_newest)
        points = (self.next, at), (end, at_end)
        curve = MarginCurve.through(self.clean, self.fall, *points, self.bend)
        root = curve.reach(0.0 if self.graded else BY_CONTRADICTION)
        self.root = torch.where(inside & at.isfinite(), root, self.root)
        told = inside & at.isfinite() & at_end.isfinite() & ((end - self.next).abs() > _APART * end)
        self.bend = torch.where(told, curve.bend_at(self.next), self.bend)

    def _climb(self, failed: Tensor, at: Tensor) -> None:
        """Say where samples were not proved, and whether it is worth to go on above that."""
        ended = (at <= -self.dip * self.clean) | at.isnan()
        chosen = failed.nonzero()[:, 0]
        self.ladder.failed(chosen, self.next[chosen], ended[chosen])

    def _move(self, asked: Tensor, at: Tensor, good: Tensor) -> None:
        """Move the ends of brackets."""
        over = good & (self.next >= self.upper)
        down = asked & ~good & (self.next < self.upper)
        if not self.graded:
            again = ~self.newest.isnan() & (good == (self.newest == self.lower))
            step = torch.where(again, (self.step**2).clamp(max=4), self._step)
            self.step = torch.where(good | down, step, self.step)
        self.at_lower = torch.where(good, at, self.at_lower)
        self.lower = torch.where(good, self.next, self.lower)
        self.at_upper = torch.where(down, at, torch.where(over, math.nan, self.at_upper))
        self.upper = torch.where(down, self.next, torch.where(over, math.inf, self.upper))
        chosen = good.nonzero()[:, 0]
        self.ladder.proved(chosen, self.next[chosen])

    def _choose(self, blind: Tensor) -> Tensor:
        """The next epsilons, ``(B,)``."""
        blind = blind | (self.evaluations >= _PATIENCE) & (self.evaluations % 2 == 1)
        margin = 1.0 if self.graded else self.step
        usable = (self.root > self.lower * margin) & (self.root < self.upper / margin) & ~blind
        aim = torch.where(usable, self._near_root(), self._middle())
        top = self.ladder.after(self.ladder.top)
        if self.graded and not self.monotone:
            rung = self.ladder.after(torch.where(usable, self.root, self.lower))
            known = self.ladder.tried(rung)
            aim = torch.where(known & ~self._at_top(), top, aim)
            aim = torch.where(usable & ~known & (rung < self.upper), rung, aim)
        far = (self.lower > 0) & self.upper.isinf()
        aim = torch.where(far, torch.minimum(aim, self.lower * _FARTHEST), aim)
        gap = self._gap()
        aim = torch.where(self._narrow(), torch.where(gap.isinf(), top, gap), aim)
        return torch.minimum(aim, self.cap)

    def _near_root(self) -> Tensor:
        """A little below the root, so that it is proved, ``(B,)``."""
        if not self.graded:
            return self.root
        more, less = 1 + _SHY * self.rtol, 1 - _SHY * self.rtol
        # Where little is left below the root, a little more is to be refuted.
        near = self.root * less <= self.lower * (1 + _SHY / 4 * self.rtol)
        aim = torch.where(near, torch.maximum(self.root, self.lower) * more, self.root * less)
        middle = (self.lower * self.upper).sqrt()
        return torch.where((aim > self.lower) & (aim < self.upper), aim, middle)

    def _middle(self) -> Tensor:
        """Half the bracket, or a step from its one end, ``(B,)``."""
        both = (self.lower * self.upper).sqrt()
        down = self.upper / (4.0 if self.graded else self.step)
        both = both if self.graded else torch.maximum(both, down)
        one = torch.where(self.lower > 0, self.lower * self.step, down)
        return torch.where((self.lower > 0) & self.upper.isfinite(), both, one)
