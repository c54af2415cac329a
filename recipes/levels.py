"""Which sizes of a perturbation are proved, where nobody asks how far a radius reaches.

B: samples.
"""

import math

import torch
from torch import Tensor, nn

from popqorn_train import certify
from popqorn_train.recipes.evaluation import EvaluationSettings


def sizes_up_to(settings: EvaluationSettings, most: float | None) -> list[float]:
    """The epsilons of the settings that are at most so large; None takes them all."""
    limit = math.inf if most is None else most * (1 + settings.rtol)
    return [epsilon for epsilon in settings.epsilons if epsilon <= limit]


def greatest_proved(
    net: nn.Module,
    inputs: tuple[Tensor, ...],
    labels: Tensor,
    settings: EvaluationSettings,
    *,
    method: str,
    most: float | None,
) -> Tensor:
    """Label, prediction and the greatest epsilon that is proved, else 0, ``(B, 3)`` on the CPU.

    The largest is tried first, and smaller ones for the samples that are left.
    """
    with torch.no_grad():
        predictions = net(*inputs).argmax(1)
    radii = torch.zeros(len(labels), dtype=torch.float64)
    for size in reversed(sizes_up_to(settings, most)):
        left = ((predictions == labels) & (radii == 0).to(labels.device)).nonzero()[:, 0]
        if len(left):
            some = tuple(x[left] for x in inputs)
            found = certify(net, some, labels[left], settings.ball(size), method=method)
            radii[left[found.certified].cpu()] = size
    return torch.stack([labels.cpu(), predictions.cpu(), radii], 1)
