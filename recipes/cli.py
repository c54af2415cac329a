"""The command ``popqorn-train``: training by configuration, and everything that needs none.

``fit``, ``validate`` and ``test`` are a LightningCLI (training.py); every other command is that
of ``popqorn_train.cli``, for which Lightning is not imported: it takes many seconds.
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from popqorn_train.recipes.configurations import configs

TRAINING = {
    "fit": "train, then certify and attack the test set",
    "validate": "watch a checkpoint on the validation set",
    "test": "certify and attack the test set with a checkpoint",
}


# What `--ckpt_path` may say besides a path.
_KEYWORDS = ("best", "last", "hpc", "registry", "null", "None")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0 where it succeeded."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in TRAINING:
        return _train(given)
    if any(argument.startswith("zoo:") for argument in given):
        from popqorn_train.recipes.zoo import with_defaults

        try:
            given = with_defaults(given)
        except ValueError as error:
            print(f"popqorn-train {given[0]}: {error}", file=sys.stderr)
            return 2
    from popqorn_train.cli import main as other

    more = (
        "fit, validate and test take a configuration (popqorn-train fit --config NAME_OR_FILE).\n"
        + textwrap.fill(f"Configurations by name: {', '.join(configs())}", 79)
    )
    return other(given or ["--help"], TRAINING, more)


def _missing(given: Sequence[str]) -> str | None:
    """A checkpoint that is named and not there: training code takes long to find out."""
    for at, argument in enumerate(given):
        option, equals, value = argument.partition("=")
        if option == "--ckpt_path":
            value = value if equals else "".join(given[at + 1 : at + 2])
            if value not in _KEYWORDS and "://" not in value and not Path(value).exists():
                return value
    return None


def _train(given: list[str]) -> int:
    if (path := _missing(given)) is not None:
        print(f"popqorn-train: --ckpt_path must be a file, got {path!r}.", file=sys.stderr)
        return 2
    try:
        from popqorn_train.recipes.training import start
    except ImportError as error:
        needed = 'pip install "popqorn-train[recipes]"'
        print(f"popqorn-train {given[0]} needs more packages ({error}): {needed}", file=sys.stderr)
        return 1
    return start(given)


if __name__ == "__main__":
    sys.exit(main())
