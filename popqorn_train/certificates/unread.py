"""Frames that the model never reads: padding behind a sequence, which may hold anything.

A frame is never read if the logits are the same numbers with NaN in its place, since every
operation that is bounded hands NaN on. Candidates are the frames where the logits have no
gradient at all.

B: batch, T: frames.
"""

import torch
from torch import Tensor

from popqorn_train.certificates.instance import Instance
from popqorn_train.perturbations.box import Box, Perturbation
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.perturbations.substitutions import Substitutions
from popqorn_train.tracing.process_settings import without_cudnn


def unread_frames(instance: Instance) -> Tensor:
    """Frames that the logits do not depend on, ``(B, T)``."""
    center = instance.center.detach()
    with torch.enable_grad(), without_cudnn():
        x = center.clone().requires_grad_()
        logits = instance.logits(x)
        weights = torch.arange(1.0, logits.shape[1] + 1, device=x.device).to(logits).sqrt()
        total = (logits.nan_to_num(0, 0, 0) * weights).sum()
        known = total.requires_grad
        gradient = torch.autograd.grad(total, x)[0] if known else torch.ones_like(x)
    found = (gradient == 0).all(-1)
    if not found.any():
        return found
    found, tried = _same(instance, center, logits, found), found
    left = tried & ~found.any(1, keepdim=True)
    for t in left.any(0).nonzero()[:, 0].tolist():  # beside frames that are read, times 0 for one
        found[:, t] |= _same(instance, center, logits, left & _only(t, left))[:, t]
    return found


def _only(t: int, like: Tensor) -> Tensor:
    return torch.arange(like.shape[1], device=like.device) == t


@torch.no_grad()
def _same(instance: Instance, center: Tensor, logits: Tensor, frames: Tensor) -> Tensor:
    """Those of the frames ``(B, T)`` of every sample that may all be NaN at once."""
    there = instance.logits(torch.where(frames[..., None], torch.nan, center))
    return frames & (there == logits).all(1, keepdim=True)


def fitted(instance: Instance, ball: Perturbation | Substitutions) -> Instance:
    """The batch, with frames outside the domain of a ball let off if they are never read."""
    if isinstance(ball, LpBall):
        low, high = ball.low, ball.high
    elif isinstance(ball, Box):
        low, high = ball.ends
    else:
        return instance
    center = instance.center
    try:
        below = low is not None and (center < torch.as_tensor(low).to(center)).any()
        above = high is not None and (center > torch.as_tensor(high).to(center)).any()
    except RuntimeError:  # ends that do not fit are refused where the ball is placed
        return instance
    return instance._replace(free=unread_frames(instance)) if below or above else instance
