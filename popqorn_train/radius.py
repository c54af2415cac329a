"""The largest ball that is certified, by root finding on the margin.

All unfinished samples are evaluated in one batch, each at the epsilon its bracket asks for
(brackets.py); what is found is proved once more in float64.

B: batch, T: frames.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.attack import margin_of
from popqorn_train.bound import BoundModel, Inputs, bound
from popqorn_train.brackets import Brackets
from popqorn_train.case import Case, undisturbed
from popqorn_train.certificate import (
    Confirm,
    check_confirm,
    check_target,
    least,
    margins_of,
    proved,
)
from popqorn_train.methods import Method, method_named
from popqorn_train.perturbation import LpBall
from popqorn_train.region import Region, Scope, dual_norm

_BEYOND = 1.15  # where a tight method starts, in radii of the cheaper one
_UNCLIPPED = 10.0  # largest radius tried without a domain, in norms of the input


class RadiusSearch(NamedTuple):
    """What a search found.

    Attributes:
        radius: ``(B,)`` largest epsilon proved; 0 where the clean prediction is wrong.
        capped: ``(B,)`` whether it ended at the largest radius tried.
        correct: ``(B,)`` whether the clean prediction is right.
        evaluations: ``(B,)`` margins computed for each sample, confirmation not counted.
    """

    radius: Tensor
    capped: Tensor
    correct: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class _Question:
    """What a search evaluates: margins of some samples at some epsilons."""

    case: Case
    target: Tensor
    against: Tensor | None
    ball: LpBall
    method: Method

    def margin(self, chosen: Tensor, epsilon: Tensor) -> Tensor:
        """Certified margins ``(b,)`` of the chosen samples at their epsilons."""
        ball = replace(self.ball.pick(chosen, len(self.target)), epsilon=epsilon)
        case = self.case.pick(chosen)
        margins = margins_of(case.graph(ball), self.target[chosen], self.method, case.value)
        return self._decisive(margins, chosen).double()

    def _decisive(self, margins: Tensor, chosen: Tensor) -> Tensor:
        if self.against is None:
            return least(margins)
        return margins.gather(1, self.against[chosen][:, None])[:, 0]

    def clean(self) -> tuple[Tensor, Tensor]:
        """Clean margins, and how fast they can fall at first: the dual norm of the gradient."""
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            x = self.case.center.detach().requires_grad_()
            logits = self.case.logits(x)
            if self.against is None:
                margin = margin_of(logits, self.target)
            else:
                pair = torch.stack([self.target, self.against], 1)
                margin = logits.gather(1, pair) @ logits.new_tensor([1.0, -1.0])
            (gradient,) = torch.autograd.grad(margin.sum(), x)
        region = self.ball.around(self.case.center)
        gradient = gradient * region.moved[..., None]
        if region.scope == "sequence":
            gradient = gradient.flatten(1)[:, None]
        return margin.detach().double(), dual_norm(gradient, region.p).sum(1).double()


def search_radius(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    ball: LpBall,
    *,
    method: str | Method = "popqorn",
    max_radius: float | None = None,
    rtol: float = 1e-3,
    confirm: Confirm = "float64",
    against: Tensor | None = None,
    start: Tensor | None = None,
) -> RadiusSearch:
    """``certified_radius``, and how it was found.

    ``ball`` says what may move; its epsilon is what is searched, so the one given does not matter.
    Every other argument is that of ``certified_radius``.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certified_radius``.
    """
    check_search(rtol, max_radius, confirm)
    method = method_named(method)
    if method.cheaper is not None and start is None:
        easy = search_radius(
            model,
            inputs,
            target,
            ball,
            method=method.cheaper,
            max_radius=max_radius,
            rtol=rtol,
            confirm=None,
            against=against,
        )
        start = _BEYOND * easy.radius
    layer = bound(model)
    ball = replace(ball, epsilon=0.0)
    with torch.no_grad(), undisturbed(layer.model):
        question = _question(layer, inputs, target, against, ball, method)
        clean, fall = question.clean()
        cap = _largest(question.case, ball, max_radius)
        cold = 0.4 * clean / fall.clamp(min=1e-12)
        guess = cold if start is None else _warm(start, cold, rtol)
        state = Brackets(clean, fall, cap, guess, rtol)
        while len(chosen := state.open()):
            state.tell(chosen, question.margin(chosen, state.next[chosen]))
        radius, dtype = state.lower, question.case.value.dtype
        if confirm == "float64" and dtype != torch.float64:
            case = layer.case(inputs, torch.float64)
            radius = _confirmed(replace(question, case=case), radius, rtol)
    capped = radius >= cap
    return RadiusSearch(_rounded_down(radius, dtype), capped, ~state.wrong, state.evaluations)


def check_search(rtol: float, max_radius: float | None, confirm: str | None) -> None:
    """Refuse settings of a search that are out of range.

    Raises:
        ValueError: naming the argument.
    """
    check_confirm(confirm)
    if not isinstance(rtol, int | float) or not 0 < rtol < 1:
        raise ValueError(f"`rtol` must be a number strictly between 0 and 1, got {rtol!r}.")
    given = max_radius is not None
    if given and (not isinstance(max_radius, int | float) or not 0 < max_radius < math.inf):
        raise ValueError(f"`max_radius` must be a positive number, got {max_radius!r}.")


def _question(
    layer: BoundModel,
    inputs: Inputs,
    target: Tensor,
    against: Tensor | None,
    ball: LpBall,
    method: Method,
) -> _Question:
    case = layer.case(inputs)
    device = case.center.device
    ball.around(case.center)
    check_target(target, len(case.center), case.plan.classes)
    if against is not None:
        check_target(against, len(case.center), case.plan.classes, "against")
        if (against == target).any():
            raise ValueError("`against` must name another class than `target` for every sample.")
        against = against.long().to(device)
    return _Question(case, target.long().to(device), against, ball, method)


def _largest(case: Case, ball: LpBall, max_radius: float | None) -> Tensor:
    """Largest radius tried, ``(B,)``: what was asked, the width of the domain, or 10 inputs."""
    size = len(case.center)
    if max_radius is not None:
        return case.center.new_full((size,), max_radius, dtype=torch.float64)
    region = ball.around(case.center)
    if ball.low is not None and ball.high is not None:
        low, high = (
            torch.as_tensor(edge, device=case.center.device) for edge in (ball.low, ball.high)
        )
        return _norms((high - low).to(case.center).expand_as(case.center), region)
    return _UNCLIPPED * _norms(case.center, region).clamp(min=0.1)


def _norms(x: Tensor, region: Region) -> Tensor:
    """Greatest p-norm of a moved frame, or of the moved sequence, ``(B,)``."""
    x = (x * region.moved[..., None]).double()
    x = x.flatten(1)[:, None] if region.scope == "sequence" else x
    return torch.linalg.vector_norm(x, region.p, dim=-1).amax(1)


def _warm(start: Tensor, cold: Tensor, rtol: float) -> Tensor:
    if not isinstance(start, Tensor) or start.shape != cold.shape:
        found = tuple(start.shape) if isinstance(start, Tensor) else type(start).__name__
        raise ValueError(f"`start` must be a tensor of shape {tuple(cold.shape)}, got {found}.")
    start = start.to(cold)
    return torch.where((start > 0) & start.isfinite(), start * (1 - 0.4 * rtol), cold)


def _confirmed(question: _Question, radius: Tensor, rtol: float) -> Tensor:
    """Shrink what float64 does not prove, by more and more, down to 0."""
    todo = (radius > 0).nonzero()[:, 0]
    for attempt in range(24):
        if not len(todo):
            break
        todo = todo[~proved(question.margin(todo, radius[todo]))]
        radius[todo] *= max(0.0, 1 - rtol * 2**attempt)
    radius[todo] = 0
    return radius


def _rounded_down(radius: Tensor, dtype: torch.dtype) -> Tensor:
    """In the precision of the inputs, never above what was proved."""
    rounded = radius.to(dtype)
    below = torch.nextafter(rounded, torch.zeros_like(rounded))
    return torch.where(rounded.double() > radius, below, rounded)


def certified_radius(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    p: float = math.inf,
    method: str | Method = "popqorn",
    frames: Tensor | None = None,
    scope: Scope = "frame",
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    max_radius: float | None = None,
    rtol: float = 1e-3,
    confirm: Confirm = "float64",
    against: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Largest epsilon for which no input of the ball changes the class, as far as is proved.

    A radius proves every smaller epsilon too, so curves of certified accuracy come from radii.

    Args:
        model: a classifier, or ``bound(model)``.
        inputs: what its forward takes.
        target: ``(B,)`` integer labels.
        p: norm of the ball.
        method: a name, see methods.py, or an object.
        frames: see ``LpBall``; so are ``scope``, ``low`` and ``high``.
        scope: one ball a frame, or one for the sequence.
        low: least value of an input.
        high: greatest value of an input.
        max_radius: largest radius tried; None takes the p-norm of the domain's width where both
            ends are given, else 10 times the largest p-norm of a moved frame (at least 1).
        rtol: relative precision of the answer.
        confirm: ``"float64"`` proves every radius again in float64; None leaves the precision of
            the weights (at least float32).
        against: ``(B,)`` one class to be kept apart from, instead of all (the paper's targeted
            radius).
        start: ``(B,)`` where to begin, for example the radii of the last epoch.

    Returns:
        ``(B,)`` in the units of the input; 0 where the clean prediction is wrong.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certify``, and for a ``rtol``,
            ``max_radius``, ``against`` or ``start`` out of range.

    Source:
        Ko et al., "POPQORN", ICML 2019, algorithm 1, with a root finder for its bisection.
    """
    ball = LpBall(0.0, p, frames=frames, scope=scope, low=low, high=high)
    found = search_radius(
        model,
        inputs,
        target,
        ball,
        method=method,
        max_radius=max_radius,
        rtol=rtol,
        confirm=confirm,
        against=against,
        start=start,
    )
    return found.radius
