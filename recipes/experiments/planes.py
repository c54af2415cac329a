"""Experiment 4, first part: planes against lines against constants on the same LSTMs.

python -m popqorn_train.recipes.experiments.planes --data FOLDER

Ko et al., "POPQORN", ICML 2019, appendix B.1, bounds the products of an LSTM by planes (2-D), by
lines in one variable (1-D) and by constants, and finds the planes' radii 3 to 6 times larger over
4 frames, 400 to 3000 times over 14. Here: targeted l2 radii of MNIST digits, one random target an
image, as in appendix B.4.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popqorn_train import Popqorn, certified_radius
from popqorn_train.evaluation.progress import shown
from popqorn_train.plots.style import COLORS, axis_of, finish, plain_logarithm
from popqorn_train.recipes.console import prepare
from popqorn_train.recipes.data.mnist_frames import MNISTFrames
from popqorn_train.recipes.experiments.common import Training, provenance, trained, write_numbers
from popqorn_train.recipes.networks import RecurrentNet

METHODS = {
    "planes on octagons": Popqorn(),
    "planes": Popqorn("tilted", octagons=()),
    "lines": Popqorn("line", octagons=()),
    "constants": Popqorn("constant", octagons=()),
}
PAPER = {  # appendix B.1 (I): mean targeted bound; its norm and number of units are not restated
    4: {"planes": 0.232, "lines": 0.071, "constants": 0.041},
    7: {"planes": 0.140, "lines": 0.015, "constants": 0.012},
    14: {"planes": 0.059, "lines": 1.5e-4, "constants": 2e-5},
}
_UNIT = "mean certified targeted radius (l_2 in every frame, pixels in [0, 1])"


@dataclass(frozen=True)
class Config:
    """Every number of the experiment.

    Attributes:
        data: folder of MNIST.
        frames: numbers of frames.
        images: correctly classified test images, each with one random target.
        epochs: of training.
        train_images: trained on.
        hidden: units.
        seed: of training and targets.
        folder: of the results.
    """

    data: Path | None = None
    frames: tuple[int, ...] = (4, 7, 14)
    images: int = 20
    epochs: int = 3
    train_images: int = 20000
    hidden: int = 32
    seed: int = 0
    folder: Path = Path("runs/experiments/planes")


def run(config: Config) -> dict[str, Any]:
    """Train, certify by every method, draw, and return the numbers that are written."""
    models: dict[str, Any] = {}
    bar = shown("planes, lines, constants", len(config.frames) * len(METHODS) * config.images)
    for frames in config.frames:
        data = MNISTFrames(frames, config.data, train_images=config.train_images, seed=config.seed)
        net = mnist_net(data, "lstm", config.hidden, config, config.folder)
        x, labels, against = targeted(net, data, config.images, config.seed)
        models[str(frames)] = {**provenance(net, data.test_dataloader()), "methods": {}}
        for name, method in METHODS.items():
            started = time.process_time()
            radii = certified_radius(net, x, labels, p=2, method=method, against=against, rtol=1e-2)
            models[str(frames)]["methods"][name] = {
                "mean_radius": float(f"{radii.mean():.4g}"),
                "median_radius": float(f"{radii.double().quantile(0.5):.4g}"),
                "seconds": round(time.process_time() - started, 1),
            }
            bar.advance(len(x))
    bar.close()
    numbers = {
        "experiment": "planes, lines and constants; targeted, l_2, MNIST, LSTM",
        "images": config.images,
        "models": models,
        "paper": {str(frames): row for frames, row in PAPER.items()},
    }
    write_numbers(config.folder, "planes.json", numbers)
    draw(numbers)[0].savefig(config.folder / "planes.png", dpi=100)
    print(said(numbers))
    return numbers


def mnist_net(data: MNISTFrames, cell: str, hidden: int, config: Any, folder: Path) -> RecurrentNet:
    """A network for digits, trained by cross entropy or taken from before."""
    settings = {
        "features": data.features,
        "hidden": hidden,
        "classes": data.classes,
        "cell": cell,
    }
    path = folder / f"{cell}-{784 // data.features}-{hidden}.ckpt"
    return trained(settings, data, Training(config.epochs, seed=config.seed), path)


def targeted(
    net: RecurrentNet, data: MNISTFrames, images: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The first correctly classified test images, their labels, and one other class each.

    Raises:
        ValueError: there is none.
    """
    found, labels = [], []
    with torch.no_grad():
        for x, y in data.test_dataloader():
            right = net(x).argmax(1) == y
            found.append(x[right])
            labels.append(y[right])
            if sum(map(len, labels)) >= images:
                break
    x, y = torch.cat(found)[:images], torch.cat(labels)[:images]
    if not len(y):
        raise ValueError("no test image is classified correctly; raise `epochs`.")
    other = torch.randint(1, 10, (len(y),), generator=torch.Generator().manual_seed(seed))
    return x, y, (y + other) % 10


def draw(numbers: dict[str, Any]) -> tuple[Any, Any]:
    """Mean radius against the number of frames, on a logarithmic scale, beside the paper's."""
    figure, ax = axis_of(None)
    frames = [int(key) for key in numbers["models"]]
    for index, name in enumerate(METHODS):
        rows = [numbers["models"][str(count)]["methods"][name] for count in frames]
        means = [row["mean_radius"] for row in rows]
        ax.plot(frames, means, "o-", color=COLORS[index], lw=2, label=name)
        paper = [(count, PAPER[count][name]) for count in frames if name in PAPER.get(count, {})]
        if paper:
            style = {"color": COLORS[index], "ls": ":", "marker": "x", "lw": 1.2}
            ax.plot(
                *zip(*paper, strict=True),
                **style,
                label=f"{name}, paper",
            )
    ax.set(yscale="log", xlabel="frames that an image is cut into", ylabel=_UNIT.split(" (")[0])
    ax.set_xticks(frames)
    low, high = ax.get_ylim()
    plain_logarithm(ax.yaxis, high / low)
    finish(ax, columns=2)
    note = "paper: other networks, pixels in [-1, 1]"
    figure.supxlabel(f"{_UNIT}; {note}", fontsize=8)
    return figure, ax


def said(numbers: dict[str, Any]) -> str:
    """The table."""
    lines = [_UNIT, f"{'frames':>7}{'accuracy':>10}" + "".join(f"{name:>20}" for name in METHODS)]
    for frames, model in numbers["models"].items():
        cells = [
            f"{row['mean_radius']:.4g} ({row['seconds']:.0f} s)"
            for row in model["methods"].values()
        ]
        share = f"{100 * model['test_accuracy']:.1f} %"
        lines.append(f"{frames:>7}{share:>10}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Planes against lines against constants.")
    parser.add_argument("--data", type=Path, help="folder of MNIST")
    parser.add_argument("--frames", type=int, nargs="+", default=Config.frames)
    for name in ("images", "epochs", "train_images", "hidden", "seed"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=getattr(Config, name))
    parser.add_argument("--folder", type=Path, default=Config.folder)
    prepare()
    given = vars(parser.parse_args())
    run(Config(**{**given, "frames": tuple(given["frames"])}))


if __name__ == "__main__":
    main()
