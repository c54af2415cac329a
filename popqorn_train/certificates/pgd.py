"""Projected gradient descent on the margin: an upper bound on what can be certified.

Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018, with the
steepest direction and a feasible shrink for every p-norm.

B: batch, T: frames, N: features, C: classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.certificates.bound_model import bound
from popqorn_train.certificates.inputs import Inputs
from popqorn_train.certificates.instance import Instance
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.margins import check_target
from popqorn_train.perturbations.box import Perturbation, check_ball
from popqorn_train.perturbations.region import Region, dual_exponent
from popqorn_train.tracing.process_settings import without_cudnn


class Attack(NamedTuple):
    """The worst point found.

    Attributes:
        margin: ``(B,)`` the label's logit minus the best other one there; negative: broken.
        moved: ``(B, T, N)`` value of what moves there, inside the ball and the domain.
    """

    margin: Tensor
    moved: Tensor


def margin_of(logits: Tensor, target: Tensor) -> Tensor:
    """The label's logit minus the best other one, ``(B,)``."""
    own = nn.functional.one_hot(target, logits.shape[1]).bool()
    return logits[own] - logits.masked_fill(own, -torch.inf).amax(1)


def _blocks(x: Tensor, region: Region) -> Tensor:
    """One row for every ball: ``(B, T, N)``, or ``(B, 1, T N)`` for one ball a sequence."""
    return x if region.scope == "frame" else x.flatten(1)[:, None]


def sizes(region: Region) -> Tensor:
    """Radius of every ball, ``(B, T)`` or ``(B, 1)``."""
    return region.epsilon if region.scope == "frame" else region.epsilon.amax(1, keepdim=True)


def steepest(gradient: Tensor, region: Region) -> Tensor:
    """The step of p-norm 1 along which a linear function with this gradient falls fastest."""
    g = _blocks(gradient * region.coordinates, region)
    top = g.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(g.dtype).tiny)
    q = dual_exponent(region.p)
    if q == torch.inf:  # p = 1: all weight on the largest entry
        step = nn.functional.one_hot(g.abs().argmax(-1), g.shape[-1]) * g.sign()
    else:
        step = g.sign() * (g / top).abs() ** (q - 1)
    size = torch.linalg.vector_norm(step, region.p, dim=-1, keepdim=True).clamp(min=1e-30)
    return -(step / size).view_as(gradient)


def shrunk(change: Tensor, region: Region) -> Tensor:
    """Shrink a change into the ball, then cut it to the domain; cutting only shortens it."""
    flat = _blocks(change * region.coordinates, region)
    size = torch.linalg.vector_norm(flat, region.p, dim=-1, keepdim=True)
    share = sizes(region)[..., None] / torch.maximum(size, torch.full_like(size, 1e-30))
    change = (flat * share.clamp(max=1)).view_as(change)
    return torch.minimum(torch.maximum(change, -region.down), region.up)


def _starts(region: Region, restarts: int, seed: int) -> list[Tensor]:
    """The centre, then random points of the ball, drawn without touching the global generator."""
    generator = torch.Generator().manual_seed(seed)
    starts = [torch.zeros_like(region.value)]
    for _ in range(restarts - 1):
        # One direction for all samples: what is found must not depend on the batch.
        noise = torch.randn(region.value.shape[1:], generator=generator).to(region.value)
        noise = noise.expand_as(region.value)
        norm = torch.linalg.vector_norm(_blocks(noise, region), region.p, dim=-1, keepdim=True)
        unit = (_blocks(noise, region) / norm).view_as(noise)
        size = sizes(region)[..., None].expand_as(norm)
        starts.append((_blocks(unit, region) * size).view_as(noise))
    return starts


def search(
    instance: Instance, target: Tensor, ball: Perturbation, *, steps: int, restarts: int, seed: int
) -> Attack:
    """Attack a prepared batch; call it inside ``undisturbed``.

    Args:
        instance: the batch.
        target: ``(B,)`` labels on its device.
        ball: what may move.
        steps: gradient steps a start.
        restarts: number of starts, the centre first.
        seed: of the random starts.
    """
    region = instance.region(ball)
    size = sizes(region)[..., None] if region.scope == "frame" else region.epsilon[..., None]
    best = Attack(margin_of(instance.logits(instance.center), target), instance.center)
    for start in _starts(region, restarts, seed):
        change = shrunk(start, region)
        for step in range(steps + 1):
            with torch.enable_grad(), without_cudnn():
                change = change.detach().requires_grad_()
                margin = margin_of(instance.logits(instance.center + change), target)
                (gradient,) = torch.autograd.grad(margin.sum(), change)
            better = margin.detach() < best.margin
            moved = torch.where(
                better[:, None, None], instance.center + change.detach(), best.moved
            )
            best = Attack(torch.minimum(best.margin, margin.detach()), moved)
            pace = 2.5 / steps * (1 - 0.9 * step / steps)
            change = shrunk(change.detach() + pace * size * steepest(gradient, region), region)
    return Attack(best.margin.detach(), best.moved.detach())


def attack(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    ball: Perturbation,
    *,
    steps: int = 20,
    restarts: int = 2,
    seed: int = 0,
) -> Attack:
    """Look for an input of the ball that is classified otherwise.

    Args:
        model: a classifier, or ``bound(model)``.
        inputs: what its forward takes.
        target: ``(B,)`` integer labels.
        ball: what may move.
        steps: gradient steps a start.
        restarts: the centre, and this many less one random starts.
        seed: of the random starts; the global generator is not used.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certify``.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"`steps` and `restarts` must be at least 1, got {steps}, {restarts}.")
    check_ball(ball)
    layer = bound(model)
    with torch.no_grad(), undisturbed(layer.model):
        instance = layer.instance(inputs)
        check_target(target, len(instance.center), instance.plan.classes)
        target = target.long().to(instance.center.device)
        return search(instance, target, ball, steps=steps, restarts=restarts, seed=seed)
