"""What can be asked from a shell?

Goes in: the arguments of ``popqorn-train certify``, ``merge``, ``compare``, ``doctor`` and
``supported``.
Comes out: rows, pictures and a report in a folder, tables on standard output, an exit status.
Must not know: how anything is bounded, trained or drawn; ``fit``, ``validate`` and ``test`` are
commands of the recipes.
"""

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from popqorn_train.cli.certify import add_certify
from popqorn_train.cli.compare import add_compare
from popqorn_train.cli.doctor import add_doctor
from popqorn_train.cli.machine import versions
from popqorn_train.cli.notes import say
from popqorn_train.cli.shards import add_merge
from popqorn_train.operations.tables import supported_table


def main(
    arguments: Sequence[str] | None = None, others: Mapping[str, str] | None = None, more: str = ""
) -> int:
    """Run a command.

    Args:
        arguments: without the name of the program; None takes those of this process.
        others: commands that are carried out elsewhere, and what they do, for the list.
        more: said below the list.

    Returns:
        The exit status: 0 where it was carried out, 1 where it was refused or failed, with one
        sentence on standard error, 2 for a command that cannot be read, 130 where it was stopped.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser, names = _commands(others or {}, more)
    if given and not given[0].startswith("-") and given[0] not in names:
        near = difflib.get_close_matches(given[0], names, 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        say(
            f"popqorn-train: there is no command {given[0]!r}.{meant} Commands: {', '.join(names)}."
        )
        return 2
    options = parser.parse_args(given)
    options.arguments = given[1:]
    status: int = options.run(options)
    return status


def _commands(others: Mapping[str, str], more: str) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser, and the names of all commands."""
    parser = _Parser(
        prog="popqorn-train",
        description="Certified RNN, LSTM and GRU classifiers.",
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=versions())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, meaning in others.items():
        commands.add_parser(name, help=meaning)
    add_certify(commands)
    add_merge(commands)
    add_compare(commands)
    add_doctor(commands)
    supported = commands.add_parser("supported", help="print the table of what can be bounded")
    supported.set_defaults(run=_print_supported)
    return parser, [*commands.choices]


class _Parser(argparse.ArgumentParser):
    """Refuses in one sentence, not below twenty lines of usage."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with status 2."""
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help lists the options)\n")


def _print_supported(options: argparse.Namespace) -> int:
    print(supported_table())
    return 0
