"""Settings that a process has only once, although its threads want different ones.

The first thread that needs one makes it, the last one undoes it. Meanwhile others go on with it:
they compute the same, perhaps more slowly.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch


class Shared:
    """A setting of the whole process: made by the first thread that asks, undone by the last.

    Args:
        make: the context that makes it.
    """

    def __init__(self, make: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        self._make = make
        self._lock, self._holders = threading.Lock(), 0
        self._entered = contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """A context that holds the setting."""
        with self._lock:
            if self._holders == 0:
                self._entered.enter_context(self._make())
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if self._holders == 0:
                    self._entered.close()


@contextlib.contextmanager
def _highest_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def _layer_by_layer() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# No TF32 in products of float32 matrices.
highest_precision = Shared(_highest_precision)
# Its recurrent kernels may round to TF32, and have no gradient in eval mode.
without_cudnn = Shared(lambda: torch.backends.cudnn.flags(enabled=False))
# Compiled code runs as it is written.
eager = Shared(lambda: torch.compiler.set_stance("force_eager"))
# Transformer layers call the layers that they consist of, one after the other.
layer_by_layer = Shared(_layer_by_layer)
