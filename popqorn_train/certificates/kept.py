"""Batches with samples that cannot be asked about: the others are answered as if alone.

B: batch, b: samples that are left, T: frames, C: classes.
"""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.inputs import Inputs, as_tuple
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.errors import BadSamplesError
from popqorn_train.nested import map_nested
from popqorn_train.perturbations.box import check_ball
from popqorn_train.perturbations.substitutions import Substitutions
from popqorn_train.tracing.steps import pick_samples


class Kept(NamedTuple):
    """The samples of a batch that can be asked about, beside others that cannot.

    Attributes:
        errors: what is wrong with the others.
        size: B.
        chosen: ``(b,)`` the samples.
        inputs: of these; nothing where there are none.
        frames: in a sample.
        classes: of the model.
    """

    errors: dict[int, str]
    size: int
    chosen: Tensor
    inputs: tuple[Any, ...]
    frames: int
    classes: int

    def some(self, value: Any) -> Any:
        """Of what is given for every sample, what belongs to these."""

        def cut(value: Tensor) -> Tensor:
            whole = value.ndim > 0 and len(value) == self.size
            return value[self.chosen.to(value.device)] if whole else value

        return map_nested(value, Tensor, cut)

    def ball(self, ball: Any) -> Any:
        """The perturbation of these."""
        known = ball if isinstance(ball, Substitutions) else check_ball(ball)
        return known.pick(self.chosen, self.size)

    def spread(self, values: Tensor, empty: float = torch.nan) -> Tensor:
        """Values of these as a part of the whole batch; ``empty`` for the others."""
        whole = values.new_full((self.size, *values.shape[1:]), empty)
        return whole.index_copy(0, self.chosen.to(values.device), values)

    def warn(self) -> None:
        """Say which samples have no answer."""
        warnings.warn(f"{said(self.errors)}; their results are NaN.", stacklevel=4)


def kept_of(layer: BoundModel, inputs: Inputs) -> Kept | None:
    """The samples that can be asked about, where some cannot; None where all can.

    Raises:
        ValueError, UnsupportedModelError: see ``BoundModel.errors``.
    """
    errors = layer.errors(inputs)
    if not errors:
        return None
    with undisturbed(layer.model):
        whole, axis = layer.instance(inputs), layer.batch_axis(inputs)
    size, frames, _ = whole.center.shape
    chosen = torch.tensor([at for at in range(size) if at not in errors], dtype=torch.long)
    values = as_tuple(inputs) if len(chosen) else ()
    picked = tuple(pick_samples(value, chosen, axis) for value in values)
    return Kept(errors, size, chosen, picked, frames, whole.plan.classes)


def check_samples(layer: BoundModel, inputs: Inputs) -> None:
    """Refuse a batch with samples that cannot be asked about.

    Raises:
        BadSamplesError: naming them; and as ``BoundModel.errors``.
    """
    errors = layer.errors(inputs)
    if errors:
        raise BadSamplesError(f"{said(errors)}.", errors)


def said(errors: Mapping[int, str]) -> str:
    """Samples that cannot be asked about, in one sentence."""
    first = [f"sample {at} ({text})" for at, text in sorted(errors.items())[:3]]
    more = f" and {len(errors) - 3} more" if len(errors) > 3 else ""
    return f"`inputs` hold samples that cannot be certified: {'; '.join(first)}{more}"
