"""What the experiments of the POPQORN paper share: training once, numbers as JSON, rank trends.

Ko et al., "POPQORN", ICML 2019. S: samples, T: frames.
"""

import json
import math
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from popqorn_train.certificates.inputs import as_tuple
from popqorn_train.evaluation.provenance import fingerprint, versions
from popqorn_train.recipes.classifier import RobustClassifier
from popqorn_train.recipes.data.sequences import Loader, SequenceData
from popqorn_train.recipes.networks import RecurrentNet, load_recurrent_net


@dataclass(frozen=True)
class Training:
    """How a network of an experiment is trained, by cross entropy.

    Attributes:
        epochs: number of them.
        learning_rate: of Adam, at the start.
        seed: of weights and order.
    """

    epochs: int
    learning_rate: float = 5e-3
    seed: int = 0


def trained(
    net_settings: dict[str, Any], data: SequenceData, training: Training, path: Path
) -> RecurrentNet:
    """Train a network, or take the one that was trained in the same way before.

    Args:
        net_settings: arguments of ``RecurrentNet``.
        data: to train on.
        training: see there.
        path: of the checkpoint that is kept; ``load_net`` reads it.
    """
    made = {"net": net_settings, **asdict(training), "samples": len(data.train)}
    if path.is_file() and torch.load(path, weights_only=True).get("made") == made:
        return load_recurrent_net(path)
    pl.seed_everything(training.seed, verbose=False)
    net = RecurrentNet(**net_settings)
    trainer = pl.Trainer(
        max_epochs=training.epochs,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        limit_val_batches=0,
    )
    module = RobustClassifier(net, None, training.learning_rate)
    trainer.fit(module, datamodule=data)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"net.{name}": value.cpu() for name, value in net.state_dict().items()}
    torch.save({"state_dict": state, "net_settings": net.settings, "made": made}, path)
    return load_recurrent_net(path)


@torch.no_grad()
def accuracy(net: nn.Module, loader: Loader) -> float:
    """Share of samples that are classified correctly."""
    found = [net(*as_tuple(inputs)).argmax(1) == labels for inputs, labels in loader]
    return torch.cat(found).double().mean().item()


def provenance(net: RecurrentNet, test: Loader) -> dict[str, Any]:
    """Which network: settings, fingerprint of its weights, accuracy on the whole test set."""
    return {
        **net.settings,
        "weights": fingerprint(net),
        "test_accuracy": round(accuracy(net, test), 4),
    }


def write_numbers(folder: Path, name: str, numbers: dict[str, Any]) -> Path:
    """Write the numbers of an experiment with the command and the versions that made them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    made = {
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions("popqorn-train", "torch"),
    }
    path.write_text(json.dumps({**numbers, **made}, indent=1, allow_nan=False) + "\n")
    return path


def rounded(radii: Tensor) -> list[float]:
    """Radii as JSON values; five figures are more than they are worth."""
    return [float(f"{radius:.5g}") for radius in radii.tolist()]


def rank_trend(radii: Tensor) -> float:
    """Spearman's rank correlation of radius and frame, from -1 to 1; 1 where late is tolerant.

    Args:
        radii: ``(T,)`` of one sample.

    Returns:
        NaN for fewer than two frames or equal radii.
    """
    if len(radii) < 2 or bool((radii == radii[0]).all()):
        return math.nan
    _, places = torch.unique(radii.double(), return_inverse=True)
    counts = torch.bincount(places).double()
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[places]  # equal radii share their mean rank
    frames = torch.arange(len(radii), dtype=torch.float64)
    return float(torch.corrcoef(torch.stack([ranks, frames]))[0, 1])


def mean_of(values: list[float]) -> float:
    """Mean of the values that are numbers; NaN where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def plain(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else round(value, 5)
