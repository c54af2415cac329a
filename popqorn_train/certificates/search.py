"""How radii are found: the search on a prepared question, and its proof in float64, or as deployed.

All unfinished samples are evaluated in one batch, each at the epsilon its bracket asks for
(brackets.py). What is found is proved once more in float64; what float64 refuses is searched again
there. Proofs by contradiction end in a jump of the margin, which lies elsewhere in float64: on a
CPU they are searched in float64 alone, as ``certify`` works there.

B: batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.brackets import BY_CONTRADICTION, Brackets
from popqorn_train.certificates.deployed import as_deployed
from popqorn_train.certificates.inputs import Inputs
from popqorn_train.certificates.margin_curve import MarginCurve, rate_of, root_of
from popqorn_train.certificates.margins import Witness, proved
from popqorn_train.certificates.query import Query, largest_tried
from popqorn_train.certificates.rounding import rounded_down, rungs_of
from popqorn_train.display import SHOWN, html_table

_SHARE = 0.12  # of the radius of a margin that falls as at 0: where a search begins from nothing
_SCOUTED = 3  # margins of a cheaper method at most, before those of a costly one
_LITTLE = 0.08  # of a tolerance: what a search leaves for rounding, less what it is rounded by
_SCOUTED_TO = 0.1  # how close, in logarithms, the last of them is to what it tells

Decided = Callable[[float], Any]  # is told how many samples are decided


class Start(NamedTuple):
    """Where the search for radii begins that were found before, for other weights.

    While a network trains, clean margins change a lot from epoch to epoch, and how fast they fall
    near the input too, but much less by which rate they fall faster farther away (brackets.py).

    Attributes:
        radius: ``(B,)`` found before; 0 where nothing is known.
        rate: ``(B,)`` of the search that found it; NaN where nothing is known.
        bend: likewise; None where nothing is known of any sample.
    """

    radius: Tensor
    rate: Tensor
    bend: Tensor | None = None

    def of(self, chosen: Tensor) -> "Start":
        """That of some samples, by indices ``(b,)``."""
        bend = None if self.bend is None else self.bend[chosen]
        return Start(self.radius[chosen], self.rate[chosen], bend)


class RadiusSearch(NamedTuple):
    """What a search found.

    Attributes:
        radius: ``(B,)`` largest epsilon proved; 0 where the clean prediction is wrong.
        capped: ``(B,)`` whether it ended at the largest radius tried.
        correct: ``(B,)`` whether the clean prediction is right.
        evaluations: ``(B,)`` margins computed for each sample, those of cheaper methods counted
            too, confirmation not.
        rate: ``(B,)`` per unit of epsilon, by which margins fall faster and faster; for ``Start``.
        errors: samples that cannot be asked about (NaN or infinity in what the model reads, or a
            NaN logit), and what is wrong with each; their radius is NaN.
        bend: ``(B,)`` how the curve of the margin bends at the radius (margin_curve.py), likewise
            for ``Start``.
    """

    radius: Tensor
    capped: Tensor
    correct: Tensor
    evaluations: Tensor
    rate: Tensor
    errors: Mapping[int, str] = MappingProxyType({})
    bend: Tensor | None = None

    @property
    def start(self) -> Start:
        """Where the next search begins, when the weights have changed."""
        return Start(self.radius, self.rate, self.bend)

    def __repr__(self) -> str:
        right = self.radius[self.correct]
        median = f", median radius of these {right.median():.4g}" if len(right) else ""
        wrong = f", {len(self.errors)} in error" if self.errors else ""
        count = f"{len(right)} of {len(self.radius)} predicted right"
        return f"RadiusSearch({count}{median}{wrong})"

    def _repr_html_(self) -> str:
        names = ("radius", "capped", "correct", "evaluations")
        columns = [getattr(self, name).tolist() for name in names]
        rows = [
            (at, *values, self.errors.get(at, ""))
            for at, values in enumerate(zip(*columns, strict=True))
        ]
        return html_table(("sample", *names, "error"), rows[:SHOWN], repr(self))

    def __reduce__(self) -> tuple[Any, ...]:  # errors are read-only, which pickle cannot keep
        return RadiusSearch, (*self[:-2], dict(self.errors), self.bend)


# What torch.save keeps of a search, torch.load reads without being told to trust it.
torch.serialization.add_safe_globals([RadiusSearch, Start])


def twin_of(query: Query, layer: BoundModel, inputs: Inputs, confirm: str | None) -> Query | None:
    """The question that confirms the answers to another one.

    Args:
        query: the other one.
        layer: the model.
        inputs: of the model.
        confirm: ``"float64"``: the same in float64, none where it is already; ``"deployed"``: of
            the network as it is computed; None for none.

    Raises:
        UnsupportedModelError: see ``as_deployed``.
    """
    if confirm is None or (confirm, query.instance.value.dtype) == ("float64", torch.float64):
        return None
    exact = layer.instance(inputs, torch.float64)._replace(free=query.instance.free)
    instance = as_deployed(exact, layer) if confirm == "deployed" else exact
    return replace(query, instance=instance)


def witnessed(query: Query, twin: Query | None, witness: Witness) -> tuple[Query, Query | None]:
    """Show a witness the graphs of the last question asked: the float64 one, if there is one."""
    if twin is None:
        return replace(query, witness=witness), None
    return query, replace(twin, witness=witness)


def answer(
    query: Query,
    twin: Query | None,
    *,
    max_radius: float | Tensor | None,
    rtol: float,
    start: Tensor | Start | None = None,
    epsilons: Sequence[float] = (),
    decided: Decided | None = None,
) -> RadiusSearch:
    """Find the radii, and confirm them with the twin where there is one.

    Args:
        query: what is asked.
        twin: see ``twin_of``.
        max_radius: see ``certified_radius``, as for ``rtol`` and ``epsilons``; or ``(B,)``.
        rtol: relative precision.
        start: where to begin.
        epsilons: where certified samples are counted.
        decided: told how many samples are decided, whenever margins were computed.
    """
    dtype, scout = query.instance.value.dtype, query.scout
    if twin is not None and not query.method.graded and query.target.device.type == "cpu":
        # Float64 jumps elsewhere; on a CPU it alone costs less than to look at both.
        query, twin = twin, None
    rungs, max_radius = rungs_of(epsilons, max_radius, dtype)
    clean, fall = query.clean()
    cap = largest_tried(query.instance, query.ball, max_radius)
    cold = _SHARE * clean / fall.clamp(min=1e-12)
    guess, bend = _warm(start, cold, rtol, clean, fall)
    evaluations = torch.zeros_like(query.target)
    if scout is not None:
        guess, evaluations = _scouted(scout, clean, fall, cap, guess)
    searching = _Searching(fall, cap, rtol, rungs, decided)
    state = searching.brackets(query, clean, guess, bend)
    radius = state.lower if twin is None else searching.confirmed(twin, clean, state)
    rounded = rounded_down(radius, dtype)
    rate = torch.where(radius > 0, rate_of(clean, state.fall, radius), math.nan)
    answers = rounded, radius >= cap, ~state.wrong, evaluations + state.evaluations, rate
    return RadiusSearch(*answers, bend=torch.where(radius > 0, state.bend, math.nan))


class _Searching(NamedTuple):
    """What the searches of a question and of its twin have in common.

    Attributes:
        fall: ``(B,)`` how fast margins fall at first.
        cap: ``(B,)`` largest radii tried.
        rtol: relative precision.
        rungs: epsilons that are tried where they matter.
        decided: told how many samples are decided.
    """

    fall: Tensor
    cap: Tensor
    rtol: float
    rungs: Sequence[float]
    decided: Decided | None

    def brackets(
        self, query: Query, clean: Tensor, guess: Tensor, bend: Tensor | None = None
    ) -> Brackets:
        """Brackets around the radii of samples with positive clean margins."""
        method = query.method
        state = Brackets(
            clean,
            self.fall,
            self.cap,
            guess,
            self.rtol,
            bend=bend,
            epsilons=self.rungs,
            graded=method.graded,
            monotone=method.monotone,
            dip=method.dip,
        )
        while len(chosen := state.open()):
            if self.decided is not None:
                self.decided(len(clean) - len(chosen))
            state.tell(chosen, query.margin(chosen, state.next[chosen]))
        return state

    def confirmed(self, twin: Query, clean: Tensor, state: Brackets) -> Tensor:
        """Radii that the twin proves; what it refuses it searches itself, from a little below."""
        more = _proved_at(twin, state.doubtful, state.doubtful > state.lower)
        radius = torch.where(more, state.doubtful, state.lower)
        found = radius > 0
        refused = found & ~_proved_at(twin, radius, found)
        below = _little_below(radius, self.rtol, self.rungs)
        mended = refused & _proved_at(twin, below, refused)
        radius, refused = torch.where(mended, below, radius), refused & ~mended
        if not refused.any():
            return radius
        guess = radius * (1 - self.rtol)
        exact = self.brackets(twin, torch.where(refused, clean, 0.0), guess)
        return torch.where(refused, exact.lower, radius)


def _scouted(
    query: Query, clean: Tensor, fall: Tensor, cap: Tensor, guess: Tensor
) -> tuple[Tensor, Tensor]:
    """Where proofs by contradiction may end, as margins of a cheaper method tell.

    Returns:
        Epsilons ``(B,)``, and how many margins were computed, ``(B,)``.
    """
    epsilon = torch.where(guess.isfinite() & (guess > 0), guess, cap / 100).minimum(cap)
    unknown, evaluations = torch.full_like(epsilon, math.nan), torch.zeros_like(query.target)
    last, left, fall = (epsilon, unknown), clean > 0, fall.clamp(min=1e-12)
    while left.any() and evaluations.max() < _SCOUTED:
        chosen, margin = left.nonzero()[:, 0], unknown.clone()
        margin[chosen] = query.margin(chosen, epsilon[chosen])
        evaluations += left
        newest = (epsilon, torch.where(margin.isfinite(), margin, math.nan))
        goal = MarginCurve.through(clean, fall, newest, last).reach(BY_CONTRADICTION).minimum(cap)
        goal = torch.where(goal.isfinite(), goal, epsilon)
        left = left & ((goal / epsilon).log().abs() > _SCOUTED_TO)
        last, epsilon = newest, goal
    return epsilon, evaluations


def _proved_at(query: Query, epsilon: Tensor, asked: Tensor) -> Tensor:
    """Whether samples are asked about and proved, each at its epsilon, ``(B,)``."""
    chosen, answers = asked.nonzero()[:, 0], torch.zeros_like(asked)
    if len(chosen):
        answers[chosen] = proved(query.margin(chosen, epsilon[chosen]))
    return answers


def _little_below(radius: Tensor, rtol: float, rungs: Sequence[float]) -> Tensor:
    """Epsilons within the tolerance that float64 proves where it only just refuses radii, ``(B,)``.

    None of the caller's epsilons lies between.
    """
    below = radius * (1 - _LITTLE * rtol)
    for rung in rungs:
        below = torch.where((below < rung) & (rung < radius), rung, below)
    return below


def _warm(
    start: Tensor | Start | None, cold: Tensor, rtol: float, clean: Tensor, fall: Tensor
) -> tuple[Tensor, Tensor | None]:
    """First epsilons: where margins reach 0 at the rate of the last search, or its radii.

    Returns:
        They, ``(B,)``, and how curves bend, where that is known.
    """
    if start is None:
        return cold, None
    start = start if isinstance(start, Start) else Start(start, torch.full_like(cold, math.nan))
    for value in start[:2] if start.bend is None else start:
        if not isinstance(value, Tensor) or value.shape != cold.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"`start` must hold radii of shape {tuple(cold.shape)}, got {found}.")
    radius, rate = (value.to(cold) for value in start[:2])
    known = (radius > 0) & radius.isfinite()
    root = root_of(clean, fall.clamp(min=1e-12), rate)
    guess = torch.where(root.isfinite() & (root > 0), root, radius)
    bend = None if start.bend is None else torch.where(known, start.bend.to(cold), math.nan)
    return torch.where(known, guess * (1 - 0.4 * rtol), cold), bend
