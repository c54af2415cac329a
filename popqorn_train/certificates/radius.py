"""The largest ball that is certified, by root finding on the margin.

All unfinished samples are evaluated in one batch, each at the epsilon its bracket asks for
(brackets.py); what is found is proved once more in float64.

B: batch, T: frames.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.bounds.memory import Chunks
from popqorn_train.bounds.methods import METHODS, TRAINING, Method, method_named
from popqorn_train.certificates.bound_model import BoundModel, Inputs, bound
from popqorn_train.certificates.brackets import Brackets, rate_of, root_of
from popqorn_train.certificates.certificate import Confirm, check_confirm
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.margins import proved
from popqorn_train.certificates.query import Query, largest_tried, make_query
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.perturbations.region import Scope

_BEYOND = 1.15  # where a tight method starts, in radii of the cheaper one


class Start(NamedTuple):
    """Where the search for radii begins that were found before, for other weights.

    While a network trains, clean margins change a lot from epoch to epoch, and how fast they fall
    near the input too, but much less by which rate they fall faster farther away (brackets.py).

    Attributes:
        radius: ``(B,)`` found before; 0 where nothing is known.
        rate: ``(B,)`` of the search that found it; NaN where nothing is known.
    """

    radius: Tensor
    rate: Tensor


class RadiusSearch(NamedTuple):
    """What a search found.

    Attributes:
        radius: ``(B,)`` largest epsilon proved; 0 where the clean prediction is wrong.
        capped: ``(B,)`` whether it ended at the largest radius tried.
        correct: ``(B,)`` whether the clean prediction is right.
        evaluations: ``(B,)`` margins computed for each sample, confirmation not counted.
        rate: ``(B,)`` per unit of epsilon, by which margins fall faster and faster; for ``Start``.
    """

    radius: Tensor
    capped: Tensor
    correct: Tensor
    evaluations: Tensor
    rate: Tensor

    @property
    def start(self) -> Start:
        """Where the next search begins, when the weights have changed."""
        return Start(self.radius, self.rate)


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
    start: Tensor | Start | None = None,
    max_bytes: int | None = None,
) -> RadiusSearch:
    """``certified_radius``, and how it was found.

    ``ball`` says what may move; its epsilon is what is searched, so the one given does not matter.
    Every other argument is that of ``certified_radius``.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certified_radius``.
    """
    check_search(rtol, max_radius, confirm)
    if not isinstance(ball, LpBall):
        raise TypeError(
            f"`ball` must be an LpBall, whose size is searched, got {type(ball).__name__}."
        )
    layer, chunks = bound(model), Chunks(max_bytes)
    ball, method = replace(ball, epsilon=0.0), method_named(method)
    if method.cheaper is not None and start is None:
        easy = search_radius(
            layer,
            inputs,
            target,
            ball,
            method=method.cheaper,
            max_radius=max_radius,
            rtol=rtol,
            confirm=None,
            against=against,
            max_bytes=max_bytes,
        )
        start = _BEYOND * easy.radius
    with torch.no_grad(), undisturbed(layer.model):
        query = make_query(
            layer, inputs, target, against=against, ball=ball, method=method, chunks=chunks
        )
        twin = in_float64(query, layer, inputs) if confirm == "float64" else None
        return answer(query, twin, max_radius=max_radius, rtol=rtol, start=start)


def in_float64(query: Query, layer: BoundModel, inputs: Inputs) -> Query | None:
    """The same question in float64; None where it is already."""
    if query.instance.value.dtype == torch.float64:
        return None
    return replace(query, instance=layer.instance(inputs, torch.float64))


def answer(
    query: Query,
    twin: Query | None,
    *,
    max_radius: float | None,
    rtol: float,
    start: Tensor | Start | None = None,
) -> RadiusSearch:
    """Find the radii, and confirm them with the twin where there is one."""
    clean, fall = query.clean()
    cap = largest_tried(query.instance, query.ball, max_radius)
    cold = 0.3 * clean / fall.clamp(min=1e-12)
    guess = cold if start is None else _warm(start, cold, rtol, clean, fall)
    state = Brackets(clean, fall, cap, guess, rtol)
    while len(chosen := state.open()):
        state.tell(chosen, query.margin(chosen, state.next[chosen]))
    radius = state.lower if twin is None else _confirmed(twin, state.lower, rtol)
    rounded = _rounded_down(radius, query.instance.value.dtype)
    rate = torch.where(radius > 0, rate_of(clean, state.fall, radius), math.nan)
    return RadiusSearch(rounded, radius >= cap, ~state.wrong, state.evaluations, rate)


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


def _warm(start: Tensor | Start, cold: Tensor, rtol: float, clean: Tensor, fall: Tensor) -> Tensor:
    """First epsilons: where margins reach 0 at the rate of the last search, or its radii."""
    start = start if isinstance(start, Start) else Start(start, torch.full_like(cold, math.nan))
    for value in start:
        if not isinstance(value, Tensor) or value.shape != cold.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"`start` must hold radii of shape {tuple(cold.shape)}, got {found}.")
    radius, rate = (value.to(cold) for value in start)
    root = root_of(clean, fall.clamp(min=1e-12), rate)
    guess = torch.where(root.isfinite() & (root > 0), root, radius)
    return torch.where((radius > 0) & radius.isfinite(), guess * (1 - 0.4 * rtol), cold)


def _confirmed(query: Query, radius: Tensor, rtol: float) -> Tensor:
    """Shrink what float64 does not prove, by more and more, down to 0."""
    todo = (radius > 0).nonzero()[:, 0]
    for attempt in range(24):
        if not len(todo):
            break
        todo = todo[~proved(query.margin(todo, radius[todo]))]
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
    start: Tensor | Start | None = None,
    max_bytes: int | None = None,
    differentiable: bool = False,
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
        rtol: relative precision. The answer is proved; either (1 + rtol) times it is not, or the
            last two estimates of where the margin reaches 0 agree on less than that. Where
            float64 does not prove what float32 did, the answer is lowered further.
        confirm: ``"float64"`` proves every radius again in float64; None leaves the precision of
            the weights (at least float32).
        against: ``(B,)`` one class to be kept apart from, instead of all (the paper's targeted
            radius).
        start: ``(B,)`` where to begin, for example the radii of the last epoch; or the ``start`` of
            what ``search_radius`` found then, from which fewer margins are computed.
        max_bytes: memory aimed at, see ``certify``.
        differentiable: give the result its gradient in the weights, and in the inputs where they
            ask for one: dr = -dm / (dm/dr) for the margin m, and 0 where the radius is 0 or
            capped. One more evaluation, of all samples at once. As in ``CertifiedLoss``, the
            name of a method then stands for its closed forms.

    Returns:
        ``(B,)`` in the units of the input; 0 where the clean prediction is wrong.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certify``, and for a ``rtol``,
            ``max_radius``, ``against`` or ``start`` out of range.

    Source:
        Ko et al., "POPQORN", ICML 2019, algorithm 1, with a root finder for its bisection.
    """
    ball = LpBall(0.0, p, frames=frames, scope=scope, low=low, high=high)
    layer = bound(model)
    method = method_named(method, TRAINING if differentiable else METHODS)
    found = search_radius(
        layer,
        inputs,
        target,
        ball,
        method=method,
        max_radius=max_radius,
        rtol=rtol,
        confirm=confirm,
        against=against,
        start=start,
        max_bytes=max_bytes,
    )
    if not differentiable:
        return found.radius
    with torch.enable_grad(), undisturbed(layer.model):
        query = make_query(
            layer,
            inputs,
            target,
            against=against,
            ball=ball,
            method=method,
            chunks=Chunks(max_bytes),
        )
        return with_gradient(query, found)


def with_gradient(query: Query, found: RadiusSearch) -> Tensor:
    """The radii, with the gradient of the implicit function margin(radius) = 0."""
    chosen = ((found.radius > 0) & ~found.capped).nonzero()[:, 0]
    radius = found.radius.clone()
    if not len(chosen):
        return radius
    epsilon = radius[chosen].requires_grad_()
    margin = query.margin_with_gradient(chosen, epsilon)
    (slope,) = torch.autograd.grad(margin.sum(), epsilon, retain_graph=True)
    falls = (slope < 0) & slope.isfinite()
    share = torch.where(falls, -1 / slope, torch.zeros_like(slope))
    # Worth 0: it only carries the gradient.
    return radius.index_add(0, chosen, share * (margin - margin.detach()))
