"""The largest number of word substitutions that is certified."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from popqorn_train.bounds.methods import Method
from popqorn_train.certificates.bound_model import BoundModel, bound
from popqorn_train.certificates.certificate import Confirm, certify
from popqorn_train.certificates.inputs import Inputs
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.kept import kept_of
from popqorn_train.certificates.margins import check_target
from popqorn_train.certificates.probes import PROBES
from popqorn_train.perturbations.substitutions import Substitutions

_NO_ANSWER = -1


def certified_budget(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    candidates: Mapping[int, Sequence[int]] | Tensor,
    *,
    method: str | Method = "popqorn",
    confirm: Confirm = "float64",
    probes: int = PROBES,
) -> Tensor:
    """How many tokens may be replaced at once, as far as is proved, without another class.

    A budget proves every smaller one, so it is found by halving, all samples at once.

    Args:
        model: a classifier of tokens, or ``bound(model)``.
        inputs: what its forward takes.
        target: ``(B,)`` integer labels.
        candidates: see ``Substitutions``.
        method: ``"ibp"``, ``"crown-ibp"``, ``"popqorn-fast"``, ``"popqorn"``, or an object.
        confirm: as in ``certify``.
        probes: replaced sentences that are looked at, as in ``certify``.

    Returns:
        ``(B,)`` whole numbers up to the number of frames; 0 where not even one substitution is
        proved, or the clean prediction is wrong, -1 for a sample that cannot be asked about.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certify`` and ``Substitutions``.
    """
    layer = bound(model)
    options: dict[str, Any] = {"method": method, "confirm": confirm, "probes": probes}
    with undisturbed(layer.model):
        kept = kept_of(layer, inputs)
        if kept is None:
            return _budget(layer, inputs, target, candidates, options)
        kept.warn()
        check_target(target, kept.size, kept.classes)
        if not len(kept.chosen):
            return torch.full_like(target, _NO_ANSWER, dtype=torch.long)
        some = kept.inputs, kept.some(target), kept.some(candidates)
        return kept.spread(_budget(layer, *some, options), _NO_ANSWER)


def _budget(
    layer: BoundModel,
    inputs: Inputs,
    target: Tensor,
    candidates: Mapping[int, Sequence[int]] | Tensor,
    options: dict[str, Any],
) -> Tensor:
    """``certified_budget`` of samples all of which can be asked about."""
    frames = layer.instance(inputs).center.shape[1]
    proved = torch.zeros(len(target), dtype=torch.long, device=target.device)
    refused = torch.full_like(proved, frames + 1)
    asked = proved + 1  # most sentences fail at once or hold for long
    while bool((refused - proved > 1).any()):
        words = Substitutions(candidates, asked)
        found = certify(layer, inputs, target, words, **options).certified
        proved = torch.where(found, torch.maximum(proved, asked), proved)
        refused = torch.where(found, refused, torch.minimum(refused, asked))
        asked = torch.where(refused - proved > 1, (proved + refused) // 2, proved)
    return proved
