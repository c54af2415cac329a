"""Put the network of a finished recipe into the zoo.

``python -m popqorn_train.recipes.zoo_keep runs/recipes/digits`` writes ``trained/digits.pt`` and
its card. What the card says is found out again for the network as it is kept. Weights are kept as
they were trained, unless ``--round`` rounds word vectors to half precision first.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from popqorn_train import LpBall, search_radius
from popqorn_train.certificates.inputs import as_tuple
from popqorn_train.evaluation.certification import count_certified
from popqorn_train.evaluation.provenance import fingerprint
from popqorn_train.recipes.configurations import configs
from popqorn_train.recipes.data.sequences import SequenceData
from popqorn_train.recipes.data.vectors import VectorSettings
from popqorn_train.recipes.evaluation import EvaluationSettings
from popqorn_train.recipes.networks import RecurrentNet, SpeechNet, load_net
from popqorn_train.recipes.zoo import FOLDER

LARGEST = 1_000_000  # bytes of a file
_TEN = 10
_RADII = "popqorn-fast"
_TRAINED_BY = ("model", "data", "trainer")  # of a configuration
Network = RecurrentNet | SpeechNet
_DATA = {
    "digits": "scikit-learn's digits, 8 rows of 8 pixels in [0, 1]",
    "generated": "generated sequences of 5 frames of 3 features in [0, 1]",
    "japanese_vowels": "JapaneseVowels, 7 to 29 frames of 12 features in standard deviations",
    "mnist4": "MNIST, 4 frames of 196 pixels in [0, 1]",
    "mnist4_lstm": "MNIST, 4 frames of 196 pixels in [0, 1]",
    "mnist4_small": "MNIST, 4 frames of 196 pixels in [0, 1]",
    "pen_digits": "Pen-written digits, 8 points in [0, 1]",
    "news_titles": "TagMyNews titles, word vectors of norm 1",
    "spoken_digits": "Spoken digits, raw waves, in shares of their peaks",
    "trec": "TREC questions, word vectors of norm 1",
}


def keep(run: Path, *, rounded: bool = False) -> Path:
    """Write the network of a run, and its card.

    Args:
        run: folder of a recipe.
        rounded: word vectors are rounded to half precision, which is then what the card speaks of.

    Returns:
        The file of the network.

    Raises:
        ValueError: a network too large for the zoo.
    """
    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    net = load_net(run / "checkpoints" / "last.ckpt")
    data = _data_of(config["data"])
    path = FOLDER / f"{run.name}.pt"
    FOLDER.mkdir(exist_ok=True)
    torch.save(_stored(net, data, rounded), path)
    if path.stat().st_size > LARGEST:
        size = path.stat().st_size
        path.unlink()
        raise ValueError(
            f"{run.name} takes {size:,} bytes; the zoo keeps up to {LARGEST:,}. Train a smaller "
            "network, with --data.vectors.dimension for words, or round word vectors by --round."
        )
    card = _card(run, config, net, data)
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    return path


def _data_of(config: dict[str, Any]) -> SequenceData:
    module, _, name = config["class_path"].rpartition(".")
    arguments = dict(config.get("init_args") or {})
    if "vectors" in arguments:
        arguments["vectors"] = VectorSettings(**arguments["vectors"])
    found: SequenceData = getattr(import_module(module), name)(**arguments)
    return found


def _stored(net: Network, data: SequenceData, rounded: bool) -> dict[str, Any]:
    """Settings, weights and ten samples; images as bytes. ``net`` is rounded as its copy is."""
    state, vectors = net.state_dict(), "embedding.weight"
    if rounded and vectors in state:
        half = state[vectors].half()
        state[vectors].copy_(half)  # the memory of the network
        state[vectors] = half
    inputs, labels = _first_ten(data)
    return {
        "net_settings": net.settings,
        "state_dict": state,
        "inputs": [_compact(value) for value in inputs],
        "labels": labels,
    }


def _first_ten(data: SequenceData) -> tuple[tuple[Tensor, ...], Tensor]:
    """Of the test set; what has lengths is not padded beyond the longest of these."""
    inputs, labels = next(iter(data.test_dataloader()))
    first, *lengths = (value[:_TEN].clone() for value in as_tuple(inputs))
    if lengths:
        first = first[:, : int(lengths[0].max())].clone()
    return (first, *lengths), labels[:_TEN].clone()


def _compact(value: Tensor) -> Tensor:
    levels = (value * 255).round()
    whole = value.is_floating_point() and torch.equal(levels.clamp(0, 255) / 255, value)
    return levels.to(torch.uint8) if whole else value


def _card(run: Path, config: dict[str, Any], net: Network, data: SequenceData) -> dict[str, Any]:
    results = json.loads((run / "results.json").read_text())
    asked = EvaluationSettings(**config["evaluation"])
    ball = asked.ball(0.0)
    epsilons = tuple(float(f"{epsilon:.4g}") for epsilon in asked.epsilons)
    sizes = torch.tensor(epsilons, dtype=torch.float64)
    radii, right = _radii(net, data, ball, epsilons, "ibp", math.inf)
    ten, _ = _radii(net, data, ball, epsilons, _RADII, _TEN)
    return {
        "name": run.name,
        "data": _DATA[run.name],
        "recipe": " ".join([f"popqorn-train fit --config {run.name}", *_options(run.name, config)]),
        "trained_epsilon": config["model"]["loss"]["init_args"]["epsilon"],
        "p": "inf" if ball.p == math.inf else ball.p,
        "low": asked.low,
        "high": asked.high,
        "epsilons": epsilons,
        "clean": round(right.double().mean().item(), 5),
        "certified": [round(n / len(radii), 5) for n in count_certified(radii, sizes).tolist()],
        "method": "ibp",
        "samples": len(radii),
        "radii": [float(f"{radius:.4g}") for radius in ten.tolist()],
        "radii_method": _RADII,
        "seed": results["seed"],
        "fingerprint": fingerprint(net),
        "versions": results["versions"],
        "seconds": results["models"]["certified"]["train_seconds"],
    }


def _options(name: str, config: dict[str, Any]) -> list[str]:
    """What a run was trained with that the packaged configuration says otherwise."""
    packaged = yaml.safe_load(configs()[name].read_text())
    return [
        option
        for part in _TRAINED_BY
        for option in _changed(packaged.get(part), config.get(part), f"--{part}")
    ]


def _changed(packaged: Any, used: Any, option: str) -> Iterator[str]:
    if isinstance(packaged, dict) and isinstance(used, dict):
        for key in packaged:
            name = option if key == "init_args" else f"{option}.{key}"
            yield from _changed(packaged[key], used.get(key), name)
    elif isinstance(packaged, int | float) and packaged != used:
        yield f"{option}={used}"


def _radii(
    net: Network,
    data: SequenceData,
    ball: LpBall,
    epsilons: Sequence[float],
    method: str,
    most: float,
) -> tuple[Tensor, Tensor]:
    """Certified radii of the first samples to test, and which are predicted right."""
    radii, right = [], []
    for inputs, labels in data.test_dataloader():
        some = slice(min(len(labels), int(min(most, len(labels)))))
        inputs = tuple(value[some] for value in as_tuple(inputs))
        found = search_radius(net, inputs, labels[some], ball, method=method, epsilons=epsilons)
        radii.append(found.radius)
        right.append(found.correct)
        if (most := most - len(labels)) <= 0:
            break
    return torch.cat(radii), torch.cat(right)


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep the networks of some runs."""
    parser = argparse.ArgumentParser(description="Put trained networks into the zoo.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished recipes")
    parser.add_argument(
        "--round", action="store_true", help="word vectors are rounded to half precision"
    )
    options = parser.parse_args(arguments)
    for run in options.runs:
        path = keep(run, rounded=options.round)
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    main()
