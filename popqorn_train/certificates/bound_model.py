"""The bound model: what every bound, radius and loss works on.

B: batch, T: frames, N: features of a frame, C: classes.
"""

import contextlib
from typing import Any

import torch
from torch import nn

from popqorn_train.certificates.bad_samples import Screened, faults
from popqorn_train.certificates.inputs import Inputs, named_inputs
from popqorn_train.certificates.instance import Instance
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.traced_model import TracedModel
from popqorn_train.errors import MixedSamplesError, UnsupportedModelError
from popqorn_train.tracing.input_path import Plan
from popqorn_train.tracing.output_meaning import KINDS, OutputIs
from popqorn_train.tracing.selection import Select, check_select
from popqorn_train.tracing.wrappers import unwrapped


class BoundModel(TracedModel):
    """A model that can be bounded: the differentiable bound layer.

    Args:
        model: a classifier whose forward returns logits ``(B, C)``, or see ``select``.
        perturb: what moves: the name of an argument of forward, of a sub-module or of a traced
            step; None takes the first floating input, for tokens the output of the embedding.
        frame_axis: the axis of what moves, as passed and with its batch axis counted, that holds
            the frames; None takes those that the first recurrent layer reads where layout changes
            and per-feature scalings alone lead to it, else axis 1 (0 where time comes first).
        output_is: what one number per sample is: a ``"logit"``, class 1 above 0, or a
            ``"probability"``, class 1 above 1/2; None decides by the code, and refuses where that
            leaves a doubt.
        select: which part of what the model returns holds the logits, where that is no tensor: an
            index, a key or the name of a field, or a function of it.

    Raises:
        TypeError: a ``frame_axis`` that is no whole number, or a ``select`` that selects nothing.
        ValueError: ``output_is`` of another kind; at the first call, a ``frame_axis`` that what
            moves does not have, or ``output_is`` for a model that returns several logits.
        UnsupportedModelError: at the first call, for a model that cannot be bounded.
    """

    def __init__(
        self,
        model: nn.Module,
        perturb: str | None = None,
        *,
        frame_axis: int | None = None,
        output_is: OutputIs | None = None,
        select: Select | None = None,
    ) -> None:
        check_select(select)
        whole = isinstance(frame_axis, int) and not isinstance(frame_axis, bool)
        if frame_axis is not None and not whole:
            raise TypeError(
                f"`frame_axis` must be an axis of the perturbed tensor, an integer or None, got "
                f"{frame_axis!r}."
            )
        if output_is not in (None, *KINDS):
            raise ValueError(
                f"`output_is` must be one of {', '.join(KINDS)}, or None, got {output_is!r}."
            )
        super().__init__(model, perturb, frame_axis, output_is, select)

    def batch_axis(self, inputs: Inputs) -> int:
        """Which axis of the inputs is the batch: 0, or 1 for a time-major model."""
        with undisturbed(self.model):
            return self._known(self._screened(named_inputs(self.model, inputs)).finite).batch_axis

    def moved(self, inputs: Inputs) -> str:
        """The name of the tensor that moves."""
        with undisturbed(self.model):
            plan = self._known(self._screened(named_inputs(self.model, inputs)).finite)
            return plan.source.name

    def errors(self, inputs: Inputs) -> dict[int, str]:
        """Samples that cannot be asked about, and what is wrong with each.

        They hold NaN or infinity in what the model reads, or it returns NaN for them.

        Raises:
            ValueError, UnsupportedModelError: see ``instance``.
            BrokenWeightsError: the model returns NaN for all samples, because of its weights.
        """
        with undisturbed(self.model):
            named = named_inputs(self.model, inputs)
            output, screen = self._output(named), self._screened(named)
            found = faults(self.model, named, screen, output)
            if found is None:
                return {}
            return found(self._known(screen.finite).batch_axis)

    def instance(
        self, inputs: Inputs, dtype: torch.dtype | None = None, *, check: bool = True
    ) -> Instance:
        """Trace the model, and work out everything that does not move.

        A trace holds for one question: settings, hooks and globals that forward reads may be
        others at the next one.

        Args:
            inputs: what the model's forward takes: a tensor or a tuple.
            dtype: precision of the bounds; None takes the weights', at least float32.
            check: trace anew, run the model itself too, and refuse a trace that does not
                reproduce it; left out while training, where an older trace of these sizes serves.

        Raises:
            ValueError: inputs that the model cannot read.
            UnsupportedModelError: see the class.
        """
        with undisturbed(self.model):
            named, dtype = named_inputs(self.model, inputs), dtype or self._precision()
            screen = self._screened(named)
            if not check:
                with contextlib.suppress(MixedSamplesError):  # other sizes than were traced
                    return self._read(named, screen, self._known(screen.finite), dtype)
            return self._read(named, screen, self._checked(inputs, screen.finite), dtype)

    def _read(
        self, named: dict[str, Any], screen: Screened, found: Plan, dtype: torch.dtype
    ) -> Instance:
        """The batch as a plan reads it."""
        return self._instance(screen.read(named, found.batch_axis), found, dtype)


def bound(
    model: nn.Module,
    *,
    perturb: str | None = None,
    frame_axis: int | None = None,
    output_is: OutputIs | None = None,
    select: Select | None = None,
) -> BoundModel:
    """Prepare a model: say which tensor is perturbed, what a frame is, or what an output means.

    Everything that takes a model also takes the result.

    Args:
        model: a classifier that returns logits ``(B, C)``; itself returned if already bound. What
            is compiled, or wrapped for training in parallel, is bounded without the wrapper.
        perturb: see ``BoundModel``; for a bound model, None keeps the perturbed tensor.
        frame_axis: see ``BoundModel``; with a new ``perturb``, None means none.
        output_is: see ``BoundModel``; for a bound model, None keeps the meaning.
        select: likewise.

    Raises:
        ValueError, TypeError: no such option, what is no model, or no axis.
        UnsupportedModelError: a wrapper with hooks of its own.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"`model` must be an nn.Module that is not scripted, got {type(model).__name__}."
        )
    if isinstance(model, BoundModel):
        if (perturb, frame_axis, output_is, select) == (None, None, None, None):
            return model
        if perturb is None and frame_axis is None:
            frame_axis = model.frame_axis
        perturb, output_is = perturb or model.perturb, output_is or model.output_is
        select, model = (model.select if select is None else select), model.model
        return BoundModel(model, perturb, frame_axis=frame_axis, output_is=output_is, select=select)
    inner = unwrapped(model)
    if inner is not model and (model._forward_hooks or model._forward_pre_hooks):
        raise UnsupportedModelError(
            f"`model` is a {type(model).__name__} with hooks of its own. Put them on the "
            f"{type(inner).__name__} inside, or bound that."
        )
    return BoundModel(inner, perturb, frame_axis=frame_axis, output_is=output_is, select=select)
