"""The standard network beside a certified one: what its configuration has otherwise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from popqorn_train.perturbations.masks import as_mask
from popqorn_train.recipes.evaluation import EvaluationSettings
from popqorn_train.training.loss import CertifiedLoss
from popqorn_train.training.objective import Objective

_MASKS = ("frames", "features")  # of what moves


def with_masks_of(loss: Objective | None, settings: EvaluationSettings) -> EvaluationSettings:
    """Settings that let move what the loss lets move, where they do not say."""
    names = [name for name in _MASKS if getattr(settings, name) is None]
    masks: dict[str, Any] = {name: _mask_of(loss, name) for name in names}
    return replace(settings, **masks)


def changes_of_twin(folder: Path, settings: EvaluationSettings, epochs: int | None) -> list[str]:
    """Arguments after the configuration of the certified network.

    Args:
        folder: of the certified network; its twin's lies inside.
        settings: of its evaluation. The masks may come from its loss, which the twin lacks.
        epochs: of the twin, or None for as many.
    """
    changes = {
        "model.loss": "null",
        "trainer.callbacks": "null",
        "trainer.logger": "null",
        "ckpt_path": "null",
        "evaluation.undecided_at": "null",  # intervals decide nothing there
        "folder": str(folder / "standard"),
    }
    for name in _MASKS:
        mask = as_mask(name, getattr(settings, name))
        changes[f"evaluation.{name}"] = json.dumps(None if mask is None else mask.tolist())
    if epochs is not None:
        changes["trainer.max_epochs"] = str(epochs)
    return [f"--{name}={value}" for name, value in changes.items()]


def _mask_of(loss: Objective | None, name: str) -> torch.Tensor | None:
    """What a loss lets move, if all of its objectives agree."""
    if loss is None:
        return None
    parts = [one for one in loss.modules() if isinstance(one, CertifiedLoss)]
    first, *others = [getattr(one, name) for one in parts] or [None]
    agree = all(_is_same(first, one) for one in others)
    return first if agree else None


def _is_same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)
