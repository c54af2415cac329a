"""The command ``popqorn-train``: training by configuration, and everything that needs none.

``fit``, ``validate`` and ``test`` are a LightningCLI (training.py); every other command is that
of ``popqorn_train.cli``, for which Lightning is not imported: it takes many seconds.
"""

import sys
from collections.abc import Sequence

from popqorn_train.recipes.configurations import configs

TRAINING = {
    "fit": "train, then certify and attack the test set",
    "validate": "watch a checkpoint on the validation set",
    "test": "certify and attack the test set with a checkpoint",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0 where it succeeded."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in TRAINING:
        return _train(given)
    if not given or given[0] in ("-h", "--help"):
        _print_training()
        given = ["--help"]
    from popqorn_train.cli import main as other

    return other(given)


def _print_training() -> None:
    print("training, by a configuration (popqorn-train fit --config NAME_OR_FILE):")
    for command, meaning in TRAINING.items():
        print(f"  {command:<12}{meaning}")
    print(f"  configurations by name: {', '.join(configs())}")
    print("  more: popqorn-train fit --help\n\neverything else:", flush=True)


def _train(given: list[str]) -> int:
    try:
        from popqorn_train.recipes.training import start
    except ImportError as error:
        needed = 'pip install "popqorn-train[recipes]"'
        print(f"popqorn-train {given[0]} needs more packages ({error}): {needed}", file=sys.stderr)
        return 1
    return start(given)


if __name__ == "__main__":
    sys.exit(main())
