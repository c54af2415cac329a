"""A model and its data by name, as a command or another process opens them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popqorn_train.certificates.bound_model import BoundModel, bound
from popqorn_train.certificates.inputs import as_tuple
from popqorn_train.evaluation.batches import on_device, unpack_pair, unpacked
from popqorn_train.evaluation.checkpoint import load_weights
from popqorn_train.evaluation.dataset import Source, opened
from popqorn_train.evaluation.provenance import data_fingerprint, fingerprint
from popqorn_train.evaluation.resolve import resolved, resolved_model
from popqorn_train.tracing.selection import Select

_FIRST = 16  # samples by which data are known again


@dataclass(frozen=True)
class Subject:
    """What is certified, as plain values that open the same thing everywhere.

    Attributes:
        model: ``module:Name`` of a class, a function or an object.
        source: of the samples.
        checkpoint: file of the weights; None leaves those that the model has.
        prefix: of the model's names in that file.
        device: where the model goes; None takes cuda if there is one.
        perturb: see ``bound``, as for the next two.
        frame_axis: of the perturbed tensor.
        output_is: what a single output means.
        select: the part of the output that holds the logits: an index, a key, or ``module:name``.
    """

    model: str
    source: Source
    checkpoint: str | None = None
    prefix: str = ""
    device: str | None = None
    perturb: str | None = None
    frame_axis: int | None = None
    output_is: Any = None
    select: str | None = None

    def opened_model(self) -> BoundModel:
        """The model with its weights, on its device.

        Raises:
            ValueError, OSError: see ``resolved_model`` and ``load_weights``.
        """
        model = resolved_model(self.model)
        if self.prefix and self.checkpoint is None:
            raise ValueError("`--prefix` needs --checkpoint.")
        if self.checkpoint is not None:
            load_weights(model, Path(self.checkpoint), self.prefix)
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return bound(
            model.to(device).eval(),
            perturb=self.perturb,
            frame_axis=self.frame_axis,
            output_is=self.output_is,
            select=select_of(self.select),
        )

    def opened_data(self, model: BoundModel) -> Iterable[Any]:
        """Batches of the data set, whose floats are those of the model; see ``opened``."""
        return opened(self.source._replace(dtype=model.weights_dtype or torch.float32))

    def first_inputs(self, model: BoundModel, loader: Iterable[Any]) -> Any:
        """Inputs of the first batch, on the device of the model.

        Raises:
            ValueError: there is none.
        """
        first = next(iter(loader), None)
        if first is None:
            raise ValueError(
                f"`--data` {self.source.name} must give at least one batch, got none: its data set "
                "is empty, or it is an iterator that was read before."
            )
        inputs, target = unpacked(unpack_pair, first)
        device = next((p.device for p in model.parameters()), target.device)
        return on_device(inputs, device)

    def identity(self, model: BoundModel, loader: Iterable[Any], axis: int) -> dict[str, Any]:
        """Its names, the fingerprint of its weights, and that of the first samples."""
        return {
            "model": self.model,
            "checkpoint": self.checkpoint,
            "prefix": self.prefix,
            "data": self.source.name,
            "perturb": self.perturb,
            "frame_axis": self.frame_axis,
            "output_is": self.output_is,
            "select": self.select,
            "weights": fingerprint(model.model),
            "first_samples": data_fingerprint(batches(loader), _FIRST, axis),
        }


def select_of(text: str | None) -> Select | None:
    """What ``--select`` names: an index, a key, or a function ``module:name``.

    Raises:
        ValueError: no such function.
    """
    if text is None or ":" in text:
        found: Select | None = None if text is None else resolved(text, "--select")
        return found
    return int(text) if text.lstrip("-").isdigit() else text


def batches(loader: Iterable[Any]) -> Iterable[tuple[tuple[Any, ...], Tensor]]:
    """Inputs as a tuple and labels of every batch."""
    for batch in loader:
        inputs, target = unpacked(unpack_pair, batch)
        yield as_tuple(inputs), target
