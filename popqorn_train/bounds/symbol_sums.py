"""Sums of absolute values over all symbols of a block, a few symbols at a time.

What is worked on at once fits a cache: these sums read as much memory as everything else together.

B: batch, n: symbols of a block.
"""

import torch
from torch import Tensor

from popqorn_train.bounds.forms import Block

_BYTES = 2**18  # of coefficients at once


def _parts(data: Tensor) -> int:
    """Symbols at once."""
    return max(1, _BYTES // max(1, data[0].numel() * data.element_size()))


def absolute_sum(data: Tensor) -> Tensor:
    """Sum of ``|data|`` over the first axis."""
    first, *rest = (part.abs().sum(0) for part in torch.split(data, _parts(data)))
    return sum(rest, first)


def absolute_sums(x: Block | None, y: Block | None, on_x: Tensor, on_y: Tensor) -> list[Tensor]:
    """Sums over all symbols of ``|on_x x + on_y y|`` and of ``|on_x x - on_y y|``.

    Args:
        x: coefficients of one form; None for none.
        y: of another one.
        on_x: ``(B, *shape)`` scale of the first.
        on_y: of the second.
    """
    zero = torch.zeros_like(on_x)
    plus, minus = zero, zero
    start, stop = _overlap(x, y)
    for block, scale in ((x, on_x), (y, on_y)):
        if block is None:
            continue
        before = block.data[: max(0, min(start, block.stop) - block.start)]
        after = block.data[max(0, stop - block.start) :]
        for rest in (before, after):
            if len(rest):
                alone = absolute_sum(rest) * scale.abs()
                plus, minus = plus + alone, minus + alone
    if x is not None and y is not None and start < stop:
        both = [block.data[start - block.start : stop - block.start] for block in (x, y)]
        size = _parts(both[0])
        for one, other in zip(*[torch.split(data, size) for data in both], strict=True):
            one, other = one * on_x, other * on_y
            plus = plus + (one + other).abs().sum(0)
            minus = minus + (one - other).abs().sum(0)
    return [plus, minus]


def _overlap(x: Block | None, y: Block | None) -> tuple[int, int]:
    """The symbols that both have; of no width behind all if there are none."""
    stop = max([block.stop for block in (x, y) if block is not None], default=0)
    if x is None or y is None:
        return stop, stop
    start, end = max(x.start, y.start), min(x.stop, y.stop)
    return (start, end) if start < end else (stop, stop)
