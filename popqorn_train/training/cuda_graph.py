"""Programs that a CUDA device repeats by itself: Python starts one operation, not thousands."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_LOG = logging.getLogger("popqorn_train")

Program = Callable[..., Sequence[Tensor]]


def replayed(program: Program, inputs: Sequence[Tensor]) -> Program:
    """What a program does, recorded as a CUDA graph.

    Args:
        program: does the same with any numbers, and leaves its inputs as they are.
        inputs: of the sizes it is for, all on one CUDA device.

    Returns:
        A program that copies its inputs to a place of their own, and its results from there; the
        graph holds the memory that a run takes. The program itself where it cannot be recorded.
    """
    own = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in inputs]
    places, graph = [_once(x) for x in own], torch.cuda.CUDAGraph()
    try:
        with torch.cuda.device(own[0].device):
            torch._foreach_copy_(places, [_once(x) for x in inputs])
            _warm_up(program, own)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                found = program(*own)
    except RuntimeError as error:
        _LOG.warning(
            "CertifiedLoss: steps run without a CUDA graph: %s", str(error).splitlines()[0]
        )
        return program

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        torch._foreach_copy_(places, [_once(x) for x in inputs])
        graph.replay()
        return [x.clone() for x in found]

    return run


def _once(x: Tensor) -> Tensor:
    """A view of every number once, where an expanded tensor reads it for a whole axis."""
    for axis, step in enumerate(x.stride()):
        x = x if step else x[(slice(None),) * axis + (slice(1),)]
    return x


def _warm_up(program: Program, inputs: Sequence[Tensor]) -> None:
    """Run once outside the graph, beside the stream in use, as recording asks for."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        program(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
