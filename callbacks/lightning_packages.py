"""Lightning under both of its names: ``pytorch_lightning`` and ``lightning.pytorch``.

The two packages hold the same code twice, with classes of their own: a callback of the one is no
callback to the command line of the other, a logger of the one no logger. So a base class here is
derived from its namesakes in every package that is installed, and what a trainer holds is looked
for in all of them. Every other module of this package takes Lightning from here.
"""

import contextlib
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import lightning_utilities.core.rank_zero as messages
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

__all__ = [
    "Callback",
    "EarlyStopping",
    "LightningModule",
    "Trainer",
    "TrainerFn",
    "isolate_rng",
    "namesakes",
    "rank_zero_info",
    "rank_zero_warn",
]

_REQUIRED, _OTHER = "pytorch_lightning", "lightning.pytorch"


def _imported() -> list[ModuleType]:
    """Every Lightning that is installed.

    The last one to be imported prints the messages of both; who has imported one already
    listens to that.
    """
    log = messages.log if {_REQUIRED, _OTHER} & set(sys.modules) else None
    found: list[ModuleType] = []
    with contextlib.suppress(ImportError):  # it need not be installed
        found.append(import_module(_OTHER))
    found.insert(0, import_module(_REQUIRED))
    messages.log = log or messages.log
    return found


_PACKAGES = _imported()


def namesakes(home: str, name: str) -> tuple[type[Any], ...]:
    """The classes of one name in all packages.

    Args:
        home: the module inside each package that exports the class.
        name: of the class.
    """
    homes = [import_module(f"{package.__name__}.{home}") for package in _PACKAGES]
    return tuple(getattr(module, name) for module in homes)


def _common(home: str, name: str) -> type[Any]:
    """A class that every package takes for its own; its methods are those of the first one."""
    first, *others = namesakes(home, name)
    initialised = {"__init__": lambda self, *_, **__: None, "__module__": __name__}  # by the first
    bases = [type(f"_{name}", (other,), initialised) for other in others]
    return type(name, (first, *bases), {"__module__": __name__, "__doc__": first.__doc__})


if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
    from pytorch_lightning.callbacks import EarlyStopping
    from pytorch_lightning.trainer.states import TrainerFn
    from pytorch_lightning.utilities.seed import isolate_rng
else:
    Callback = _common("callbacks", "Callback")
    EarlyStopping = _common("callbacks", "EarlyStopping")
    LightningModule, Trainer = _PACKAGES[0].LightningModule, _PACKAGES[0].Trainer
    TrainerFn = import_module(f"{_REQUIRED}.trainer.states").TrainerFn  # compares as text
    isolate_rng = import_module(f"{_REQUIRED}.utilities.seed").isolate_rng
