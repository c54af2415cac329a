"""The traced model: what every bound, radius and loss works on.

B: batch, T: frames, N: features of a frame, C: classes.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from popqorn_train.certificates.bad_samples import Screened, faults, screened, told
from popqorn_train.certificates.fidelity import check_logits
from popqorn_train.certificates.inputs import (
    Inputs,
    as_tuple,
    dtype_of,
    named_inputs,
    tensors_of,
)
from popqorn_train.certificates.instance import Instance, prepared
from popqorn_train.certificates.isolation import hold_of, undisturbed
from popqorn_train.certificates.planning import Planner, all_refusals
from popqorn_train.certificates.traces import (
    Known,
    last_run,
    remember,
    remember_run,
    remembered,
)
from popqorn_train.certificates.whole_batch import (
    check_apart,
    check_numbers,
    check_shape,
    other_numbers,
)
from popqorn_train.errors import MixedSamplesError, UnboundedStepError, UnsupportedModelError
from popqorn_train.operations import tables  # noqa: F401  (fills the tables of lift.py)
from popqorn_train.operations.lift import Lifter
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.tracing.dependencies import structure
from popqorn_train.tracing.input_path import Plan
from popqorn_train.tracing.output_meaning import KINDS, OutputIs
from popqorn_train.tracing.packed import call_sorted
from popqorn_train.tracing.packed_inputs import together
from popqorn_train.tracing.preserve import preserved
from popqorn_train.tracing.randomness import nothing_random
from popqorn_train.tracing.selection import Select, check_select, selected
from popqorn_train.tracing.steps import pick_samples
from popqorn_train.tracing.wrappers import unwrapped


class BoundModel(nn.Module):
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
        super().__init__()
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
        self.model = model
        self.perturb = perturb
        self.frame_axis = frame_axis
        self.output_is = output_is
        self.select = select

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

    def run(self, named: dict[str, Any]) -> Any:
        """What the model itself returns, or is selected of it; call it inside ``undisturbed``."""

        def called(*values: Any) -> Any:
            arguments = together(dict(zip(named, values, strict=True)))
            return selected(self.model(*arguments), self.select)

        with preserved(self.model):
            return call_sorted(called, list(named.values()))

    def _instance(self, named: dict[str, Any], found: Plan, dtype: torch.dtype) -> Instance:
        lifter = self._lifter(named, found, dtype)
        check_numbers(found, lifter)
        check_shape(found, lifter.value(found.root.name))
        return prepared(lifter, found)

    def _lifter(self, named: dict[str, Any], found: Plan, dtype: torch.dtype) -> Lifter:
        source = next(iter(tensors_of(named).values()))
        batch = source.shape[min(found.batch_axis, source.ndim - 1)]
        lifter = Lifter(found.trace, self.model, named, batch, dtype)
        lifter.hold(step.name for step in found.whole)
        return lifter

    @property
    def weights_dtype(self) -> torch.dtype | None:
        """Precision of the weights; None without any."""
        return dtype_of(self.model)

    def _precision(self) -> torch.dtype:
        kinds = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        return torch.float64 if torch.float64 in kinds else torch.float32

    def _checked(self, inputs: Inputs, named: dict[str, Any]) -> Plan:
        """The plan for these inputs, on which the trace was compared with the model."""
        hold = hold_of(self.model)
        last = self._last(named, lambda known: known.hold == hold)
        seen = (hold, *map(id, as_tuple(inputs)))
        if last is not None and last.seen == seen:
            return last.plan
        output = self._output(named)  # first of all, inputs that the model itself can read
        plan = self._planner.make(named) if last is None else last.plan
        own = self._instance(named, plan, self._precision())
        try:
            self._check(named, own, output)
        except UnboundedStepError as error:
            raise all_refusals(error, own) from error
        known = Known(plan, hold, seen, structure(self.model, plan.trace.visited))
        remember(self.model, self._known_by, named, known)
        return plan

    def _check(self, named: dict[str, Any], own: Instance, output: Any) -> None:
        """Refuse what the recorded operations do not compute, or what has no bound."""
        plan = own.plan
        exact = functools.partial(self._instance, named, plan, torch.float64)
        check_logits(own, exact, output, self.weights_dtype)

        def run(chosen: Tensor) -> Any:
            axis = plan.batch_axis
            return self._output({n: pick_samples(v, chosen, axis) for n, v in named.items()})

        check_apart(own, exact, output, self.weights_dtype, run)
        if not remembered(self.model, self._known_by, named):
            own.graph(LpBall(0.0))  # what has no bound is refused before anything is asked of it

    def _known(self, named: dict[str, Any]) -> Plan:
        """A plan for inputs of this shape, as long as the model's structure is the same."""

        def holds(known: Known) -> bool:
            return known.structure == structure(self.model, known.plan.trace.visited)

        last = self._last(named, holds)
        return self._checked(tuple(named.values()), named) if last is None else last.plan

    def _last(self, named: dict[str, Any], holds: Callable[[Known], bool]) -> Known | None:
        """A trace of such inputs, and of the numbers that the whole batch has in these."""
        for last in remembered(self.model, self._known_by, named):
            if holds(last):
                lifter = self._lifter(named, last.plan, self._precision())
                if not other_numbers(last.plan, lifter):
                    return last
        return None

    @property
    def _asked(self) -> tuple[Any, ...]:
        """What plans of the same trace differ by."""
        return self.perturb, self.frame_axis, self.output_is

    @property
    def _planner(self) -> Planner:
        def lifter(named: dict[str, Any], found: Plan) -> Lifter:
            return self._lifter(named, found, self._precision())

        return Planner(self.model, self._asked, self.select, lifter)

    @property
    def _known_by(self) -> tuple[Any, ...]:
        """What traces differ by."""
        return *self._asked, self.select

    def _screened(self, named: dict[str, Any]) -> Screened:
        """The inputs, with 0 for numbers that are not finite."""
        found = screened(named, self.perturb, self._output)
        if not found.names:
            return found
        plan = self._known(found.finite)
        meant = told(named, found, plan, lambda own: self._lifter(own, plan, self._precision()))
        return screened(named, self.perturb, self._output, meant) if meant else found

    def _output(self, named: dict[str, Any]) -> Any:
        """What the model itself returns."""
        last = last_run(self.model, hold_of(self.model), named)
        if last is not None:
            return last[0]
        output = self._ran(named)
        remember_run(self.model, hold_of(self.model), named, output)
        return output

    def _ran(self, named: dict[str, Any]) -> Any:
        try:
            with torch.no_grad(), nothing_random(self.model):
                own = {n: v.clone() if isinstance(v, Tensor) else v for n, v in named.items()}
                return self.run(own)  # which may write into them
        except UnsupportedModelError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in tensors_of(named).items())
            raise ValueError(
                f"`inputs` must be what {type(self.model).__name__}.forward takes, got {shapes}, "
                f"which it refuses: {error}"
            ) from error


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
