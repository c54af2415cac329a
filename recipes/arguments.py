"""How the command line of the recipes is read: names of configurations and classes, errors."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from popqorn_train import callbacks
from popqorn_train.recipes.configurations import configs
from popqorn_train.recipes.data.digits import Digits
from popqorn_train.recipes.data.generated import Generated
from popqorn_train.recipes.data.japanese_vowels import JapaneseVowels
from popqorn_train.recipes.data.mnist_frames import MNISTFrames
from popqorn_train.recipes.data.news_titles import NewsTitles
from popqorn_train.recipes.data.pen_digits import PenDigits
from popqorn_train.recipes.data.spoken_digits import SpokenDigits
from popqorn_train.recipes.data.sst2 import SST2
from popqorn_train.recipes.data.trec import TREC

# What a configuration may name without its module: jsonargparse knows what was imported.
BY_NAME = (
    *(getattr(callbacks, name) for name in callbacks.__all__),
    *(ModelCheckpoint, CSVLogger, TensorBoardLogger, WandbLogger),
    *(Digits, Generated, JapaneseVowels, MNISTFrames, NewsTitles, PenDigits),
    *(SpokenDigits, SST2, TREC),
)
# What jsonargparse wraps around the error of a class.
_WRAPPED = ("Does not validate against", "Problem with given class_path")


class ConfigurationError(ValueError):
    """A configuration that can be read, but of which nothing can be made."""


class Parser(LightningArgumentParser):
    """Takes options by their whole names, and says what is wrong without listing all of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allow_abbrev = False  # --trainer.max_epoch is a slip, not --trainer.max_epochs

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse the arguments."""
        raise ConfigurationError(_shortened(message.strip())) from ex


def _shortened(message: str) -> str:
    """One sentence where jsonargparse tells of every type that a class is not."""
    found = re.search(r"key \"?([\w.]+)\"?.*dot import path string: (\w+)\b", message, re.DOTALL)
    if found is None:
        return message
    key, name = found.groups()
    known = [one.__name__ for one in BY_NAME]
    near = difflib.get_close_matches(name, known, 1)
    meant = f" Did you mean {near[0]}?" if near else f" Known by name: {', '.join(known)}."
    return f"--{key}: there is no class {name!r}.{meant} Name others by module.Class."


def own_words(error: BaseException) -> str:
    """What a class said, without what jsonargparse wraps around it."""
    while str(error).startswith(_WRAPPED) and error.__cause__ is not None:
        error = error.__cause__
    return str(error)


def with_packaged(arguments: Sequence[str]) -> list[str]:
    """Replace names of packaged configurations by their files.

    Raises:
        ConfigurationError: neither a file nor such a name.
    """
    given = list(arguments)
    for at, argument in enumerate(given):
        option, equals, value = argument.partition("=")
        if option not in ("--config", "-c"):
            continue
        if equals:
            given[at] = f"{option}={_config_file(value)}"
        elif at + 1 < len(given):
            given[at + 1] = _config_file(given[at + 1])
    return given


def _config_file(value: str) -> str:
    if Path(value).is_file():
        return value
    packaged = configs()
    if value not in packaged:
        raise ConfigurationError(
            f"--config must be a file or one of {', '.join(packaged)}, got {value!r}."
        )
    return str(packaged[value])
