"""The smallest distortion that an attack finds: no certified radius can be larger.

Balls are attacked, larger and larger until one gives way, then between what held and what broke.
Every point found is drawn straight back towards the input, as far as the class stays wrong; that
and the size of the distortion are worked out in float64.

B: batch, T: frames, N: features.
"""

import math

import torch
from torch import Tensor, nn

from popqorn_train.bounds.memory import Chunks
from popqorn_train.bounds.methods import method_named
from popqorn_train.certificates.bound_model import BoundModel, bound
from popqorn_train.certificates.inputs import Inputs
from popqorn_train.certificates.instance import Instance
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.kept import kept_of
from popqorn_train.certificates.margins import check_target
from popqorn_train.certificates.pgd import margin_of, search
from popqorn_train.certificates.query import largest_tried, make_query
from popqorn_train.certificates.radius import check_search, check_sizes
from popqorn_train.certificates.search import Decided
from popqorn_train.perturbations.box import Box, Perturbation, check_searched, searched
from popqorn_train.perturbations.region import Scope

_ROUNDS = 30  # balls attacked at most
_HALVINGS = 12  # of the way back to the input


def search_empirical(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    ball: Perturbation,
    *,
    max_radius: float | None = None,
    steps: int = 20,
    restarts: int = 2,
    seed: int = 0,
    rtol: float = 0.05,
    decided: Decided | None = None,
) -> Tensor:
    """``empirical_radius`` for a ball that says what may move; its epsilon does not matter.

    ``decided`` is told how many samples are decided so far, to show progress. Every other argument
    is that of ``empirical_radius``.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``empirical_radius``.
    """
    check_search(rtol, max_radius, None)
    check_sizes(check_searched(ball), max_radius)
    if steps < 1 or restarts < 1:
        raise ValueError(f"`steps` and `restarts` must be at least 1, got {steps}, {restarts}.")
    layer, ball = bound(model), ball.sized(0.0)
    descent = {"steps": steps, "restarts": restarts, "seed": seed}
    with torch.no_grad(), undisturbed(layer.model):
        kept = kept_of(layer, inputs)
        if kept is None:
            return _attacked(layer, inputs, target, ball, max_radius, rtol, descent, decided)
        kept.warn()
        check_target(target, kept.size, kept.classes)
        if not len(kept.chosen):
            return torch.full((kept.size,), torch.nan, dtype=torch.float64)
        some = kept.inputs, kept.some(target), kept.ball(ball)
        return kept.spread(_attacked(layer, *some, max_radius, rtol, descent, decided))


def _attacked(
    layer: BoundModel,
    inputs: Inputs,
    target: Tensor,
    ball: Perturbation,
    max_radius: float | None,
    rtol: float,
    descent: dict[str, int],
    decided: Decided | None,
) -> Tensor:
    """``search_empirical`` for samples all of which can be asked about."""
    method, chunks = method_named("ibp"), Chunks()
    query = make_query(layer, inputs, target, against=None, ball=ball, method=method, chunks=chunks)
    target, exact = query.target, layer.instance(inputs, torch.float64)
    exact = exact._replace(free=query.instance.free)
    clean, fall = query.clean()
    cap = largest_tried(query.instance, ball, max_radius)
    broke = torch.where(clean > 0, torch.inf, 0.0).to(cap)
    held = torch.zeros_like(cap)
    size = torch.minimum(1.5 * clean / fall.clamp(min=1e-12), cap)
    for _ in range(_ROUNDS):
        todo = ((broke > held * (1 + rtol)) & (held < cap)).nonzero()[:, 0]
        if decided is not None:
            decided(len(target) - len(todo))
        if not len(todo):
            break
        tried = ball.pick(todo, len(target)).sized(size[todo])
        found = search(query.instance.pick(todo), target[todo], tried, **descent)
        length = _drawn_back(exact.pick(todo), target[todo], tried, found.moved)
        held[todo] = torch.where(length.isfinite(), held[todo], size[todo])
        broke[todo] = torch.minimum(broke[todo], length)
        size = _next_size(held, broke, cap)
    return broke


def _next_size(held: Tensor, broke: Tensor, cap: Tensor) -> Tensor:
    """Between what held and what broke; twice what held while nothing broke."""
    between = (torch.maximum(held, broke / 4) * broke).sqrt()
    return torch.where(broke.isfinite(), between, torch.minimum(2 * held, cap))


def _drawn_back(instance: Instance, target: Tensor, ball: Perturbation, moved: Tensor) -> Tensor:
    """Size of the smallest change on the way to each point that breaks, ``(B,)``; inf if none."""
    region = instance.in_own_units(ball)
    change = moved.to(instance.center) - instance.center
    change = torch.minimum(torch.maximum(change, -region.down), region.up)

    def broken(share: Tensor) -> Tensor:
        logits = instance.logits(instance.center + share[:, None, None] * change)
        return margin_of(logits, target) <= 0  # false for NaN

    far = torch.ones(len(target), dtype=torch.float64, device=change.device)
    near, reached = torch.zeros_like(far), broken(far)
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        here = broken(middle)
        near, far = torch.where(here, near, middle), torch.where(here, middle, far)
    return torch.where(reached, far * ball.length(change, region), torch.inf)


def empirical_radius(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    p: float = math.inf,
    frames: Tensor | None = None,
    features: Tensor | None = None,
    scope: Scope = "frame",
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    box: Box | None = None,
    max_radius: float | None = None,
    steps: int = 20,
    restarts: int = 2,
    seed: int = 0,
    rtol: float = 0.05,
) -> Tensor:
    """Smallest distortion an attack found; shows how much of the gap to a certificate is left.

    Args:
        model: a classifier, or ``bound(model)``.
        inputs: what its forward takes.
        target: ``(B,)`` integer labels.
        p: norm of the ball.
        frames: see ``LpBall``; so are ``features``, ``scope``, ``low`` and ``high``.
        features: mask of the perturbed features.
        scope: one ball per frame, or one for the sequence.
        low: least value of an input.
        high: greatest value of an input.
        box: see ``certified_radius``.
        max_radius: largest ball attacked; None as in ``certified_radius``.
        steps: gradient steps a start.
        restarts: the centre, and this many less one random starts.
        seed: of the random starts; the global generator is not used.
        rtol: how closely what held and what broke are brought together.

    Returns:
        ``(B,)`` float64 in the units of the input, or shares of the ``box``; 0 where the clean
        prediction is wrong, ``inf`` where no attack succeeded, NaN for a sample that cannot be
        asked about.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certified_radius``, and for ``steps`` or
            ``restarts`` below 1.

    Source:
        Projected gradient descent: Madry et al., ICLR 2018.
    """
    domain = {"low": low, "high": high}
    ball = searched(box, p=p, frames=frames, features=features, scope=scope, **domain)
    return search_empirical(
        model,
        inputs,
        target,
        ball,
        max_radius=max_radius,
        steps=steps,
        restarts=restarts,
        seed=seed,
        rtol=rtol,
    )
