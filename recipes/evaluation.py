"""What is known of a network on a test set, and how it is to be found out.

S: samples, A: attacked samples, R: epsilons.
"""

import csv
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.evaluation.certification import count_certified, lower_quantile
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.perturbations.masks import Mask, as_mask
from popqorn_train.plots import AccuracyCurve


@dataclass(frozen=True)
class EvaluationSettings:
    """How a trained network is certified and attacked; counts, not clocks, set what it costs.

    Attributes:
        epsilons: increasing, where accuracies are reported and the attack is run.
        decibels: the same in dB below 1, for waves over their peak; in place of ``epsilons``. They
            and radii are then reported in dB too.
        p: norm of the ball around every frame.
        low: least value of an input; None where there is none.
        high: greatest value of an input.
        frames: mask of the perturbed frames, a list of booleans; None takes that of the loss that
            trained the network, if it has one.
        features: mask of the perturbed features, likewise.
        method: bounding method; everything is certified with intervals at least.
        samples: how many of the test set are looked at, drawn by the seed 0; None takes them all.
        method_samples: how many of these are certified by ``method``; all are then certified with
            intervals as well. None takes them all.
        undecided_at: with ``method_samples``, an epsilon up to which ``method`` is also tried on
            every sample for which intervals are too weak; None leaves that out.
        radii: whether radii are searched; if not, a radius is the greatest of the epsilons that is
            proved, which costs a tenth of a search.
        rtol: relative precision of radii; they are rounded down.
        attack_samples: how many of these are attacked; None takes them all.
        attack_steps: gradient steps of a start.
        attack_restarts: starts, the clean input first.

    Raises:
        ValueError, TypeError: a value out of range, or a mask that is none.
    """

    epsilons: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    decibels: tuple[float, ...] | None = None
    p: float = math.inf
    low: float | None = None
    high: float | None = None
    frames: Mask | None = None
    features: Mask | None = None
    method: str = "popqorn"
    samples: int | None = None
    method_samples: int | None = None
    undecided_at: float | None = None
    radii: bool = True
    rtol: float = 1e-3
    attack_samples: int | None = None
    attack_steps: int = 40
    attack_restarts: int = 2

    def __post_init__(self) -> None:
        if self.decibels is not None:
            object.__setattr__(self, "epsilons", tuple(10 ** (d / 20) for d in self.decibels))
        rising = [0.0, *self.epsilons]
        if not self.epsilons or any(a >= b for a, b in itertools.pairwise(rising)):
            raise ValueError(f"`epsilons` must be positive and increasing, got {self.epsilons}.")
        for name in ("frames", "features"):
            as_mask(name, getattr(self, name))
        for name in ("samples", "method_samples", "attack_samples"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"`{name}` must be at least 1 or null, got {count}.")
        if self.undecided_at is not None and not self.undecided_at > 0:
            raise ValueError(f"`undecided_at` must be positive or null, got {self.undecided_at}.")

    def ball(self, epsilon: float) -> LpBall:
        """What may move, of one size."""
        return LpBall(
            epsilon,
            self.p,
            frames=as_mask("frames", self.frames),
            features=as_mask("features", self.features),
            low=self.low,
            high=self.high,
        )


class Evaluation(NamedTuple):
    """Per-sample results of one method on some samples of a test set.

    Attributes:
        method: that certified.
        positions: ``(S,)`` in the test set.
        labels: ``(S,)``.
        predictions: ``(S,)``.
        radii: ``(S,)`` certified; 0 where the prediction is wrong.
        capped: ``(S,)`` whether the radius is the largest that was tried.
        epsilons: where the attack was run.
        standing: ``(R, A)`` whether the attack failed on the first A samples; A may be 0.
        certify_seconds: spent on radii.
        attack_seconds: spent on attacks.
        decibels: whether sizes are reported in dB too.
    """

    method: str
    positions: Tensor
    labels: Tensor
    predictions: Tensor
    radii: Tensor
    capped: Tensor
    epsilons: tuple[float, ...]
    standing: Tensor
    certify_seconds: float = 0.0
    attack_seconds: float = 0.0
    decibels: bool = False

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

    def median(self) -> float:
        """Median radius; a wrong prediction counts as 0."""
        return lower_quantile(self.radii, 0.5).item()

    def curve(self, name: str) -> AccuracyCurve:
        """Both accuracies against epsilon: the certified one from every radius."""
        fine = torch.linspace(0, self.epsilons[-1], 201, dtype=torch.float64)[1:]
        shares = (count_certified(self.radii, fine) / len(self.radii)).tolist()
        certified = ((0.0, *fine.tolist()), [self.accuracy(), *shares])
        if not self.standing.shape[1]:
            return AccuracyCurve(name, *certified)
        attacked = [self.attacked(epsilon) for epsilon in self.epsilons]
        tried = self.standing.shape[1]
        clean = (self.predictions == self.labels)[:tried].double().mean().item()
        return AccuracyCurve(name, *certified, (0.0, *self.epsilons), [clean, *attacked])

    def write_csv(self, path: Path, name: str) -> None:
        """Append one line per sample."""
        fresh = not path.exists()
        columns = (self.positions, self.labels, self.predictions, self.radii, self.capped)
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                titles = ("index", "label", "prediction", "certified_radius", "capped")
                writer.writerow(["model", "method", *titles])
            rows = sorted(zip(*[column.tolist() for column in columns], strict=True))
            for index, label, prediction, radius, capped in rows:
                line = [name, self.method, index, label, prediction, f"{radius:.6g}", capped]
                writer.writerow(line)

    def plain(self) -> dict[str, Any]:
        """Counts and shares as JSON values; lists run along ``epsilons``."""
        tried = self.standing.shape[1]
        return {
            "method": self.method,
            "samples": len(self.radii),
            "clean_accuracy": self.accuracy(),
            "epsilons": list(self.epsilons),
            "certified_accuracy": [self.certified(epsilon) for epsilon in self.epsilons],
            "attacked_samples": tried,
            "pgd_accuracy": [self.attacked(e) for e in self.epsilons] if tried else None,
            "median_radius": self.median(),
            "mean_radius": self.radii.mean().item(),
            "capped": int(self.capped.sum()),
            "certify_seconds": round(self.certify_seconds, 2),
            "attack_seconds": round(self.attack_seconds, 2),
            **(self._in_decibels() if self.decibels else {}),
        }

    def _in_decibels(self) -> dict[str, Any]:
        """Sizes in dB below 1; a median of 0 has none."""
        median = self.median()
        return {
            "decibels": [round(20 * math.log10(epsilon), 6) for epsilon in self.epsilons],
            "median_decibels": 20 * math.log10(median) if median > 0 else None,
        }
