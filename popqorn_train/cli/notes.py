"""What a command says on standard error, in lines that fit the terminal."""

import shutil
import sys
import textwrap


def say(text: str) -> None:
    """Print text on standard error, folded where that is a terminal."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        text = "\n".join(textwrap.fill(line, width) for line in text.splitlines())
    print(text, file=sys.stderr)


def note(text: object) -> None:
    """Say something that keeps no command from being carried out."""
    say(f"note: {text}")
