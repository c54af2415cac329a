"""Spoken digits of a speaker who was never heard: the recipe once for each, and their mean.

python -m popqorn_train.recipes.experiments.speakers -- --trainer.max_epochs=30

The configuration ``new_speaker`` is trained on all speakers but one, and certified by intervals
on utterances of that one, the standard network beside it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popqorn_train.recipes.console import prepare
from popqorn_train.recipes.data.spoken_digits import read_utterances
from popqorn_train.recipes.experiments.common import write_numbers
from popqorn_train.recipes.training import run as run_recipe


@dataclass(frozen=True)
class Config:
    """Every number of the experiment.

    Attributes:
        config: name of a packaged configuration, or a file.
        speakers: left out, one after another; None takes all.
        data: of the utterances; None takes ``$POPQORN_DATA`` or ``data``.
        decibels: of the perturbations, below the peak.
        samples: utterances of each speaker to certify, drawn by the seed 0; 0 takes them all.
        attacked: utterances of each speaker.
        seed: of training.
        changes: of the configuration, as on the command line.
        folder: of the results.
    """

    config: str = "new_speaker"
    speakers: tuple[str, ...] | None = None
    data: Path | None = None
    decibels: tuple[float, ...] = (-70.0, -60.0)
    samples: int = 200
    attacked: int = 20
    seed: int = 0
    changes: tuple[str, ...] = ()
    folder: Path = Path("runs/experiments/speakers")


def run(config: Config) -> dict[str, Any]:
    """Train once for each speaker, and return the numbers that are written.

    Raises:
        ConfigurationError: see ``training.run``.
    """
    known = sorted({str(name) for name in read_utterances(config.data)[2]})
    models = {name: _models(config, name) for name in config.speakers or known}
    kinds = list(next(iter(models.values())))
    numbers = {
        "experiment": "speakers",
        "config": config.config,
        "changes": list(config.changes),
        "seed": config.seed,
        "decibels": list(config.decibels),
        "speakers": models,
        "mean": {kind: _mean([rows[kind] for rows in models.values()]) for kind in kinds},
    }
    write_numbers(config.folder, "speakers.json", numbers)
    print(said(numbers))
    return numbers


def _models(config: Config, speaker: str) -> dict[str, dict[str, Any]]:
    """What both networks reach on a speaker whom they have not heard."""
    folder = config.folder / speaker
    options = {
        "folder": folder,
        "data.speaker": speaker,
        "seed_everything": config.seed,
        "evaluation.decibels": list(config.decibels),
        "evaluation.method": "ibp",
        "evaluation.method_samples": "null",
        "evaluation.undecided_at": "null",
        "evaluation.radii": "false",
        "evaluation.samples": config.samples or "null",
        "evaluation.attack_samples": config.attacked,
    }
    if config.data is not None:
        options["data.path"] = config.data
    arguments = [f"--{option}={value}" for option, value in options.items()]
    run_recipe(config.config, [*arguments, *config.changes])
    found = json.loads((folder / "results.json").read_text())["models"]
    return {kind: _row(model) for kind, model in found.items()}


def _row(model: dict[str, Any]) -> dict[str, Any]:
    (intervals,) = model["evaluations"]
    return {
        "clean": intervals["clean_accuracy"],
        "certified": intervals["certified_accuracy"],
        "pgd": intervals["pgd_accuracy"],
        "train_seconds": model["train_seconds"],
    }


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of every number; lists run along the levels."""

    def mean(values: Sequence[Any]) -> Any:
        if isinstance(values[0], list):
            return [mean(column) for column in zip(*values, strict=True)]
        return sum(values) / len(values)

    return {name: mean([row[name] for row in rows]) for name in rows[0]}


def said(numbers: dict[str, Any]) -> str:
    """The table, in %."""
    titles = [f"{what} {level:g}" for what in ("cert", "PGD") for level in numbers["decibels"]]
    head = "".join(f"{title:>10}" for title in ["clean", *titles, "seconds"])
    lines = [f"{'speaker':<10}{'training':<10}{head}"]
    for name, rows in [*numbers["speakers"].items(), ("mean", numbers["mean"])]:
        for kind, row in rows.items():
            shares = [row["clean"], *row["certified"], *row["pgd"]]
            cells = "".join(f"{100 * share:10.1f}" for share in shares)
            lines.append(f"{name:<10}{kind:<10}{cells}{row['train_seconds']:10.0f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Speakers who were never heard.")
    parser.add_argument("--config", default=Config.config, help="name of a configuration")
    parser.add_argument("--speakers", nargs="+", default=None)
    parser.add_argument("--data", type=Path, default=None, help="spoken_digits.npz or its folder")
    parser.add_argument("--decibels", type=float, nargs="+", default=Config.decibels)
    for name in ("samples", "attacked", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Config, name))
    parser.add_argument("--folder", type=Path, default=Config.folder)
    parser.add_argument("changes", nargs="*", help="of the configuration, behind --")
    prepare()
    given = vars(parser.parse_args(arguments))
    lists = {name: tuple(given[name]) for name in ("decibels", "changes")}
    speakers = None if given["speakers"] is None else tuple(given["speakers"])
    run(Config(**{**given, **lists, "speakers": speakers}))


if __name__ == "__main__":
    main()
