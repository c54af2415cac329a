"""Buffers that forward moves in training mode, such as the running statistics of BatchNorm.

A step of training moves them once, by the clean batch, as cross entropy does: bounds are computed
in eval mode and move nothing, and neither does an attack. They move before anything is bounded,
since bounds read them and a gradient must see what the bound saw.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from popqorn_train.tracing.preserve import preserved


def may_move(model: nn.Module) -> bool:
    """Whether there are buffers, and modules in training mode that may move them."""
    trains = any(module.training for module in model.modules())
    return trains and next(model.buffers(), None) is not None


@contextlib.contextmanager
def buffers_left_alone(model: nn.Module) -> Iterator[None]:
    """Let copies of all buffers stand in for them, and whatever moves move those.

    The buffers themselves are not written to, so that older graphs keep what they have read.
    """
    places = [module._buffers for module in model.modules()]
    saved = [dict(place) for place in places]
    for place in places:
        copies = {name: None if b is None else b.clone() for name, b in place.items()}
        place.update(copies)
    try:
        yield
    finally:
        for place, before in zip(places, saved, strict=True):
            place.clear()
            place.update(before)


def moves_buffers(model: nn.Module, forward: Callable[[], Any]) -> bool:
    """Whether forward moves a buffer in the mode the model is in; nothing is left of the trial.

    Args:
        model: whose buffers are meant.
        forward: runs it.
    """
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with (
        torch.no_grad(),
        buffers_left_alone(model),
        preserved(model),
        torch.random.fork_rng([device.index or 0 for device in devices]),
    ):
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        forward()
        after = dict(model.named_buffers())
        return any(not torch.equal(before[name], value) for name, value in after.items())
