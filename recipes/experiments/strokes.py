"""Experiment 1: which row, or pen step, of a digit does the decision hang on?

python -m popqorn_train.recipes.experiments.strokes --data FOLDER [--strokes FOLDER --labels FILE]

An LSTM reads MNIST digits as 14 frames of two rows, or step by step where pen strokes are given.
Every frame of test images moves alone, untargeted, in an l2 ball; the paper finds the late strokes
tolerant.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popqorn_train import frame_radii
from popqorn_train.evaluation.progress import shown
from popqorn_train.plots import draw_image_rows, draw_radius_by_frame, draw_strokes
from popqorn_train.recipes.console import prepare
from popqorn_train.recipes.data.mnist_frames import MNISTFrames
from popqorn_train.recipes.data.pen_strokes import PenStrokes
from popqorn_train.recipes.data.sequences import SequenceData
from popqorn_train.recipes.experiments.common import (
    Training,
    mean_of,
    plain,
    provenance,
    rank_trend,
    rounded,
    trained,
    write_numbers,
)
from popqorn_train.recipes.networks import RecurrentNet

_DRAWN = 10  # digits in the picture
UNIT = "certified radius of the frame alone (l_2)"


@dataclass(frozen=True)
class Config:
    """Every number of the experiment.

    Attributes:
        data: folder of MNIST.
        strokes: folder of pen-stroke files; None reads rows of images.
        labels: file of their labels.
        images: of the test set that are looked at.
        epochs: of training.
        train_images: trained on; None takes all.
        hidden: units of the LSTM.
        frames: that an image is cut into where no strokes are given; the cost grows with the cube.
        seed: of training.
        folder: of the results.
    """

    data: Path | None = None
    strokes: Path | None = None
    labels: Path | None = None
    images: int = 10
    epochs: int = 3
    train_images: int | None = 20000
    hidden: int = 32
    frames: int = 14
    seed: int = 0
    folder: Path = Path("runs/experiments/strokes")


def run(config: Config) -> dict[str, Any]:
    """Train, find the radius of every frame, draw, and return the numbers that are written."""
    data = _opened(config)
    settings = {
        "features": data.features,
        "hidden": config.hidden,
        "classes": data.classes,
        "cell": "lstm",
    }
    training = Training(config.epochs, seed=config.seed)
    net = trained(settings, data, training, config.folder / "lstm.ckpt")
    started = time.process_time()
    samples = [_sample(net, data, at) for at in _watched(config, data)]
    seconds = time.process_time() - started
    right = [one for one in samples if one["label"] == one["prediction"]]
    numbers = {
        "experiment": "sequence MNIST, untargeted radius of every frame, l_2",
        "config": {
            name: value if value is None or isinstance(value, int) else str(value)
            for name, value in asdict(config).items()
        },
        "model": provenance(net, data.test_dataloader()),
        "seconds_of_radii": round(seconds, 1),
        **trend(right),
        "samples": samples,
    }
    write_numbers(config.folder, "strokes.json", numbers)
    _draw(config, data, right)
    print(_said(numbers, len(right)))
    return numbers


def _opened(config: Config) -> SequenceData:
    if config.strokes is None:
        return MNISTFrames(
            config.frames, config.data, train_images=config.train_images, seed=config.seed
        )
    if config.labels is None:
        raise ValueError("`labels` must name the file of labels of the strokes, got None.")
    return PenStrokes(config.strokes, config.labels, seed=config.seed)


def _watched(config: Config, data: SequenceData) -> Iterator[int]:
    """Positions in the test set, the first so many, with a progress bar."""
    count = min(config.images, len(data.test))
    bar = shown("frames of digits", count)
    for at in range(count):
        yield at
        bar.advance(1)
    bar.close()


def _sample(net: RecurrentNet, data: SequenceData, at: int) -> dict[str, Any]:
    """Radii of one test digit; 0 in all frames where it is classified wrongly."""
    frames, label = data.test[at]
    x, target = frames[None], label[None]
    with torch.no_grad():
        prediction = int(net(x).argmax())
    radii = frame_radii(net, x, target, p=2, rtol=1e-2)[0]
    return {"index": at, "label": int(label), "prediction": prediction, "radii": rounded(radii)}


def trend(right: list[dict[str, Any]]) -> dict[str, Any]:
    """Do radii grow with the frame? The paper: late strokes are the tolerant ones."""
    radii = [torch.tensor(one["radii"], dtype=torch.float64) for one in right]
    early = [float(row.argmin() < len(row) / 2) for row in radii]
    thirds = [[_median(part) for part in row.tensor_split(3)] for row in radii if len(row) > 2]
    return {
        "mean_rank_correlation_of_radius_and_frame": plain(mean_of(list(map(rank_trend, radii)))),
        "share_with_the_most_fragile_frame_in_the_first_half": plain(mean_of(early)),
        "median_radius_by_third": [
            plain(_median(torch.tensor(column))) for column in zip(*thirds, strict=True)
        ],
    }


def _median(radii: Tensor) -> float:
    return float(radii.double().quantile(0.5))


def _draw(config: Config, data: SequenceData, right: list[dict[str, Any]]) -> None:
    chosen = right[:_DRAWN]
    if not chosen:
        print("no picture: no digit is classified correctly")
        return
    values = [data.test[one["index"]][0] for one in chosen]
    radii = [torch.tensor(one["radii"]) for one in chosen]
    names = [f"digit {one['label']}" for one in chosen]
    if config.strokes is not None:
        figure, _ = draw_strokes(values, radii, names=names)
    else:
        pixels = torch.stack(values).view(-1, 28, 28)
        by_row = torch.stack(radii).repeat_interleave(28 // config.frames, dim=1)
        unit = "certified radius of\nthe frame alone (l_2)"
        figure, _ = draw_image_rows(pixels, by_row, names=names, unit=unit)
        rows = {"LSTM": torch.tensor([one["radii"] for one in right])}
        lines, _ = draw_radius_by_frame(
            rows, xlabel="frame, from the top of the image", ylabel=UNIT
        )
        lines.savefig(config.folder / "by_frame.png", dpi=100)
    figure.savefig(config.folder / "strokes.png", dpi=100)


def _said(numbers: dict[str, Any], right: int) -> str:
    model, thirds = numbers["model"], numbers["median_radius_by_third"]
    early = numbers["share_with_the_most_fragile_frame_in_the_first_half"]
    return "\n".join(
        [
            f"LSTM, {100 * model['test_accuracy']:.1f} % of the test set; {right} digits, l_2",
            f"median radius in the first, second, last third of the frames: {thirds}",
            "rank correlation of radius and frame: "
            f"{numbers['mean_rank_correlation_of_radius_and_frame']}",
            f"most fragile frame in the first half of the digit: share {early}",
            f"seconds of CPU for the radii: {numbers['seconds_of_radii']}",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Radius of every row or pen step of a digit.")
    parser.add_argument("--data", type=Path, help="folder of MNIST")
    parser.add_argument("--strokes", type=Path, help="folder of pen-stroke files")
    parser.add_argument("--labels", type=Path, help="file with a label per line, for the strokes")
    for name in ("images", "epochs", "train_images", "hidden", "frames", "seed"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=getattr(Config, name))
    parser.add_argument("--folder", type=Path, default=Config.folder)
    prepare()
    run(Config(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
