"""Where a certificate is probed: points of a perturbation set that are likely to betray a fault.

Clean, at the corner the gradient points to, at other corners, with one frame moved alone, inside.
They are the same whatever else is in the batch, and drawn without the global generator.

B: batch, T: frames, N: features, P: points.
"""

import torch
from torch import Tensor

from popqorn_train.certificates.pgd import shrunk, sizes, steepest
from popqorn_train.perturbations.region import Region
from popqorn_train.perturbations.substitutions import Choices


def changes_in(region: Region, gradient: Tensor, count: int) -> Tensor:
    """Changes of what moves that stay in the ball and the domain, ``(P, B, T, N)``.

    Args:
        region: around the inputs.
        gradient: ``(B, T, N)`` of the margin in what moves, at the inputs.
        count: P.
    """
    size = sizes(region)[..., None] if region.scope == "frame" else region.epsilon[..., None]

    def farthest(direction: Tensor) -> Tensor:
        """The change along which a linear function with this gradient falls most."""
        return shrunk(size * steepest(direction.expand_as(gradient), region), region)

    generator = torch.Generator().manual_seed(0)
    shape, like = gradient.shape[1:], gradient
    found = [torch.zeros_like(like), farthest(gradient)]
    while len(found) < count:
        corner = (torch.rand(shape, generator=generator) - 0.5).sign().to(like)
        there = farthest(corner)
        alone = torch.zeros(shape[0], dtype=torch.bool, device=like.device)
        alone[int(torch.randint(shape[0], (), generator=generator))] = True
        inner = torch.rand(shape, generator=generator).to(like)
        found += [there, farthest(-torch.ones_like(like)), there * inner]
        found += [there * alone[:, None], farthest(torch.ones_like(like)), farthest(-corner)]
    return torch.stack(found[:count])


def choices_in(choices: Choices, count: int) -> Tensor:
    """Which candidate stands in each place, ``(P, B, T)``; -1 where the word stays.

    Args:
        choices: around the sentences.
        count: P; the first leaves all words.
    """
    batch, time, candidates, _ = choices.changes.shape
    device = choices.changes.device
    moves = choices.changes.abs().amax((2, 3)) > 0  # words with a candidate of their own
    generator = torch.Generator().manual_seed(0)
    found = [torch.full((batch, time), -1, device=device)]
    while len(found) < count:
        pick = torch.randint(candidates, (time,), generator=generator).to(device)
        rank = torch.rand(time, generator=generator).to(device) + ~moves  # others come last
        chosen = rank.argsort(1).argsort(1) < choices.budget[:, None]
        found.append(torch.where(chosen, pick, -1))
    return torch.stack(found[:count])


def changed(choices: Choices, picked: Tensor) -> Tensor:
    """What the network reads there, ``(B, T, N)``, for one row ``(B, T)`` of ``choices_in``."""
    place = picked.clamp(min=0)[..., None, None].expand(-1, -1, 1, choices.value.shape[-1])
    change = choices.changes.gather(2, place)[:, :, 0]
    return choices.value + torch.where(picked[..., None] < 0, 0.0, change)
