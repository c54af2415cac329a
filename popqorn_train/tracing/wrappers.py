"""Models inside a wrapper: compiled, trained in parallel, or averaged.

A wrapper computes what the module inside it computes, so the module inside is what is bounded.
Code that is compiled runs as it is written while a model is looked at: nothing is compiled for it.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from popqorn_train.tracing.process_settings import eager

P = ParamSpec("P")
R = TypeVar("R")


def inside(module: nn.Module) -> str | None:
    """The attribute under which a wrapper keeps the module it wraps; None if it is no wrapper."""
    if isinstance(module, nn.DataParallel | DistributedDataParallel | AveragedModel):
        return "module"
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # imported by whoever compiles
    compiled = dynamo is not None and isinstance(module, dynamo.OptimizedModule)
    return "_orig_mod" if compiled else None


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside all wrappers."""
    while (name := inside(module)) is not None:
        module = module.get_submodule(name)
    return module


def plain_path(path: str) -> str:
    """A module's path as the user wrote it, without the steps into compiled modules."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled code as it is written."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with eager():
        yield


def as_written(function: Callable[P, R]) -> Callable[P, R]:
    """Keep a function out of the user's compiled code that calls it."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
        return function(*args, **kwargs)

    return call
