"""Weights from a file into a model, without running anything that the file holds."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from popqorn_train.evaluation.stored import check_unpacked

_KEYS = ("state_dict", "model_state_dict", "model_state", "model")  # of Lightning, of tutorials


def load_weights(model: nn.Module, path: Path, prefix: str = "") -> None:
    """Load a state dict, or one inside a checkpoint of Lightning or of a training loop.

    Args:
        model: changed in place.
        path: of the file; read with ``weights_only=True``.
        prefix: of the names that belong to the model, for example ``"net."``; it is cut off, and
            all other names are left out.

    Raises:
        ValueError: the file is no state dict, or does not fit the model.
        OSError: it cannot be read.
    """
    state = _state(path)
    if prefix:
        own = {name: value for name, value in state.items() if name.startswith(prefix)}
        if not own:
            raise ValueError(
                f"no name in {path} begins with `--prefix` {prefix!r}; it holds {_some(state)}."
            )
        state = {name.removeprefix(prefix): value for name, value in own.items()}
    wanted = set(model.state_dict())
    if set(state) != wanted:
        raise ValueError(_misfit(path, set(state), wanted))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        shapes = str(error).splitlines()[-1].strip()
        raise ValueError(f"`--checkpoint` {path} does not fit the model: {shapes}") from error


def _state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"`--checkpoint` must be a file, got {path}.")
    check_unpacked(path, packed=False)  # torch.save does not compress
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no checkpoint fails in many ways
        raise ValueError(
            f"`--checkpoint` {path} cannot be read as weights alone. If you trust it, save them: "
            f"torch.save(torch.load(path, weights_only=False){_weights_in(path)}, 'weights.pt')."
        ) from error
    inside = [n for n in _KEYS if isinstance(found, dict) and isinstance(found.get(n), dict)]
    state = found[inside[0]] if inside else found
    tensors = isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())
    if not tensors or not state:
        raise ValueError(
            f"`--checkpoint` must hold a state dict of tensors, or one under "
            f"{' or '.join(map(repr, _KEYS))}, got {_described(found)} in {path}."
        )
    return state


def _weights_in(path: Path) -> str:
    """How to reach the weights in a file that cannot be read safely: a module, or a dictionary."""
    try:
        globals_ = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no file of torch.save
        globals_ = []
    pickled = any(name.startswith("torch.nn.modules") for name in globals_)
    return ".state_dict()" if pickled else "['state_dict']"


def _described(found: Any) -> str:
    if not isinstance(found, dict):
        return type(found).__name__
    return f"a dictionary of {_some(map(str, found))}" if found else "an empty dictionary"


def _misfit(path: Path, names: set[str], wanted: set[str]) -> str:
    """What is wrong, and the prefix that would mend it, if there is one."""
    missing, strange = wanted - names, names - wanted
    text = f"`--checkpoint` {path} does not fit the model:"
    if missing:
        text += f" it lacks {_some(missing)};"
    if strange:
        text += f" it has {_some(strange)} besides;"
    for prefix in sorted(
        {name[: -len(one)] for one in wanted for name in names if name.endswith(f".{one}")}
    ):
        if all(prefix + name in names for name in wanted):
            return f"{text} --prefix {prefix} would fit."
    return f"{text} name another file, or --prefix of the sub-module."


def _some(names: Any) -> str:
    first = sorted(names)
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")
