"""Every objective on the same data, network and schedule: what it reaches, and what it costs.

python -m popqorn_train.recipes.experiments.objectives --config digits --at 0.05

A packaged configuration is trained once with each objective, its other settings unchanged, and
without its monitor. Seconds are those of training alone, beside training by cross entropy for as
many epochs.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popqorn_train.objectives import OBJECTIVES
from popqorn_train.recipes.console import prepare
from popqorn_train.recipes.experiments.common import write_numbers
from popqorn_train.recipes.training import run as run_recipe

_RAMPED = '[{"class_path": "EpsilonSchedule", "init_args": {"warmup": 0.1, "ramp": 0.5}}]'


@dataclass(frozen=True)
class Config:
    """Every number of the comparison.

    Attributes:
        config: name of a packaged configuration, or a file.
        at: epsilons at which networks are certified and attacked.
        objectives: names, see ``popqorn_train.objectives.OBJECTIVES``; standard always comes too.
        epochs: of every training.
        samples: certified by the configuration's method and attacked; all by intervals.
        seed: of training.
        folder: of the results.
    """

    config: str = "digits"
    at: tuple[float, ...] = (0.05,)
    objectives: tuple[str, ...] = tuple(OBJECTIVES)
    epochs: int = 40
    samples: int = 50
    seed: int = 0
    folder: Path = Path("runs/experiments/objectives")


def run(config: Config) -> dict[str, Any]:
    """Train by every objective, and return the numbers that are written.

    Raises:
        ConfigurationError: see ``training.run``.
    """
    names = ["standard", *(name for name in config.objectives if name != "standard")]
    rows = {name: _row(config, name) for name in names}
    for row in rows.values():
        row["of_standard"] = round(row["train_seconds"] / rows["standard"]["train_seconds"], 1)
    numbers = {
        "experiment": "objectives",
        "config": config.config,
        "epochs": config.epochs,
        "seed": config.seed,
        "epsilons": list(config.at),
        "objectives": rows,
    }
    write_numbers(config.folder, "objectives.json", numbers)
    print(said(numbers))
    return numbers


def _row(config: Config, name: str) -> dict[str, Any]:
    """Train, certify and attack."""
    folder = config.folder / name
    loss, callbacks = f"popqorn_train.objectives.{name.replace('-', '_')}", _RAMPED
    if name == "standard":
        loss, callbacks = "null", "null"
    options = {
        "folder": folder,
        "model.loss": loss,
        "trainer.callbacks": callbacks,
        "trainer.max_epochs": config.epochs,
        "standard_epochs": 0,
        "seed_everything": config.seed,
        "evaluation.epsilons": list(config.at),
        "evaluation.method_samples": config.samples,
        "evaluation.undecided_at": "null",
    }
    run_recipe(config.config, [f"--{option}={value}" for option, value in options.items()])
    (model,) = json.loads((folder / "results.json").read_text())["models"].values()
    strongest, every = model["evaluations"][-1], model["evaluations"][0]
    return {
        "clean": every["clean_accuracy"],
        "pgd": strongest["pgd_accuracy"],
        "certified": strongest["certified_accuracy"],
        "certified_by_intervals": every["certified_accuracy"],
        "train_seconds": model["train_seconds"],
    }


def said(numbers: dict[str, Any]) -> str:
    """The table, in %."""
    head = [f"{what} {epsilon:g}" for epsilon in numbers["epsilons"] for what in ("PGD", "cert")]
    head += [f"ibp {epsilon:g}" for epsilon in numbers["epsilons"]]
    titles = "".join(f"{title:>10}" for title in ["clean", *head, "seconds", "of std"])
    lines = [f"{'objective':<10}{titles}"]
    for name, row in numbers["objectives"].items():
        pairs = zip(row["pgd"], row["certified"], strict=True)
        shares = [row["clean"], *(share for pair in pairs for share in pair)]
        shares += row["certified_by_intervals"]
        cells = "".join(f"{100 * share:10.1f}" for share in shares)
        lines.append(f"{name:<10}{cells}{row['train_seconds']:10.1f}{row['of_standard']:10.1f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Every objective on the same data.")
    parser.add_argument("--config", default=Config.config, help="name of a configuration")
    parser.add_argument("--at", type=float, nargs="+", default=Config.at, help="epsilons")
    parser.add_argument(
        "--objectives", choices=OBJECTIVES, nargs="+", default=Config.objectives, metavar="NAME"
    )
    for name in ("epochs", "samples", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Config, name))
    parser.add_argument("--folder", type=Path, default=Config.folder)
    prepare()
    given = vars(parser.parse_args(arguments))
    lists = {name: tuple(given[name]) for name in ("at", "objectives")}
    run(Config(**{**given, **lists}))


if __name__ == "__main__":
    main()
