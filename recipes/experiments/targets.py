"""Experiment 4, second part: targeted radii of RNNs, LSTMs and GRUs on MNIST.

python -m popqorn_train.recipes.experiments.targets --data FOLDER --budget small

Over numbers of frames and hidden sizes, one random target an image (Ko et al., "POPQORN", ICML
2019, appendix B.4). Three numbers that mean three things stand side by side and are never mixed:

    certified   a PROOF: no input that close changes the label to the target
    CLEVER-RNN  an ESTIMATE from sampled gradients, which proves nothing (clever.py)
    C&W-Ada     an ATTACK: at that distance the label does change (carlini_wagner.py)
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from popqorn_train import certified_radius
from popqorn_train.evaluation.progress import shown
from popqorn_train.plots.style import COLORS, finish, new_figure, plain_logarithm
from popqorn_train.recipes.console import prepare
from popqorn_train.recipes.data.mnist_frames import MNISTFrames
from popqorn_train.recipes.experiments.carlini_wagner import attacked_distance
from popqorn_train.recipes.experiments.clever import clever_estimate
from popqorn_train.recipes.experiments.common import provenance, write_numbers
from popqorn_train.recipes.experiments.planes import mnist_net, targeted
from popqorn_train.recipes.networks import RecurrentNet

KINDS = {
    "certified": "certified (proof)",
    "clever": "CLEVER-RNN (estimate)",
    "attack": "C&W-Ada (attack)",
}


@dataclass(frozen=True)
class Budget:
    """How much is worked out, in counts.

    Attributes:
        cells: of the networks.
        frames: numbers of frames.
        hidden: numbers of units.
        images: correctly classified test images a network.
        epochs: of training.
        train_images: trained on.
        clever_samples: points sampled for the estimate.
        attack_steps: of the attack.
    """

    cells: tuple[str, ...] = ("rnn", "lstm", "gru")
    frames: tuple[int, ...] = (4, 7, 14)
    hidden: tuple[int, ...] = (32, 64)
    images: int = 1000
    epochs: int = 10
    train_images: int | None = None
    clever_samples: int = 1000
    attack_steps: int = 1000


BUDGETS = {
    "quick": Budget(("rnn", "gru"), (4,), (8,), 3, 1, 2000, 20, 50),
    "small": Budget(images=20, epochs=3, train_images=20000, clever_samples=200, attack_steps=300),
    "paper": Budget(),
}


@dataclass(frozen=True)
class Config:
    """Every number of the experiment.

    Attributes:
        data: folder of MNIST.
        budget: see there.
        p: norm of the ball around every frame.
        seed: of training, targets and samples.
        folder: of the results.
    """

    data: Path | None = None
    budget: Budget = BUDGETS["small"]
    p: float = 2.0
    seed: int = 0
    folder: Path = Path("runs/experiments/targets")

    @property
    def epochs(self) -> int:
        """Of training."""
        return self.budget.epochs


def run(config: Config) -> dict[str, Any]:
    """Train, certify, estimate, attack, draw, and return the numbers that are written."""
    budget, rows = config.budget, []
    bar = shown(
        "targeted radii",
        len(budget.frames) * len(budget.cells) * len(budget.hidden) * budget.images,
    )
    for frames in budget.frames:
        data = MNISTFrames(frames, config.data, train_images=budget.train_images, seed=config.seed)
        for cell in budget.cells:
            for hidden in budget.hidden:
                net = mnist_net(data, cell, hidden, config, config.folder)
                rows.append({"frames": frames, **_measured(net, data, config)})
                bar.advance(budget.images)
    bar.close()
    numbers = {
        "experiment": f"targeted radii, l_{config.p:g} in every frame, MNIST, pixels in [0, 1]",
        "kinds": KINDS,
        "images": budget.images,
        "rows": rows,
    }
    write_numbers(config.folder, "targets.json", numbers)
    draw(numbers)[0].savefig(config.folder / "targets.png", dpi=100)
    print(said(numbers))
    return numbers


def _measured(net: RecurrentNet, data: MNISTFrames, config: Config) -> dict[str, Any]:
    """One network: three means with their spread, and what each cost."""
    x, labels, against = targeted(net, data, config.budget.images, config.seed)
    clock = [time.process_time()]
    attack = attacked_distance(
        net, x, labels, against=against, p=config.p, steps=config.budget.attack_steps
    )
    clock.append(time.process_time())
    largest = attack.where(attack.isfinite(), attack.new_tensor(10.0))
    clever = clever_estimate(
        net,
        x,
        labels,
        against=against,
        p=config.p,
        largest=largest,
        samples=config.budget.clever_samples,
        seed=config.seed,
    )
    clock.append(time.process_time())
    certified = certified_radius(net, x, labels, p=config.p, against=against, rtol=1e-2)
    clock.append(time.process_time())
    broken = certified > attack * (1 + 1e-5)
    if broken.any():
        raise AssertionError(f"attacked within {int(broken.sum())} certified radii")
    return {
        **provenance(net, data.test_dataloader()),
        "certified": _spread(certified, clock[3] - clock[2]),
        "clever": _spread(clever, clock[2] - clock[1]),
        "attack": _spread(attack, clock[1] - clock[0]),
    }


def _spread(radii: Tensor, seconds: float) -> dict[str, Any]:
    known = radii[radii.isfinite()].double()
    return {
        "mean": float(f"{known.mean():.4g}") if len(known) else None,
        "standard_deviation": float(f"{known.std(unbiased=False):.4g}") if len(known) else None,
        "found": len(known),
        "seconds": round(seconds, 1),
    }


def draw(numbers: dict[str, Any]) -> tuple[Any, Any]:
    """Mean radius against frames: a panel per cell, a colour a hidden size, a line style a kind."""
    rows = numbers["rows"]
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    sizes = sorted({row["hidden"] for row in rows})
    figure = new_figure(3.2 * len(cells) + 0.8, 3.9)
    axes = figure.subplots(1, len(cells), sharey=True, squeeze=False)[0]
    for ax, cell in zip(axes, cells, strict=True):
        for index, hidden in enumerate(sizes):
            own = [row for row in rows if (row["cell"], row["hidden"]) == (cell, hidden)]
            for kind, style in zip(KINDS, ("o-", "^:", "x--"), strict=True):
                means = [row[kind]["mean"] for row in own]
                label = f"{KINDS[kind]}, {hidden} units"
                places = [row["frames"] for row in own]
                ax.plot(
                    places,
                    means,
                    style,
                    color=COLORS[index % len(COLORS)],
                    lw=1.7,
                    ms=5,
                    label=label,
                )
        ax.set(title=cell, xlabel="frames", yscale="log")
        ax.set_xticks(sorted({row["frames"] for row in rows}))
        finish(ax)
        ax.get_legend().remove()
    low, high = axes[0].get_ylim()
    plain_logarithm(axes[0].yaxis, high / low)
    axes[0].set_ylabel("mean targeted radius")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(sizes), fontsize=8, frameon=False
    )
    return figure, axes


def said(numbers: dict[str, Any]) -> str:
    """The table."""
    titles = ("cell", "frames", "units", "accuracy", *KINDS.values())
    lines = [numbers["experiment"], "mean, standard deviation, seconds of CPU"]
    lines.append("".join(f"{title:>24}" if "(" in title else f"{title:>9}" for title in titles))
    for row in numbers["rows"]:
        cells = [row["cell"], str(row["frames"]), str(row["hidden"])]
        cells.append(f"{100 * row['test_accuracy']:.1f} %")
        means = [
            f"{row[kind]['mean']:.4g} +- {row[kind]['standard_deviation']:.2g}, "
            f"{row[kind]['seconds']:.0f} s"
            if row[kind]["found"]
            else "none"
            for kind in KINDS
        ]
        lines.append(
            "".join(f"{cell:>9}" for cell in cells) + "".join(f"{cell:>24}" for cell in means)
        )
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Targeted radii beside an estimate, an attack.")
    parser.add_argument("--data", type=Path, help="folder of MNIST")
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--images", type=int, help="instead of the budget's")
    parser.add_argument("--p", type=float, default=Config.p)
    parser.add_argument("--seed", type=int, default=Config.seed)
    parser.add_argument("--folder", type=Path, default=Config.folder)
    prepare()
    given = parser.parse_args()
    budget = BUDGETS[given.budget]
    if given.images is not None:
        budget = Budget(**{**vars(budget), "images": given.images})
    run(Config(given.data, budget, given.p, given.seed, given.folder))


if __name__ == "__main__":
    main()
