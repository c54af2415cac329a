"""The largest ball that is certified, and its gradient.

A method without monotone margins can succeed again above an epsilon at which it fails. search.py
finds the radius, brackets.py and ladder.py say which epsilons are tried.

B: batch, T: frames.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.bounds.memory import Chunks
from popqorn_train.bounds.methods import METHODS, TRAINING, Method, method_named
from popqorn_train.certificates.bound_model import BoundModel, bound
from popqorn_train.certificates.certificate import Confirm, check_confirm
from popqorn_train.certificates.inputs import Inputs
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.kept import Kept, kept_of
from popqorn_train.certificates.margins import check_target
from popqorn_train.certificates.module_probe import Claim
from popqorn_train.certificates.patience import Patience
from popqorn_train.certificates.probes import PROBES, Probes, check_probes
from popqorn_train.certificates.query import make_query
from popqorn_train.certificates.radius_gradient import differentiable_radius
from popqorn_train.certificates.search import (
    Decided,
    RadiusSearch,
    Start,
    answer,
    twin_of,
    witnessed,
)
from popqorn_train.perturbations.box import Box, Perturbation, check_searched, searched
from popqorn_train.perturbations.region import Scope


def search_radius(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    ball: Perturbation,
    *,
    method: str | Method = "popqorn",
    max_radius: float | None = None,
    rtol: float = 1e-3,
    confirm: Confirm = "float64",
    against: Tensor | None = None,
    start: Tensor | Start | None = None,
    epsilons: Sequence[float] = (),
    max_bytes: int | None = None,
    probes: int = PROBES,
    decided: Decided | None = None,
) -> RadiusSearch:
    """``certified_radius``, and how it was found.

    ``ball`` is an ``LpBall``, whose epsilon is searched and therefore ignored, or a ``Box``, whose
    largest share is searched. ``decided`` is called with the number of samples decided so far, to
    show progress. All other arguments are those of ``certified_radius``.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certified_radius``.
    """
    check_search(rtol, max_radius, confirm, epsilons)
    check_probes(probes)
    check_sizes(check_searched(ball), max_radius, epsilons)
    layer, ball, method = bound(model), ball.sized(0.0), method_named(method)
    options = _Options(
        method, max_radius, rtol, confirm, tuple(epsilons), max_bytes, probes, decided
    )
    with torch.no_grad(), undisturbed(layer.model):
        kept = kept_of(layer, inputs)
        if kept is None:
            return _searched(layer, inputs, target, ball, options, against, start)
        check_target(target, kept.size, kept.classes)
        if not len(kept.chosen):
            return _unanswered(layer.instance(inputs).value, kept)
        some = kept.some((target, against, start))
        part = _searched(layer, kept.inputs, some[0], kept.ball(ball), options, *some[1:])
        return RadiusSearch(
            kept.spread(part.radius),
            kept.spread(part.capped, False),
            kept.spread(part.correct, False),
            kept.spread(part.evaluations, 0),
            kept.spread(part.rate),
            kept.errors,
            None if part.bend is None else kept.spread(part.bend),
        )


class _Options(NamedTuple):
    """Arguments of ``search_radius`` that hold for every sample."""

    method: Method
    max_radius: float | None
    rtol: float
    confirm: Confirm
    epsilons: tuple[float, ...]
    max_bytes: int | None
    probes: int
    decided: Decided | None


def _unanswered(like: Tensor, kept: Kept) -> RadiusSearch:
    """Where no sample of a batch can be asked about."""
    nan = like.new_full((kept.size,), math.nan)
    no = torch.zeros_like(nan, dtype=torch.bool)
    return RadiusSearch(nan, no, no, no.long(), nan.double(), kept.errors, nan.double())


def _searched(
    layer: BoundModel,
    inputs: Inputs,
    target: Tensor,
    ball: Perturbation,
    options: _Options,
    against: Tensor | None,
    start: Tensor | Start | None,
) -> RadiusSearch:
    """``search_radius`` for samples all of which can be asked about."""
    method, chunks = options.method, Chunks(options.max_bytes)
    query = make_query(
        layer, inputs, target, against=against, ball=ball, method=method, chunks=chunks
    ).deciding
    twin = twin_of(query, layer, inputs, options.confirm)
    last = query if twin is None else twin
    probe = Probes(layer, last.instance, last.target, options.probes)
    query, twin = witnessed(query, twin, probe.nodes)
    found = answer(
        query,
        twin,
        max_radius=options.max_radius,
        rtol=options.rtol,
        start=start,
        epsilons=options.epsilons,
        decided=options.decided,
    )
    claim = Claim(found.radius > 0, against=query.against)
    probe.certificate(ball.sized(found.radius.double()), claim)
    return found


def check_search(
    rtol: float, max_radius: float | None, confirm: str | None, epsilons: Sequence[float] = ()
) -> None:
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
    if not all(isinstance(one, int | float) and 0 < one < math.inf for one in epsilons):
        raise ValueError(f"`epsilons` must be positive numbers, got {epsilons!r}.")


def check_sizes(
    ball: Perturbation, max_radius: float | None, epsilons: Sequence[float] = ()
) -> None:
    """Refuse sizes above that of the whole box.

    Raises:
        ValueError: naming the argument.
    """
    if isinstance(ball, Box):
        for name, sizes in (("max_radius", [max_radius or 0.0]), ("epsilons", epsilons)):
            if any(size > 1 for size in sizes):
                raise ValueError(
                    f"`{name}` must be shares of the box, from 0 to 1, got {max(sizes):g}."
                )


def certified_radius(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    p: float = math.inf,
    method: str | Method = "popqorn",
    frames: Tensor | None = None,
    features: Tensor | None = None,
    scope: Scope = "frame",
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    box: Box | None = None,
    max_radius: float | None = None,
    rtol: float = 1e-3,
    confirm: Confirm = "float64",
    against: Tensor | None = None,
    start: Tensor | Start | None = None,
    epsilons: Sequence[float] = (),
    max_bytes: int | None = None,
    differentiable: bool = False,
    probes: int = PROBES,
) -> Tensor:
    """Largest epsilon for which it is proved that no input of the ball changes the class.

    A radius proves every smaller epsilon too, so curves of certified accuracy come from radii. They
    agree with ``certify`` by the same method: where that succeeds at a power of 1.1, the radius is
    at least (1 - rtol) times as large, and where it succeeds at one of ``epsilons``, the radius
    reaches that. Margins of intervals fall; others jump where planes are chosen anew, so every such
    epsilon is tried above the first one that fails, until the margin lies a quarter as far below
    0 as the clean margin lies above (0.08 times as far with ``popqorn``, 0.03 with
    ``popqorn-fast``, whose margins seldom jump further), or at 1.5 radii. What rises again beyond
    that is not seen.

    Args:
        model: a classifier, or ``bound(model)``.
        inputs: what its forward takes.
        target: ``(B,)`` integer labels.
        p: norm of the ball.
        method: a name, see methods.py, or an object.
        frames: see ``LpBall``; so are ``features``, ``scope``, ``low`` and ``high``.
        features: mask of the perturbed features.
        scope: one ball per frame, or one for the sequence.
        low: least value of an input.
        high: greatest value of an input.
        box: a range for every coordinate, in place of a ball: the largest share of it is searched,
            from 0 (the input alone) to 1 (the whole box), and ``max_radius`` and ``epsilons`` are
            shares too. Leave out ``p`` and what follows it down to ``high``.
        max_radius: largest radius tried; None takes the p-norm of the domain's width where both
            ends are given, else 10 times the largest p-norm of a moved frame (at least 1).
        rtol: relative precision. The answer is proved; 1 / (1 - rtol) times it is not, or would
            not be as far as margins computed below and above it tell. Where float64 does not
            prove what float32 did, the search is done again in float64.
        confirm: ``"float64"`` proves every radius again in float64; ``"deployed"`` proves it of the
            model as it computes in float32, see ``certify``; None leaves the precision of the
            weights (at least float32).
        against: ``(B,)`` one class to be kept apart from, instead of all (the paper's targeted
            radius).
        start: ``(B,)`` where to begin, for example the radii of the last epoch; or the ``start`` of
            what ``search_radius`` found then, from which fewer margins are computed.
        epsilons: where certified samples will be counted; tried like powers of 1.1.
        max_bytes: memory aimed at, see ``certify``.
        differentiable: give the result its gradient in the weights, and in the inputs where they
            ask for one: dr = -dm / (dm/dr) for the margin m, and 0 where the radius is 0 or
            capped. One more evaluation, of all samples at once. As in ``CertifiedLoss``, the
            name of a method then stands for its closed forms.
        probes: points at which the model is compared with what was proved, see ``certify``.

    Returns:
        ``(B,)`` in the units of the input, or shares of the ``box``; 0 where the clean prediction
        is wrong, NaN for a sample that cannot be asked about, of which a warning tells.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certify``, and for a ``rtol``,
            ``max_radius``, ``against``, ``start`` or ``epsilons`` out of range.

    Source:
        Ko et al., "POPQORN", ICML 2019, algorithm 1, with a root finder for its bisection.
    """
    domain = {"low": low, "high": high}
    ball = searched(box, p=p, frames=frames, features=features, scope=scope, **domain)
    layer, waiting = bound(model), Patience(target, method)
    method = method_named(method, TRAINING if differentiable else METHODS)
    with undisturbed(layer.model):
        kept = kept_of(layer, inputs)
    if kept is not None:
        kept.warn()
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
        epsilons=epsilons,
        max_bytes=max_bytes,
        probes=probes,
        decided=waiting,
    )
    if not differentiable or (kept is not None and not len(kept.chosen)):
        return found.radius
    if kept is None:
        return differentiable_radius(layer, inputs, target, against, ball, method, max_bytes, found)
    labels, others = kept.some((target, against))
    part = RadiusSearch(*kept.some(found[:5]))
    radii = differentiable_radius(
        layer, kept.inputs, labels, others, kept.ball(ball), method, max_bytes, part
    )
    return kept.spread(radii)
