"""PROVER's network on spoken digits, certified from the raw wave on.

python -m popqorn_train.recipes.experiments.spoken_digits --network FILE --data FOLDER

Ryou et al., "Scalable Polyhedral Verification of Recurrent Neural Networks", CAV 2021: every
sample of a wave moves by 10^(dB/20) of its peak. The network reads the logarithms of mel energies
of frames of 256 samples, through a linear layer, two layers of LSTM and a linear layer. The file
holds its weights ``w.*``, both matrices of the front end, and the utterances it classifies
correctly, in the order to certify.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from popqorn_train.certificates.certificate import certify
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.recipes.console import prepare
from popqorn_train.recipes.data.spoken_digits import read_utterances
from popqorn_train.recipes.experiments.common import write_numbers

_SIZE, _STEP = 256, 200


@dataclass(frozen=True)
class Config:
    """Every number of the experiment.

    Attributes:
        network: file of the network.
        data: of the utterances; None takes ``$POPQORN_DATA`` or ``data``.
        decibels: of the perturbations, below the peak.
        samples: utterances to certify, from the first one on.
        methods: of the certificates; each is tried on what those before it leave undecided.
        folder: of the results.
    """

    network: Path
    data: Path | None = None
    decibels: tuple[float, ...] = (-90.0, -80.0, -70.0)
    samples: int = 100
    methods: tuple[str, ...] = ("popqorn-fast", "popqorn")
    folder: Path = Path("runs/experiments/spoken_digits")


class SpokenDigitNet(nn.Module):
    """The network of the experiment, on one wave or several of one length."""

    front: Tensor
    mel: Tensor

    def __init__(self, front: Tensor, mel: Tensor, hidden: int = 32, features: int = 40) -> None:
        super().__init__()
        self.register_buffer("front", front)
        self.register_buffer("mel", mel)
        self.linear1 = nn.Linear(mel.shape[1], features)
        self.lstm = nn.LSTM(features, hidden, 2, batch_first=True)
        self.linear2 = nn.Linear(hidden, 10)

    def forward(self, wave: Tensor) -> Tensor:
        """Logits ``(B, 10)``; a last frame that is not whole is filled with zeros."""
        if wave.shape[1] % _STEP:
            wave = nn.functional.pad(wave, (0, _STEP))
        energies = (wave.unfold(1, _SIZE, _STEP) @ self.front).square() @ self.mel
        states, _ = self.lstm(torch.relu(self.linear1(torch.log(energies + 1e-10))))
        logits: Tensor = self.linear2(states[:, -1])
        return logits


def read_network(path: Path) -> tuple[SpokenDigitNet, list[int]]:
    """The network in float64 eval mode, and the utterances to certify."""
    with path.open("rb") as stream, np.load(stream) as found:
        front, mel = (torch.from_numpy(found[name]) for name in ("mtx1", "mtx2"))
        sizes = found["w.lstm.weight_hh_l0"].shape[1], len(found["w.linear1.bias"])
        names = [name for name in found.files if name.startswith("w.")]
        weights = {name.removeprefix("w."): torch.from_numpy(found[name]) for name in names}
        index = found["index"].tolist()
    net = SpokenDigitNet(front, mel, *sizes)
    net.load_state_dict({**weights, "front": front, "mel": mel})
    return net.double().eval(), index


def run(config: Config) -> dict[str, Any]:
    """Certify, and return the numbers that are written."""
    net, chosen = read_network(config.network)
    waves, labels, *_ = read_utterances(config.data)
    proved = {method: {f"{level:g}": 0 for level in config.decibels} for method in config.methods}
    seconds: list[float] = []
    chosen = chosen[: config.samples]
    for index in chosen:
        wave, label = waves[index].double()[None], labels[index : index + 1]
        for level, method, spent in _decided(net, wave, label, config):
            seconds.append(spent)
            if method is not None:
                proved[method][f"{level:g}"] += 1
    numbers = {
        "experiment": "spoken_digits",
        "methods": list(config.methods),
        "samples": len(chosen),
        "proved": _added_up(proved),
        "seconds": {
            "mean": round(sum(seconds) / len(seconds), 2),
            "most": round(max(seconds), 2),
        },
    }
    write_numbers(config.folder, "spoken_digits.json", numbers)
    print(said(numbers))
    return numbers


def _decided(
    net: SpokenDigitNet, wave: Tensor, label: Tensor, config: Config
) -> Iterator[tuple[float, str | None, float]]:
    """Levels, the greatest first, with the method that proves one, and CPU seconds.

    What is proved at a level is proved at all below it, by the same method and at no cost.
    """
    by: str | None = None
    for level in sorted(config.decibels, reverse=True):
        ball = LpBall(10 ** (level / 20) * wave.abs().max().item())
        started = time.process_time()
        for method in config.methods if by is None else ():
            if certify(net, wave, label, ball, method=method).certified:
                by = method
                break
        yield level, by, time.process_time() - started


def _added_up(proved: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """What each method and those before it prove."""
    found: dict[str, dict[str, int]] = {}
    before: dict[str, int] = {}
    for method, counts in proved.items():
        before = {level: before.get(level, 0) + count for level, count in counts.items()}
        found[method] = before
    return found


def said(numbers: dict[str, Any]) -> str:
    """One line for every size of the perturbation."""
    times, methods = numbers["seconds"], ", ".join(numbers["methods"])
    lines = [
        f"{method}, {level} dB: {count} of {numbers['samples']} proved"
        for method, counts in numbers["proved"].items()
        for level, count in counts.items()
    ]
    lines.append(f"by {methods}: {times['mean']} CPU s each on average, at most {times['most']}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="PROVER's network on spoken digits.")
    parser.add_argument("--network", type=Path, required=True, help="prover_fsdd.npz")
    parser.add_argument("--data", type=Path, default=None, help="spoken_digits.npz or its folder")
    parser.add_argument("--decibels", type=float, nargs="+", default=Config.decibels)
    parser.add_argument("--samples", type=int, default=Config.samples)
    parser.add_argument("--methods", nargs="+", default=Config.methods)
    parser.add_argument("--folder", type=Path, default=Config.folder)
    prepare()
    given = vars(parser.parse_args(arguments))
    lists = {name: tuple(given[name]) for name in ("decibels", "methods")}
    run(Config(**{**given, **lists}))


if __name__ == "__main__":
    main()
