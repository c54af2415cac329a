"""Run a user's forward and leave nothing of it behind."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import nn

from popqorn_train.tracing.wrappers import uncompiled

_SMALL = 1_000_000  # entries of a buffer that is copied, so that writes to it can be undone


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Run a model's own forward without a trace of it: attributes and buffers stay as they were."""
    modules = list(model.modules())
    places = [vars(m) for m in modules] + [m._buffers for m in modules]
    places += [value for m in modules for value in vars(m).values() if type(value) in (list, dict)]
    saved = [copy.copy(place) for place in places]
    buffers = [(b, b.clone()) for b in model.buffers() if b.numel() <= _SMALL]
    try:
        with uncompiled():
            yield
    finally:
        for place, before in zip(places, saved, strict=True):
            place.clear()
            place.extend(before) if isinstance(place, list) else place.update(before)
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
