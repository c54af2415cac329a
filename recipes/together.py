"""Work that the processes of a training share after it, each with its part."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def processes() -> int:
    """How many processes are still there to share work; 1 where the others have left."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def shared(work: Callable[[str | None], T], count: int) -> list[T]:
    """What every process finds of its part, by rank, the same in every one.

    Args:
        work: told which shard to do, ``"1/2"`` for the first of two; None for everything.
        count: of ``processes``, all of which call this.

    Raises:
        RuntimeError: it failed in another process; what failed here is raised as it is.
    """
    if count == 1:
        return [work(None)]
    failure: Exception | None = None
    own: tuple[Any, str] = None, ""
    try:
        own = work(f"{torch.distributed.get_rank() + 1}/{count}"), ""
    except Exception as error:
        failure, own = error, (None, f"{type(error).__name__}: {error}")
    parts: list[tuple[Any, str]] = [own] * count
    torch.distributed.all_gather_object(parts, own)
    if failure is not None:
        raise failure
    for rank, (_, problem) in enumerate(parts):
        if problem:
            raise RuntimeError(f"process {rank} of {count} failed: {problem}")
    return [found for found, _ in parts]
