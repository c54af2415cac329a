"""Which frame does the decision hang on? The certified radius of every frame alone.

B: batch, T: frames.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from popqorn_train.bounds.memory import Chunks
from popqorn_train.bounds.methods import Method, method_named
from popqorn_train.certificates.bound_model import bound
from popqorn_train.certificates.certificate import Confirm
from popqorn_train.certificates.inputs import Inputs
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.module_probe import Claim
from popqorn_train.certificates.probes import PROBES, Probes, check_probes
from popqorn_train.certificates.query import make_query
from popqorn_train.certificates.radius import check_search
from popqorn_train.certificates.search import answer, in_float64, witnessed
from popqorn_train.perturbations.lp_ball import LpBall

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
    max_radius: float | None = None,
    rtol: float = 1e-3,
    confirm: Confirm = "float64",
    max_bytes: int | None = None,
    probes: int = PROBES,
) -> Tensor:
    """The certified radius of every frame when it alone moves.

    Small radii show the frames, words or rows that the decision hangs on. Neighbouring frames are
    bounded in one batch. Up to the first of them the recurrent layer that reads the input is run
    as it is: nothing is bounded there, and its state is exact. A frame that the logits do not
    depend on (padding, for one) has the largest radius tried.

    Args:
        model: a classifier, or ``bound(model)``.
        inputs: what its forward takes.
        target: ``(B,)`` integer labels.
        p: norm of the ball.
        method: see ``certified_radius``, as for all that follow.
        features: mask of the features that move, see ``LpBall``.
        low: least value of an input.
        high: greatest value of an input.
        max_radius: largest radius tried.
        rtol: relative precision.
        confirm: proves every radius again in float64.
        max_bytes: memory aimed at.
        probes: points at which the model is compared with what was proved.

    Returns:
        ``(B, T)`` in the units of the input, frames as in ``LpBall``; 0 where the clean prediction
        is wrong.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certified_radius``.
    """
    check_search(rtol, max_radius, confirm)
    check_probes(probes)
    layer, chunks = bound(model), Chunks(max_bytes)
    ball = LpBall(0.0, p, features=features, low=low, high=high)
    method = method_named(method)
    with torch.no_grad(), undisturbed(layer.model):
        query = make_query(
            layer, inputs, target, against=None, ball=ball, method=method, chunks=chunks
        )
        query.instance.check_frames()
        twin = in_float64(query, layer, inputs) if confirm == "float64" else None
        batch, time, _ = query.instance.center.shape
        together, radii = -(-_ROWS // batch), []
        for first in range(0, time, together):
            block = (first, min(first + together, time))
            alone = None if twin is None else twin.frames_alone(*block)
            one = query.frames_alone(*block)
            last = one if alone is None else alone
            probe = Probes(layer, last.instance, last.target, probes)
            one, alone = witnessed(one, alone, probe.nodes)
            found = answer(one, alone, max_radius=max_radius, rtol=rtol)
            size = replace(last.ball, epsilon=found.radius.double())
            probe.certificate(size, Claim(found.radius > 0))
            radii.append(found.radius.view(batch, -1))
    return torch.cat(radii, 1)
