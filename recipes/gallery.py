"""Every kind of figure, drawn small for ``docs/gallery.md``: ``make gallery``.

Digits come from the results of ``make demo`` (trained first if need be), words,
planes and targets from the experiments of this folder, as far as they were run: ``--experiments``
names the folder of their results. What is missing is said, and its picture left as it is.
"""

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popqorn_train import frame_radii
from popqorn_train.plots import (
    Sentence,
    draw_certifications,
    draw_frame_strips,
    draw_image_rows,
    draw_radii_by_class,
    draw_radius_by_frame,
    draw_radius_histogram,
    draw_sentences,
    draw_training,
)
from popqorn_train.recipes.console import prepare
from popqorn_train.recipes.data.digits import Digits
from popqorn_train.recipes.digits import MODELS, Config
from popqorn_train.recipes.digits import run as run_digits
from popqorn_train.recipes.experiments import planes, targets
from popqorn_train.recipes.experiments.word_tables import UNIT
from popqorn_train.recipes.networks import load_net

_PIXELS = "l_inf, pixels in [0, 1]"
_ROW = "certified radius of the row alone (l_2)"
_IMAGES = 10
LARGEST = 150_000  # bytes of a picture

Figure = tuple[Any, Any]


def draw_gallery(
    folder: Path, digits: Path, experiments: Path, *, images: int = _IMAGES
) -> list[str]:
    """Draw what can be drawn; return the names.

    Args:
        folder: of the pictures.
        digits: results of the recipe ``digits``.
        experiments: folder of the results of the experiments.
        images: whose rows are looked at.

    Raises:
        ValueError: a picture that is too large for a repository.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in {**_of_digits(digits, images), **of_experiments(experiments)}.items():
        path = folder / f"{name}.png"
        figure = draw()[0]
        figure.savefig(path, dpi=90)
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path} must stay below {LARGEST} bytes; draw less in it.")
        drawn.append(name)
    return drawn


def _of_digits(folder: Path, images: int) -> dict[str, Callable[[], Figure]]:
    if not (folder / "radii.csv").is_file():
        run_digits(Config(folder=folder))
    radii, labels = _radii(folder)
    label = f"certified radius ({_PIXELS})"
    certified = folder / "certified"
    rows = _row_radii(folder, images)
    x, y = _images(images)
    names = [f"digit {int(digit)}" for digit in y]
    return {
        "epochs": lambda: draw_certifications(
            certified / "certification.jsonl", xlabel=f"perturbation epsilon ({_PIXELS})"
        ),
        "histogram": lambda: draw_radius_histogram(radii, xlabel=label),
        "classes": lambda: draw_radii_by_class(
            radii["certified training"], labels, xlabel=label, title="certified training"
        ),
        "training": lambda: draw_training(
            certified / "metrics.csv", certified / "certification.jsonl", unit=_PIXELS
        ),
        "strips": lambda: draw_frame_strips(
            rows["standard training"], names=names, xlabel="row of the image", unit=_ROW
        ),
        "rows": lambda: draw_image_rows(
            x,
            rows["standard training"],
            names=names,
            unit="certified radius of\nthe row alone (l_2)",
        ),
        "by_frame": lambda: draw_radius_by_frame(rows, xlabel="row of the image", ylabel=_ROW),
    }


def _radii(folder: Path) -> tuple[dict[str, list[float]], list[int]]:
    """Radii of both models, and the labels."""
    with (folder / "radii.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {
        f"{name} training": [float(r["certified_radius"]) for r in rows if r["model"] == name]
        for name in MODELS
    }
    return found, [int(row["label"]) for row in rows if row["model"] == "certified"]


def _images(count: int) -> tuple[Tensor, Tensor]:
    """The first test images and their labels."""
    x, y = zip(*[Digits().test[at] for at in range(count)], strict=True)
    return torch.stack(x), torch.stack(y)


def _row_radii(folder: Path, images: int) -> dict[str, Tensor]:
    """Radii of the rows of the first test images, ``(S, T)`` for both models."""
    x, y = _images(images)
    found = {}
    for name in MODELS:
        net = load_net(folder / f"{name}.ckpt")
        found[f"{name} training"] = frame_radii(net, x, y, p=2, low=0.0, high=1.0, rtol=1e-2)
    return found


def of_experiments(folder: Path) -> dict[str, Callable[[], Figure]]:
    """Figures of what the experiments left, by name; what is missing is said."""
    readers: dict[str, tuple[str, Callable[[dict[str, Any]], Figure]]] = {
        "words": ("trec.json", _words),
        "planes": ("planes.json", planes.draw),
        "targets": ("targets.json", targets.draw),
    }
    found: dict[str, Callable[[], Figure]] = {}
    for name, (file, draw) in readers.items():
        paths = sorted(folder.glob(f"**/{file}"))
        if not paths:
            print(
                f"{name}: no {file} in {folder}; run the experiment, its picture is left as it is"
            )
            continue
        numbers = json.loads(paths[0].read_text())
        found[name] = lambda draw=draw, numbers=numbers: draw(numbers)  # type: ignore[misc]
    return found


def _words(numbers: dict[str, Any]) -> Figure:
    """The first two given questions, for every network."""
    models = numbers["models"].items()
    sentences = [
        Sentence(one["words"], one["radii"], f"{name}: {one['prediction']}")
        for at in range(2)
        for name, model in models
        for one in [model["given"][at]]
    ]
    return draw_sentences(sentences, unit=UNIT)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/gallery.md.")
    parser.add_argument("--folder", type=Path, default=Path("docs/gallery"))
    parser.add_argument("--digits", type=Path, default=Path("runs/digits"))
    parser.add_argument("--experiments", type=Path, default=Path("runs/experiments"))
    prepare()
    given = parser.parse_args()
    names = draw_gallery(given.folder, given.digits, given.experiments)
    print(f"written to {given.folder}: {', '.join(names)}")


if __name__ == "__main__":
    main()
