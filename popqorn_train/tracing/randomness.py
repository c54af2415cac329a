"""Random numbers that a forward draws in eval mode.

They are seen as the operations that draw them, whichever generator they use, also inside layers. To
compare two runs would not do: both start from the same state, and other threads draw too.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from popqorn_train.errors import UnsupportedModelError


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the random operations of this thread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """The compiler, which takes seconds to import, is not asked to leave operations alone.

        Whoever has imported it runs models as they are written (wrappers.py).
        """
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and draws(func, args, kwargs):
            self.found.append(func.__name__)
        return func(*args, **kwargs)


def draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a random operation draws: attention and cuDNN's layers do for their dropout only."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    share = {"dropout", "dropout_p"}.intersection(names)
    if not share:
        return True
    return bool(given.get("train", True)) and any(given.get(name, 0) for name in share)


@contextlib.contextmanager
def nothing_random(model: nn.Module) -> Iterator[None]:
    """Refuse random numbers drawn inside, and put the generators back where they were.

    Raises:
        UnsupportedModelError: naming the operation.
    """
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    state = torch.get_rng_state()
    states = {device: torch.cuda.get_rng_state(device) for device in devices}
    seen = _Draws()
    with seen:
        yield
    if not seen.found:
        return
    torch.set_rng_state(state)
    for device, saved in states.items():
        torch.cuda.set_rng_state(saved, device)
    raise UnsupportedModelError(
        f"The forward of {type(model).__name__} draws random numbers in eval mode "
        f"({seen.found[0]}), so it is not one function. Draw them outside and pass them in, or "
        "skip them in eval mode."
    )
