"""Which frame does the decision hang on? The certified radius of every frame alone.

B: batch, T: frames.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.bounds.memory import Chunks
from popqorn_train.bounds.methods import Method, method_named
from popqorn_train.certificates.bound_model import BoundModel, bound
from popqorn_train.certificates.certificate import Confirm
from popqorn_train.certificates.inputs import Inputs
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.kept import kept_of
from popqorn_train.certificates.margins import check_target
from popqorn_train.certificates.module_probe import Claim
from popqorn_train.certificates.probes import PROBES, Probes, check_probes
from popqorn_train.certificates.query import largest_alone, make_query
from popqorn_train.certificates.radius import check_search, check_sizes
from popqorn_train.certificates.search import answer, twin_of, witnessed
from popqorn_train.perturbations.box import Box, Perturbation, searched

_ROWS = 16  # samples times frames that are bounded together


def frame_radii(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    p: float = math.inf,
    method: str | Method = "popqorn",
    features: Tensor | None = None,
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    box: Box | None = None,
    max_radius: float | None = None,
    rtol: float = 1e-3,
    confirm: Confirm = "float64",
    max_bytes: int | None = None,
    probes: int = PROBES,
) -> Tensor:
    """The certified radius of each frame when it alone is perturbed.

    Small radii show the frames, words or rows that the decision hangs on. Neighbouring frames are
    bounded in one batch. Up to the first of them the recurrent layer that reads the input is run
    as it is: nothing is bounded there, and its state is exact. A frame that is never read (padding,
    for one) has the largest radius tried for its sample, whatever stands in it.

    Args:
        model: a classifier, or ``bound(model)``.
        inputs: what its forward takes.
        target: ``(B,)`` integer labels.
        p: norm of the ball.
        method: see ``certified_radius``, as for all that follow.
        features: mask of the perturbed features, see ``LpBall``.
        low: least value of an input.
        high: greatest value of an input.
        box: in place of a ball, see ``certified_radius``.
        max_radius: largest radius tried.
        rtol: relative precision.
        confirm: proves every radius again in float64, or as deployed, see ``certify``.
        max_bytes: memory aimed at.
        probes: points at which the model is compared with what was proved.

    Returns:
        ``(B, T)`` in the units of the input, or shares of the ``box``, frames as in ``LpBall``; 0
        where the clean prediction is wrong, NaN for a sample that cannot be asked about, of which a
        warning tells.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certified_radius``.
    """
    check_search(rtol, max_radius, confirm)
    check_probes(probes)
    layer = bound(model)
    ball = searched(box, p=p, features=features, low=low, high=high)
    check_sizes(ball, max_radius)
    options = _Options(method_named(method), max_radius, rtol, confirm, max_bytes, probes)
    with torch.no_grad(), undisturbed(layer.model):
        kept = kept_of(layer, inputs)
        if kept is None:
            return _by_frame(layer, inputs, target, ball, options)
        kept.warn()
        check_target(target, kept.size, kept.classes)
        if not len(kept.chosen):
            return layer.instance(inputs).value.new_full((kept.size, kept.frames), math.nan)
        some = kept.inputs, kept.some(target), kept.ball(ball)
        return kept.spread(_by_frame(layer, *some, options))


class _Options(NamedTuple):
    """Arguments of ``frame_radii`` that hold for every sample."""

    method: Method
    max_radius: float | None
    rtol: float
    confirm: Confirm
    max_bytes: int | None
    probes: int


def _by_frame(
    layer: BoundModel, inputs: Inputs, target: Tensor, ball: Perturbation, options: _Options
) -> Tensor:
    """``frame_radii`` of samples all of which can be asked about."""
    chunks, method = Chunks(options.max_bytes), options.method
    query = make_query(
        layer, inputs, target, against=None, ball=ball, method=method, chunks=chunks
    ).deciding
    query.instance.check_frames()
    twin = twin_of(query, layer, inputs, options.confirm)
    caps = largest_alone(query, options.max_radius)
    batch, time = caps.shape
    together, radii = -(-_ROWS // batch), []
    for first in range(0, time, together):
        block = (first, min(first + together, time))
        alone = None if twin is None else twin.frames_alone(*block)
        one = query.frames_alone(*block)
        last = one if alone is None else alone
        probe = Probes(layer, last.instance, last.target, options.probes)
        one, alone = witnessed(one, alone, probe.nodes)
        cap = caps[:, slice(*block)].flatten()
        found = answer(one, alone, max_radius=cap, rtol=options.rtol)
        size = last.ball.sized(found.radius.double())
        probe.certificate(size, Claim(found.radius > 0))
        radii.append(found.radius.view(batch, -1))
    return torch.cat(radii, 1)
