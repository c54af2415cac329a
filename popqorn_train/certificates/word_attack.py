"""A search among sentences with words replaced: an upper bound on what can be certified.

The margin is linearised where the search is. Of that linear function the best candidate in every
place is known, and the places that gain most are the budget: that sentence is looked at next.

B: batch, T: frames, C: candidates of a frame, N: features.
"""

import torch
from torch import Tensor, nn

from popqorn_train.certificates.bound_model import bound
from popqorn_train.certificates.inputs import Inputs
from popqorn_train.certificates.instance import Instance
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.margins import check_target
from popqorn_train.certificates.pgd import Attack, margin_of
from popqorn_train.certificates.probe_points import changed, choices_in
from popqorn_train.perturbations.substitutions import Choices, Substitutions, check_replaced
from popqorn_train.tracing.process_settings import without_cudnn


def search_words(
    instance: Instance, target: Tensor, words: Substitutions, *, steps: int, restarts: int
) -> tuple[Attack, Tensor]:
    """Attack a prepared batch by replacing words; call it inside ``undisturbed``.

    Args:
        instance: the batch.
        target: ``(B,)`` labels on its device.
        words: what may be replaced.
        steps: sentences looked at after each start.
        restarts: number of starts, the clean sentence first.

    Returns:
        The worst sentence found, and the candidates ``(B, T)`` that it takes, -1 where the word
        stays.
    """
    choices = instance.choices(words)
    changes = _in_own_units(choices, instance)
    center, starts = instance.center, choices_in(choices, restarts)
    best, chosen = Attack(center.new_full((len(center),), torch.inf), center), starts[0]
    for start in starts:
        picked = start
        for step in range(steps + 1):
            margin, gradient, moved = _margin(instance, choices, picked, target)
            better = margin < best.margin
            chosen = torch.where(better[:, None], picked, chosen)
            moved = torch.where(better[:, None, None], moved, best.moved)
            best = Attack(torch.minimum(best.margin, margin), moved)
            if step < steps:
                picked = _steepest(gradient, changes, choices.budget)
    return best, chosen


def attack_words(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    words: Substitutions,
    *,
    steps: int = 5,
    restarts: int = 2,
) -> Tensor:
    """Look for a sentence with words replaced that is classified otherwise.

    Args:
        model: a classifier of tokens, or ``bound(model)``.
        inputs: what its forward takes.
        target: ``(B,)`` integer labels.
        words: what may be replaced.
        steps: sentences looked at after each start.
        restarts: the clean sentence, and this many less one drawn by a fixed seed.

    Returns:
        ``(B,)`` the least margin found; the label is lost where it is negative.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certify``.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"`steps` and `restarts` must be at least 1, got {steps}, {restarts}.")
    check_replaced(words)
    layer = bound(model)
    with torch.no_grad(), undisturbed(layer.model):
        instance = layer.instance(inputs)
        check_target(target, len(instance.center), instance.plan.classes)
        target = target.long().to(instance.center.device)
        return search_words(instance, target, words, steps=steps, restarts=restarts)[0].margin


def _margin(
    instance: Instance, choices: Choices, picked: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The margin ``(B,)`` of some sentences, its gradient in what moves, and what moves there."""
    moved = instance.unread(changed(choices, picked)).detach()
    with torch.enable_grad(), without_cudnn():
        x = moved.requires_grad_()
        margin = margin_of(instance.logits(x), target)
        (gradient,) = torch.autograd.grad(margin.sum(), x)
    return margin.detach(), gradient, moved.detach()


def _in_own_units(choices: Choices, instance: Instance) -> Tensor:
    """Changes ``(B, T, C, N)`` in the units of what moves; what is not read does not change."""
    changes = choices.changes.detach()
    if instance.scale is None:
        return changes
    return (changes / instance.scale[:, :, None]).nan_to_num(0, 0, 0)


def _steepest(gradient: Tensor, changes: Tensor, budget: Tensor) -> Tensor:
    """The candidates ``(B, T)`` for which a linear function falls most; -1 where a word stays."""
    least, picked = (changes @ gradient[..., None])[..., 0].min(2)
    chosen = least.argsort(1).argsort(1) < budget[:, None]
    return torch.where(chosen & (least < 0), picked, -1)
