"""The options of ``popqorn-train certify`` that divide the samples among processes."""

import argparse
from collections.abc import Callable

_FOR_RAY = ("workers", "address", "num_cpus", "num_gpus")


def add_scale_options(
    group: "argparse._ArgumentGroup", count: Callable[[str], int], positive: Callable[[str], float]
) -> None:
    """Add them.

    Args:
        group: of a parser.
        count: reads a number of things, from 1 on.
        positive: reads a number above 0.
    """
    group.add_argument(
        "--shard",
        help="certify a part of the batches, like 2/8, for popqorn-train merge to join",
    )
    group.add_argument(
        "--engine", choices=("ray",), help="certify by several processes, here or on a cluster"
    )
    group.add_argument("--workers", type=count, help="number of worker processes (default: 2)")
    group.add_argument(
        "--address", help="address of a cluster, host:port or auto (default: start Ray here)"
    )
    group.add_argument(
        "--num-cpus",
        type=positive,
        help="processors per worker (default: 0.9, or an equal share of this machine)",
    )
    group.add_argument("--num-gpus", type=positive, help="GPUs per worker (default: none)")


def check_scale(options: argparse.Namespace) -> None:
    """Refuse options that do not belong together.

    Raises:
        ValueError: two ways to divide the samples, or options of an engine without one.
    """
    if options.shard is not None and options.engine is not None:
        raise ValueError("`--shard` and `--engine` both divide the samples: leave one out.")
    given = [name for name in _FOR_RAY if getattr(options, name) is not None]
    if given and options.engine is None:
        name = given[0].replace("_", "-")
        raise ValueError(f"`--{name}` needs --engine ray.")
