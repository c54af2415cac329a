"""Whether another process can rebuild a model, decided before training."""

import ast
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from torch import nn

from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.errors import UnsupportedModelError
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.worker import Job

_MAIN = b"__main__"
_HOOKS = "_hooks"
_LEFT = ("_modules", "_trainer", "_fabric")  # looked at by themselves, or no part of a copy


def refusal(why: str) -> UnsupportedModelError:
    """The error for a model that cannot be certified in the background."""
    return UnsupportedModelError(
        f"CertifiedRadiusMonitor(background=True) certifies a copy in a worker process, {why}; "
        "or leave `background` off."
    )


def main_script(model: BoundModel, question: Examination) -> dict[str, str] | None:
    """What a worker must import to rebuild a model: the script of the training, or nothing.

    Returns:
        Its ``name`` as a module, or its ``path``.

    Raises:
        UnsupportedModelError: the model cannot be pickled, or needs a script that cannot be
            imported.
    """
    try:
        data = Job.of(model, question, ()).packed()
    except Exception as error:
        raise refusal(
            f"which this one cannot reach: {_culprit(model.model)} cannot be pickled "
            f"({type(error).__name__}: {error}). Define it at the top of a module, or name the "
            "sub-module that gives the logits with `model`"
        ) from error
    return _script(sys.modules["__main__"]) if _MAIN in data else None


def _script(main: ModuleType) -> dict[str, str]:
    file = getattr(main, "__file__", None)
    if file is None:
        raise refusal(
            "which cannot import what a notebook or an interactive session defines. Move the "
            "classes of the model to a module and import them"
        )
    if not _guarded(Path(file)):
        raise refusal(
            f"which imports the classes of the model from {Path(file).name} and would start the "
            "training in it again. Put the training under `if __name__ == '__main__':`, or move "
            "the classes to another module"
        )
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return {"name": spec.name}
    return {"path": str(Path(file).resolve())}


def _guarded(file: Path) -> bool:
    """Whether a script keeps to itself what it does when it is run, not imported."""
    try:
        tree = ast.parse(file.read_text())
    except (OSError, SyntaxError, UnicodeDecodeError):
        return False
    tests = [ast.unparse(part.test) for part in tree.body if isinstance(part, ast.If)]
    return any("__name__" in test and "__main__" in test for test in tests)


def _culprit(model: nn.Module) -> str:
    """Which part of a model cannot be pickled, in words."""
    for name, part in model.named_modules():
        at = f"`{name}` of {type(model).__name__}" if name else type(model).__name__
        if not _pickled(type(part)):
            return f"the class {type(part).__qualname__}"
        for key, value in _state(part).items():
            if key not in _LEFT and not _pickled(value):
                return f"a hook of {at}" if key.endswith(_HOOKS) else f"`{key}` of {at}"
    return type(model).__name__


def _state(part: nn.Module) -> dict[str, Any]:
    """What is pickled of a module; nothing where it refuses that by itself."""
    try:
        state = cast(Any, part).__getstate__()
    except Exception:  # whatever a user's module raises
        return {}
    return state if isinstance(state, dict) else {}


def _pickled(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # whatever a user's object raises
        return False
    return True
