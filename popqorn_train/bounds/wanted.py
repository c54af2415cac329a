"""Which gradients are asked for, where autograd does not tell.

An operation of ours learns which of its inputs have a gradient, not which gradients are asked for
now. Where only that in a slope is, those of weights and of lines would be worked out in vain.
"""

import contextlib
import threading
from collections.abc import Iterator

_here = threading.local()  # of a GPU, gradients are worked out on another thread: all of them


@contextlib.contextmanager
def slopes_alone() -> Iterator[None]:
    """Only gradients in slopes are asked for within."""
    before = only_slopes()
    _here.alone = True
    try:
        yield
    finally:
        _here.alone = before


def only_slopes() -> bool:
    """Whether only gradients in slopes are asked for."""
    alone: bool = getattr(_here, "alone", False)
    return alone
