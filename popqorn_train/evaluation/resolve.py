"""Things that a command names: ``module:Name``, looked up beside where the command runs."""

import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

# Names that commands may shorten, unless a module of the user's has the name.
_SHORT = {"zoo": "popqorn_train.recipes.zoo"}


def resolved(name: str, option: str) -> Any:
    """Import ``module:Name``, also from the current folder; ``zoo:NAME`` is that of the recipes.

    Args:
        name: of a class, a function or an object; dots reach into it.
        option: what the user calls it, for the error.

    Raises:
        ValueError: there is no such thing.
    """
    module, _, attribute = name.partition(":")
    if not any((Path.cwd() / own).exists() for own in (module, f"{module}.py")):
        module = _SHORT.get(module, module)
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"`{option}` must be module:Name, got {name!r}: {error}.") from error
    finally:
        sys.path.pop(0)
    return found


def resolved_model(name: str) -> nn.Module:
    """Import a model; a class or a function is called without arguments.

    Raises:
        ValueError: there is no such thing, or it is no module.
    """
    found = resolved(name, "model")
    if not isinstance(found, nn.Module):
        try:
            found = found()
        except TypeError as error:
            raise ValueError(
                f"`model` {name!r} needs arguments ({error}). Name a function that makes it."
            ) from error
    if not isinstance(found, nn.Module):
        raise ValueError(f"`model` must be an nn.Module, got {type(found).__name__}.")
    return found
