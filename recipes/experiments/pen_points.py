"""Experiment 1 on pen-written digits: which point of the pen does the decision hang on?

python -m popqorn_train.recipes.experiments.pen_points --data FOLDER [--checkpoint FILE ...]

A GRU trained by cross entropy, and networks of recipes beside it, read eight points of the pen.
Every point of test digits moves alone, untargeted, in an l2 ball; the width of the sheet is 1.
The paper finds late strokes tolerant.

T: points.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popqorn_train import frame_radii
from popqorn_train.evaluation.progress import shown
from popqorn_train.plots import draw_radius_by_frame, draw_strokes
from popqorn_train.recipes.console import prepare
from popqorn_train.recipes.data.pen_digits import PenDigits
from popqorn_train.recipes.experiments.common import (
    Training,
    provenance,
    rounded,
    trained,
    write_numbers,
)
from popqorn_train.recipes.experiments.strokes import trend
from popqorn_train.recipes.networks import RecurrentNet, load_recurrent_net

_DRAWN = 10  # digits in the picture
UNIT = "certified radius of the point alone (l_2)"


@dataclass(frozen=True)
class Config:
    """Every number of the experiment.

    Attributes:
        data: file of the digits, or its folder.
        checkpoints: networks of recipes, looked at besides.
        digits: of the test set that are looked at, the first so many.
        epochs: of training of the standard network.
        hidden: its units.
        seed: of its training.
        folder: of the results.
    """

    data: Path | None = None
    checkpoints: tuple[Path, ...] = ()
    digits: int = 20
    epochs: int = 10
    hidden: int = 64
    seed: int = 0
    folder: Path = Path("runs/experiments/pen_points")


def run(config: Config) -> dict[str, Any]:
    """Train, find the radius of every point, draw, and return the numbers that are written."""
    data = PenDigits(config.data, stretch=0.1, shift=0.03, seed=config.seed)
    models = {}
    for name, net in _networks(config, data).items():
        started = time.process_time()
        samples = [_sample(net, data, at) for at in _watched(config, data, name)]
        models[name] = {
            **provenance(net, data.test_dataloader()),
            "seconds_of_radii": round(time.process_time() - started, 1),
            **trend(_right(samples)),
            "samples": samples,
        }
    numbers = {"experiment": "pen digits, untargeted radius of every point, l_2", "models": models}
    write_numbers(config.folder, "pen_points.json", numbers)
    _draw(config, data, models)
    print(said(numbers))
    return numbers


def _networks(config: Config, data: PenDigits) -> dict[str, RecurrentNet]:
    settings = {"features": data.features, "hidden": config.hidden, "classes": data.classes}
    training = Training(config.epochs, seed=config.seed)
    found = {"standard": trained(settings, data, training, config.folder / "standard.ckpt")}
    for path in config.checkpoints:
        found[path.parent.parent.name or path.stem] = load_recurrent_net(path)
    return found


def _watched(config: Config, data: PenDigits, name: str) -> Iterator[int]:
    """Positions in the test set, with a progress bar."""
    count = min(config.digits, len(data.test))
    bar = shown(f"points for {name}", count)
    for at in range(count):
        yield at
        bar.advance(1)
    bar.close()


def _sample(net: RecurrentNet, data: PenDigits, at: int) -> dict[str, Any]:
    """Radii of one test digit; 0 for all points where it is classified wrongly."""
    points, label = data.test[at]
    x, target = points[None], label[None]
    with torch.no_grad():
        prediction = int(net(x).argmax())
    radii = frame_radii(net, x, target, p=2, rtol=1e-2)[0]
    return {"index": at, "label": int(label), "prediction": prediction, "radii": rounded(radii)}


def _right(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in samples if one["label"] == one["prediction"]]


def steps_of(points: Tensor) -> Tensor:
    """Points ``(T, 2)`` as the steps ``(T, 4)`` of one stroke that ``draw_strokes`` takes."""
    down = torch.stack([points[:, 0], 1 - points[:, 1]], 1)  # on a screen, down is up
    moves = torch.cat([down[:1], down.diff(dim=0)])
    ends = torch.zeros(len(points), 2)
    ends[-1] = 1
    return torch.cat([100 * moves, ends], 1)


def _draw(config: Config, data: PenDigits, models: dict[str, Any]) -> None:
    for name, model in models.items():
        right = _right(model["samples"])[:_DRAWN]
        if not right:
            print(f"no picture of {name}: no digit is classified correctly")
            continue
        steps = [steps_of(data.test[one["index"]][0]) for one in right]
        names = [f"digit {one['label']}" for one in right]
        figure, _ = draw_strokes(steps, [one["radii"] for one in right], names=names, unit=UNIT)
        figure.savefig(config.folder / f"{name}.png", dpi=100)
    rows = {
        name: [one["radii"] for one in _right(model["samples"])] for name, model in models.items()
    }
    lines, _ = draw_radius_by_frame(
        {name: torch.tensor(radii) for name, radii in rows.items() if radii},
        xlabel="point, in the order of writing",
        ylabel=UNIT,
    )
    lines.savefig(config.folder / "by_point.png", dpi=100)


def said(numbers: dict[str, Any]) -> str:
    """A few lines for every network."""
    lines = []
    for name, model in numbers["models"].items():
        count = len(_right(model["samples"]))
        lines += [
            f"{name}: {100 * model['test_accuracy']:.1f} % of the test set; {count} digits, l_2",
            f"  median radius in the first, second, last third: {model['median_radius_by_third']}",
            "  rank correlation of radius and point: "
            f"{model['mean_rank_correlation_of_radius_and_frame']}",
        ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Radius of every point of a pen-written digit.")
    parser.add_argument("--data", type=Path, help="pen_digits.npz or its folder")
    parser.add_argument("--checkpoint", type=Path, action="append", default=[])
    for name in ("digits", "epochs", "hidden", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Config, name))
    parser.add_argument("--folder", type=Path, default=Config.folder)
    prepare()
    given = vars(parser.parse_args(arguments))
    run(Config(checkpoints=tuple(given.pop("checkpoint")), **given))


if __name__ == "__main__":
    main()
