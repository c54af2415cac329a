"""Certify and attack a test set: the numbers that every recipe ends with."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import track
from torch import Tensor, nn

from popqorn_train import LpBall
from popqorn_train.attack import attack
from popqorn_train.certification import count_certified
from popqorn_train.plots import AccuracyCurve
from popqorn_train.radius import search_radius

_CHUNK = 50  # samples certified at once; more would not fit the cache


class Evaluation(NamedTuple):
    """Per-sample results of one model on a test set.

    Attributes:
        labels: ``(S,)``.
        predictions: ``(S,)``.
        radii: ``(S,)`` certified; 0 where the prediction is wrong.
        capped: ``(S,)`` whether the radius is the largest that was tried.
        epsilons: where the attack was run.
        standing: ``(R, S)`` whether the attack failed at each epsilon.
    """

    labels: Tensor
    predictions: Tensor
    radii: Tensor
    capped: Tensor
    epsilons: tuple[float, ...]
    standing: Tensor

    def accuracy(self) -> float:
        """Clean accuracy."""
        return (self.predictions == self.labels).double().mean().item()

    def certified(self, epsilon: float) -> float:
        """Certified accuracy at an epsilon."""
        counted = count_certified(self.radii, torch.tensor([epsilon], dtype=torch.float64))
        return counted.item() / len(self.radii)

    def attacked(self, epsilon: float) -> float:
        """Share that the attack left standing, at one of ``epsilons``."""
        return self.standing[self.epsilons.index(epsilon)].double().mean().item()

    def curve(self, name: str) -> AccuracyCurve:
        """Both accuracies against epsilon: the certified one from every radius."""
        attacked = [self.accuracy(), *[self.attacked(epsilon) for epsilon in self.epsilons]]
        fine = torch.linspace(0, self.epsilons[-1], 201, dtype=torch.float64)[1:]
        shares = (count_certified(self.radii, fine) / len(self.radii)).tolist()
        return AccuracyCurve(
            name,
            (0.0, *fine.tolist()),
            [self.accuracy(), *shares],
            (0.0, *self.epsilons),
            attacked,
        )

    def write_csv(self, path: Path, name: str) -> None:
        """Append one line a sample."""
        fresh = not path.exists()
        columns = (self.labels, self.predictions, self.radii, self.capped)
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                titles = ("label", "prediction", "certified_radius", "capped")
                writer.writerow(["model", "index", *titles])
            rows = zip(*[column.tolist() for column in columns], strict=True)
            for index, (label, prediction, radius, capped) in enumerate(rows):
                writer.writerow([name, index, label, prediction, f"{radius:.6g}", capped])


def evaluate(
    net: nn.Module,
    x: Tensor,
    labels: Tensor,
    epsilons: Sequence[float],
    *,
    low: float,
    high: float,
    attack_steps: int,
) -> Evaluation:
    """Find certified radii by full backward bounds, and attack at every epsilon.

    Args:
        net: returns logits.
        x: ``(S, T, N)``.
        labels: ``(S,)``.
        epsilons: increasing, where the attack is run.
        low: least value of an input.
        high: greatest value of an input.
        attack_steps: gradient steps of the attack.
    """
    with torch.no_grad():
        predictions = net(x).argmax(1)
    radii, capped, standing = [], [], []
    chunks = torch.split(torch.arange(len(x), device=x.device), _CHUNK)
    for some in track(chunks, f"certifying and attacking {len(x)} inputs"):
        found = search_radius(net, x[some], labels[some], LpBall(0.0, low=low, high=high))
        radii.append(found.radius)
        capped.append(found.capped)
        balls = [LpBall(epsilon, low=low, high=high) for epsilon in epsilons]
        margins = [
            attack(net, x[some], labels[some], ball, steps=attack_steps).margin for ball in balls
        ]
        standing.append(torch.stack(margins) > 0)
    return Evaluation(
        labels.cpu(),
        predictions.cpu(),
        torch.cat(radii).cpu(),
        torch.cat(capped).cpu(),
        tuple(epsilons),
        torch.cat(standing, 1).cpu(),
    )
