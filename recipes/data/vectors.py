"""Word vectors of norm 1, learned from labelled sentences by a certified run and then kept.

A GRU is trained with interval bounds on an l2 ball around every word, and the vectors with it; they
are put back to norm 1 after every step, so that they cannot grow instead of becoming robust. A
part of each is not learned but drawn at random: without it words that mean the same for the
classes fall together, and distances between words would be no yardstick for radii.

    vector = [sqrt(1 - identity^2) learned, identity random],  both of norm 1

V: words, D: size of a vector.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from popqorn_train import CertifiedLoss
from popqorn_train.evaluation.progress import shown
from popqorn_train.recipes.networks import RecurrentNet
from popqorn_train.training.schedule import LinearRamp

_WARMUP, _RAMP = 0.1, 0.5  # shares of the run


@dataclass(frozen=True)
class VectorSettings:
    """How word vectors are learned.

    Attributes:
        dimension: of a vector.
        identity: norm of the part that is drawn at random, from 0 to 1.
        identity_dimension: how much of ``dimension`` it takes.
        epochs: of the run.
        epsilon: ball of the run.
        kappa: weight of its clean term after the ramp.
        hidden: units of its GRU.
        learning_rate: of Adam.
        seed: of everything.

    Raises:
        ValueError: a value out of range.
    """

    dimension: int = 100
    identity: float = 0.6
    identity_dimension: int = 30
    epochs: int = 8
    epsilon: float = 0.15
    kappa: float = 0.5
    hidden: int = 48
    learning_rate: float = 5e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.identity < 1:
            raise ValueError(f"`identity` must lie in [0, 1), got {self.identity}.")
        if not 0 < self.identity_dimension < self.dimension:
            raise ValueError(
                f"`identity_dimension` must lie between 1 and `dimension` - 1, got "
                f"{self.identity_dimension} of {self.dimension}."
            )
        if self.epochs < 1:
            raise ValueError(f"`epochs` must be at least 1, got {self.epochs}.")


def learn_vectors(
    loader: DataLoader[Any], words: int, classes: int, settings: VectorSettings
) -> Tensor:
    """Learn the vectors ``(V, D)``; the global generators are put back afterwards.

    Args:
        loader: of batches ``((tokens, lengths), labels)`` to train on.
        words: V.
        classes: number of labels.
        settings: see there.
    """
    with isolate_rng():
        torch.manual_seed(settings.seed)
        return _learned(loader, words, classes, settings)


def _learned(loader: DataLoader[Any], words: int, classes: int, settings: VectorSettings) -> Tensor:
    net = RecurrentNet(
        settings.dimension, settings.hidden, classes, words=words, init="eye"
    ).requires_grad_()
    vectors = net.get_parameter("embedding.weight")
    fixed = settings.identity * normalize(vectors[:, -settings.identity_dimension :].detach())
    loss = CertifiedLoss(settings.epsilon, p=2, kappa=settings.kappa)
    epsilon = LinearRamp(0.0, settings.epsilon, _WARMUP, _RAMP)
    kappa = LinearRamp(1.0, settings.kappa, _WARMUP, _RAMP)
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.learning_rate)
    steps = settings.epochs * len(loader)
    milestones = [int(0.7 * steps), int(0.88 * steps)]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.3)
    bar = shown("learning word vectors", settings.epochs * len(loader.dataset))  # type: ignore[arg-type]
    _put_back(vectors, fixed)
    for epoch in range(settings.epochs):
        for batch, (inputs, labels) in enumerate(loader):
            progress = (epoch * len(loader) + batch) / steps
            loss.epsilon, loss.kappa = epsilon.at(progress), kappa.at(progress)
            optimizer.zero_grad()
            loss(net, inputs, labels).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            _put_back(vectors, fixed)
            bar.advance(len(labels))
    bar.close()
    return vectors.detach().clone()


def _put_back(vectors: Tensor, fixed: Tensor) -> None:
    """Norm 1, with the part that is not learned."""
    with torch.no_grad():
        share = fixed.norm(dim=1, keepdim=True)
        learned = normalize(vectors[:, : -fixed.shape[1]]) * (1 - share**2).sqrt()
        vectors.copy_(torch.cat([learned, fixed], 1))


def nearest_neighbour_distance(vectors: Tensor) -> float:
    """Median over vectors ``(V, D)`` of the l2 distance to the nearest other one."""
    nearest = []
    for rows in torch.split(torch.arange(len(vectors)), 1000):
        distances = torch.cdist(vectors[rows], vectors)
        distances[torch.arange(len(rows)), rows] = math.inf
        nearest.append(distances.amin(1))
    return torch.cat(nearest).median().item()
