"""``popqorn-train doctor`` without a model: what certificates run on here."""

import platform
from collections.abc import Iterator

import torch

from popqorn_train import __version__
from popqorn_train.kernels.compiler import cache_folder
from popqorn_train.kernels.library import cuda_loops, kernels


def versions() -> str:
    """Of this package, torch and Python."""
    return (
        f"popqorn-train {__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}"
    )


def machine_lines() -> Iterator[str]:
    """Versions, devices, and whether the compiled loops run, or why not."""
    yield f"versions: {versions()}, {platform.system()} {platform.machine()}"
    yield f"devices:  cpu ({torch.get_num_threads()} threads), {_accelerators()}"
    known = kernels()
    if known.library is None:
        yield f"kernels:  none, torch does their work: {known.reason}"
    else:
        yield f"kernels:  compiled loops run for float32 and float64 on the cpu, {known.file}"
    for index in range(torch.cuda.device_count()):
        reason = cuda_loops(torch.device("cuda", index)).reason
        yield f"          cuda:{index}: " + (f"none: {reason}" if reason else "compiled loops run")
    yield f"cache:    {cache_folder()}"


def _accelerators() -> str:
    count = torch.cuda.device_count()
    names = [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(count)]
    return ", ".join(names) or "no cuda"
