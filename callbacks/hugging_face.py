"""Certified radii in a Hugging Face ``Trainer``: needs the extra ``transformers``."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from popqorn_train.certificates.bound_model import bound
from popqorn_train.evaluation.batches import Unpack, unpack_pair
from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.loader import certify_loader
from popqorn_train.evaluation.sample_list import SampleRows
from popqorn_train.tracing.selection import Select


def _base() -> Any:
    try:
        from transformers import TrainerCallback
    except ImportError:  # said when a callback is made
        return object
    return TrainerCallback


_BASE = _base()
_PREFIX = "eval_"


class CertifiedRadiusCallback(_BASE):  # type: ignore[misc, valid-type]
    """Certify the first samples of the evaluation set at every evaluation.

    ``eval_certified_radius_median``, ``_mean``, ``eval_clean_accuracy`` and
    ``eval_certified_accuracy_<epsilon>``, the dot of epsilon written ``p`` (0.05: ``0p05``), join
    the metrics of the evaluation and the log history of the trainer, so that
    ``metric_for_best_model="certified_radius_median"`` and ``EarlyStoppingCallback`` can use them.
    Only the first process certifies. The model is put back into the mode in which it was.

    Args:
        unpack: from a batch of the evaluation set to ``(inputs, target)``; the inputs are what
            forward takes by position.
        samples: how many samples to certify, from the first on.
        epsilons: where certified accuracy is reported, in the units of the input.
        select: the part of the output that holds the logits: an index, a key, or a function.
        log: is called with the metrics as well, for example ``trainer.log``, which tells the
            integrations (wandb, TensorBoard, MLflow).
        **options: of ``certify_loader``: ``p``, ``low``, ``high``, ``method``, ``attack`` and
            so on. Without ``method``, ``popqorn-fast`` is used.

    Attributes:
        last: the newest rows, or None.

    Raises:
        ImportError: transformers is not installed.
    """

    def __init__(
        self,
        unpack: Unpack = unpack_pair,
        *,
        samples: int = 64,
        epsilons: Sequence[float] = (0.01, 0.02, 0.05, 0.1),
        select: Select | None = None,
        log: Callable[[dict[str, float]], Any] | None = None,
        **options: Any,
    ) -> None:
        if _BASE is object:
            raise ImportError(
                "CertifiedRadiusCallback needs transformers: "
                'pip install "popqorn-train[transformers]".'
            )
        self.log = log
        self.last: SampleRows | None = None
        self._unpack, self._select, self._epsilons = unpack, select, tuple(epsilons)
        self._options: dict[str, Any] = {"method": "popqorn-fast", "progress": False, **options}
        self._options["samples"] = samples

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        model: nn.Module,
        eval_dataloader: Any,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        """Certify, and add to the metrics."""
        if not state.is_world_process_zero:
            return
        training = model.training
        layer = bound(model.eval(), select=self._select)
        try:
            rows = certify_loader(
                layer,
                eval_dataloader,
                unpack=self._unpack,
                epsilons=self._epsilons,
                **self._options,
            )
        finally:
            model.train(training)
        self.last = rows
        found = self._metrics(Certification(0, state.global_step, tuple(rows), 0.0))
        metrics.update(found)
        state.log_history.append({**found, "step": state.global_step})
        if self.log is not None:
            self.log(found)

    def _metrics(self, certification: Certification) -> dict[str, float]:
        if not certification.answered:
            return {}
        radii = certification.radii
        found = {
            "certified_radius_median": radii.median().item(),
            "certified_radius_mean": radii.mean().item(),
            "clean_accuracy": certification.clean_accuracy,
        }
        shares = certification.certified_accuracy(self._epsilons)
        for epsilon, share in zip(self._epsilons, shares, strict=True):
            found[f"certified_accuracy_{epsilon:g}".replace(".", "p")] = float(share)
        return {f"{_PREFIX}{name}": value for name, value in found.items()}
