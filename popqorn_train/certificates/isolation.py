"""The quiet in which models are looked at, for every thread that shares them.

A module is certified by one thread at a time, since it says itself whether it trains.
"""

import contextlib
import itertools
import threading
from collections.abc import Collection, Iterator

import torch
from torch import nn

from popqorn_train.tracing.process_settings import highest_precision

_FREED = threading.Condition()
_numbers = itertools.count()
_holders: dict[nn.Module, tuple[int, int]] = {}  # which thread holds a module, and in which hold


@contextlib.contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """No autocast, no TF32 and no inference mode; everything restored after."""
    device = next((p.device.type for p in model.parameters()), "cpu")
    grad = torch.is_grad_enabled()
    # Leaving inference mode would switch gradients on.
    with (
        highest_precision(),
        torch.inference_mode(False),
        torch.set_grad_enabled(grad),
        torch.autocast(device, enabled=False),
    ):
        yield


@contextlib.contextmanager
def _held(modules: Collection[nn.Module]) -> Iterator[None]:
    """Wait until no other thread holds one of these modules, and hold them."""
    own = threading.get_ident()

    def free() -> bool:
        return all(_holders[module][0] == own for module in modules if module in _holders)

    with _FREED:
        _FREED.wait_for(free)
        fresh = [module for module in modules if module not in _holders]
        _holders.update(dict.fromkeys(fresh, (own, next(_numbers))))
    try:
        yield
    finally:
        with _FREED:
            for module in fresh:
                del _holders[module]
            _FREED.notify_all()


def hold_of(model: nn.Module) -> int:
    """Which hold a model is in; one for everything that a call of ours asks of a model."""
    return _holders[model][1]


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode and full precision, in one thread at a time; everything restored after."""
    modules = list(model.modules())
    with _held(modules):
        modes = [(module, module.training) for module in modules]
        try:
            for module in modules:
                module.training = False
            with full_precision(model):
                yield
        finally:
            for module, mode in modes:
                module.training = mode
