"""What a recipe leaves in its folder: results.json, radii.csv, a picture and a table."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from popqorn_train.evaluation.confidence import widest
from popqorn_train.evaluation.summaries import aligned
from popqorn_train.plots import draw_accuracy_curves
from popqorn_train.recipes.evaluation import Evaluation, EvaluationSettings
from popqorn_train.recipes.word_evaluation import WordEvaluation

SCHEMA = 1  # of results.json
_WORDS = "words replaced by synonyms at once; the last point: all of them"
_PACKAGES = ("popqorn-train", "torch", "pytorch-lightning", "torchmetrics", "numpy")


def versions() -> dict[str, str]:
    """Of everything that a number may depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from its sources
            found[package] = "not installed"
    return found


def model_results(
    evaluations: Sequence[Evaluation | WordEvaluation],
    train_seconds: float | None,
    nearest_neighbour: float | None,
) -> dict[str, Any]:
    """What results.json says of one model.

    Args:
        evaluations: of ``evaluate``; the headline is the last one.
        train_seconds: None where the model was not trained in this run.
        nearest_neighbour: median distance between words, for text.
    """
    plain = [evaluation.plain() for evaluation in evaluations]
    if nearest_neighbour is not None:
        for entry in plain:
            relative = entry["median_radius"] / nearest_neighbour
            entry["median_radius_over_nearest_neighbour"] = relative
    seconds = None if train_seconds is None else round(train_seconds, 2)
    return {"train_seconds": seconds, "evaluations": plain}


def write_results(
    folder: Path,
    models: dict[str, dict[str, Any]],
    *,
    name: str,
    seed: int | None,
    config: dict[str, Any],
    nearest_neighbour: float | None,
) -> Path:
    """Write results.json, in one piece.

    Args:
        folder: of the run.
        models: what ``model_results`` says of each.
        name: of the recipe.
        seed: of the run.
        config: all of it, as plain values.
        nearest_neighbour: median distance between words, for text.
    """
    content = {
        "schema": SCHEMA,
        "recipe": name,
        "seed": seed,
        "models": models,
        "nearest_neighbour_distance": nearest_neighbour,
        "seconds_are": "GPU, wall clock" if torch.cuda.is_available() else "CPU, of the process",
        "versions": versions(),
        "config": config,
    }
    path = folder / "results.json"
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    unfinished.replace(path)
    return path


def table(models: dict[str, dict[str, Any]]) -> str:
    """One column per model and method, in %."""
    first = next(iter(models.values()))["evaluations"][0]
    words = "budgets" in first
    sizes = [str(b) for b in first["budgets"]] if words else [f"{e:g}" for e in first["epsilons"]]
    sizes = [f"{level:g} dB" for level in first.get("decibels", ())] or sizes
    attack, key = ("attack", "attacked_accuracy") if words else ("PGD", "pgd_accuracy")
    relative = "median_radius_over_nearest_neighbour" in first
    head = ["model", "method", "samples", "clean", *[f"{attack} {size}" for size in sizes]]
    head += [*[f"cert {size}" for size in sizes], *["median"] * (not words)]
    rows = [[*head, *["median/nn"] * relative]]
    for name, model in models.items():
        for entry in model["evaluations"]:
            attacked = entry[key] or [None] * len(sizes)
            shares = [entry["clean_accuracy"], *attacked, *entry["certified_accuracy"]]
            cells = [name, entry["method"], str(entry["samples"]), *map(_percent, shares)]
            if not words:
                cells.append(_median(entry))
            if relative:
                cells.append(f"{entry['median_radius_over_nearest_neighbour']:.3f}")
            rows.append(cells)
    lines = aligned([list(row) for row in zip(*rows, strict=True)]).splitlines()
    entries = [entry for model in models.values() for entry in model["evaluations"]]
    shares = [share for entry in entries for share in entry["certified_accuracy"]]
    return "\n".join([*lines, widest(shares, min(entry["samples"] for entry in entries))])


def _median(entry: dict[str, Any]) -> str:
    if "decibels" not in entry:
        return f"{entry['median_radius']:.4f}"
    level = entry["median_decibels"]
    return "-" if level is None else f"{level:.1f} dB"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def draw(
    folder: Path,
    evaluations: Mapping[str, Evaluation | WordEvaluation],
    settings: EvaluationSettings,
) -> Path:
    """Draw certified and attacked accuracy against what moves, one colour per model."""
    words = any(isinstance(found, WordEvaluation) for found in evaluations.values())
    figure, _ = draw_accuracy_curves(
        [evaluation.curve(f"{name} training") for name, evaluation in evaluations.items()],
        xlabel=_WORDS if words else _described(settings),
        title="What is proved (solid), and what an attack leaves standing (dashed)",
    )
    path = folder / "certified_accuracy.png"
    figure.savefig(path, dpi=120)
    return path


def _described(settings: EvaluationSettings) -> str:
    """What moves, on an axis."""
    norm = "l_inf" if settings.p == float("inf") else f"l_{settings.p:g}"
    chosen = [name for name in ("frames", "features") if getattr(settings, name) is not None]
    domain = f", chosen {' and '.join(chosen)}" if chosen else ""
    if settings.low is not None and settings.high is not None:
        domain += f", within [{settings.low:g}, {settings.high:g}]"
    moved = "frame" if settings.decibels is None else "sample over the peak"
    return f"perturbation of every {moved}, epsilon ({norm}{domain})"
