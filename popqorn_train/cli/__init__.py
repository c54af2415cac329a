"""What can be asked from a shell?

Goes in: the arguments of ``popqorn-train certify``, ``compare``, ``doctor`` and ``supported``.
Comes out: rows, pictures and a report in a folder, tables on standard output, an exit status.
Must not know: how anything is bounded, trained or drawn; ``fit``, ``validate`` and ``test`` are
commands of the recipes.
"""

import argparse
from collections.abc import Sequence

from popqorn_train.cli.certify import add_certify
from popqorn_train.cli.compare import add_compare
from popqorn_train.cli.doctor import add_doctor
from popqorn_train.operations.tables import supported_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0 where it was carried out, 1 where it was refused or failed, with one
        sentence on standard error, 2 for a command that cannot be read, 130 where it was stopped.
    """
    parser = argparse.ArgumentParser(prog="popqorn-train", description="Certified RNN classifiers.")
    commands = parser.add_subparsers(dest="command", required=True)
    add_certify(commands)
    add_compare(commands)
    add_doctor(commands)
    supported = commands.add_parser("supported", help="print the table of what can be bounded")
    supported.set_defaults(run=_print_supported)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


def _print_supported(options: argparse.Namespace) -> int:
    print(supported_table())
    return 0
