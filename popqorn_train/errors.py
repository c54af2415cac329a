"""Errors that every layer raises, or must let through."""

from collections.abc import Mapping

import torch


class UnsupportedModelError(ValueError):
    """The model does something that cannot be bounded; the message says where and what to do."""


class UnboundedStepError(UnsupportedModelError):
    """A step of forward has no bound.

    Args:
        what: which one, and where.
        way_out: what to do.
    """

    def __init__(self, what: str, way_out: str) -> None:
        super().__init__(f"{what} {way_out}")
        self.what, self.way_out = what, way_out


class ContradictionError(UnsupportedModelError):
    """A model was seen to do otherwise than what was proved of its graph; nothing is certified."""


class MixedSamplesError(UnsupportedModelError):
    """The model lets samples of a batch mix, so that bounds for one of them alone prove nothing."""


class BrokenWeightsError(ValueError):
    """Weights hold NaN or infinity, so that nothing can be said of any sample."""


class BadSamplesError(ValueError):
    """Some samples of a batch cannot be asked about; the others can.

    Args:
        text: says so.
        errors: what is wrong with each of them.
    """

    def __init__(self, text: str, errors: Mapping[int, str]) -> None:
        super().__init__(text)
        self.errors = errors


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
