"""Work done in chunks of samples, so that it fits into memory.

How many samples go at once is estimated from the graph and ``max_bytes``; if memory runs out all
the same, the chunk is halved, and grows back slowly.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from popqorn_train.bounds.backward import ROWS_AT_ONCE, ancestors
from popqorn_train.bounds.node import Node, Nonlinear
from popqorn_train.bounds.slices import whole
from popqorn_train.errors import is_out_of_memory

_CPU_BYTES = 2**30  # on a CPU, unless the caller says otherwise
_COPIES = 4  # slopes of this size that live at once while one bound is carried backward
_ENDS = 20  # ranges of a node, and what it works out on the way, that live at once
_CALM = 4  # chunks without trouble after which the size is doubled


def check_max_bytes(max_bytes: int | None) -> None:
    """Refuse a limit that is no positive number of bytes.

    Raises:
        ValueError: naming the argument.
    """
    number = isinstance(max_bytes, int) and not isinstance(max_bytes, bool) and max_bytes > 0
    if max_bytes is not None and not number:
        raise ValueError(f"`max_bytes` must be a positive integer or None, got {max_bytes!r}.")


def bytes_a_sample(output: Node, like: Tensor) -> int:
    """Estimate of what bounding one sample takes, from above.

    The largest part are the slopes of a backward bound on everything that one nonlinearity reads,
    two rows per unit, on the longest sequence.
    """
    nodes = ancestors(output)
    sizes = [math.prod(node.shape) for node in nodes]
    parents = {whole(p) for node in nodes if isinstance(node, Nonlinear) for p in node.inputs}
    read = max((math.prod(parent.shape) for parent in parents), default=0)
    rows = max(2 * min(read, ROWS_AT_ONCE), *output.shape)
    return like.element_size() * (_COPIES * rows * max(sizes) + _ENDS * sum(sizes))


def bytes_of_ranges(output: Node, like: Tensor) -> int:
    """Estimate of what intervals of one sample take: no slopes, and a row for each pair of outputs.

    Rows that all samples share are no more than that, since they are shared by as many samples as
    there are outputs.
    """
    sizes = [math.prod(node.shape) for node in ancestors(output)]
    rows = math.prod(output.shape) ** 2
    return like.element_size() * (_COPIES * rows + _ENDS * sum(sizes))


class Chunks:
    """Runs a function on chunks of samples; remembers across calls how many fit.

    Args:
        max_bytes: aimed at; None takes half of what a GPU has free, or 1 GiB on a CPU.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        check_max_bytes(max_bytes)
        self.max_bytes = max_bytes
        self.most = self.size = 0
        self.dtype: torch.dtype | None = None  # that the size is known for
        self._calm = 0

    def fit(self, needed: int, like: Tensor) -> None:
        """Estimate the size of a chunk; one that was found by running out of memory stays.

        Args:
            needed: bytes that one sample takes.
            like: a tensor of the precision and on the device of the bounds.
        """
        limit = _free(like.device) if self.max_bytes is None else self.max_bytes
        most = max(1, limit // needed)
        self.size = most if self.size == self.most else min(self.size, most)
        self.most, self.dtype = most, like.dtype

    def map(self, run: Callable[[Tensor], Tensor], chosen: Tensor) -> Tensor:
        """``run`` on chunks of ``chosen``, joined.

        Args:
            run: from indices ``(b,)`` to one row each; called again with fewer when memory runs
                out.
            chosen: ``(B,)`` indices, at least one.

        Raises:
            RuntimeError: memory runs out for a single sample.
        """
        parts: list[Tensor] = []
        at = 0
        while at < len(chosen):
            some = chosen[at : at + self.size]
            part = run(some) if len(some) == 1 else _attempt(run, some)
            if part is None:  # outside of the except block, which would keep the tensors alive
                self.size, self._calm = len(some) // 2, 0
                continue
            parts.append(part)
            at += len(some)
            self._calm += 1
            if self._calm >= _CALM:
                self.size, self._calm = min(2 * self.size, self.most), 0
        return torch.cat(parts)


def _attempt(run: Callable[[Tensor], Tensor], some: Tensor) -> Tensor | None:
    """The result, or None where memory runs out."""
    try:
        return run(some)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if some.is_cuda:
        torch.cuda.empty_cache()
    return None


def _free(device: torch.device) -> int:
    """Bytes to aim at where the caller named none."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _CPU_BYTES
