"""The traced model: what every bound, radius and loss works on.

B: batch, T: frames, N: features of a frame, C: classes.
"""

import functools
import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.certificates.fidelity import check_logits
from popqorn_train.certificates.instance import Instance, prepared
from popqorn_train.certificates.isolation import hold_of, undisturbed
from popqorn_train.certificates.whole_batch import (
    check_apart,
    check_numbers,
    check_shape,
    numbers_of,
    other_numbers,
    telling_samples,
)
from popqorn_train.errors import UnsupportedModelError
from popqorn_train.operations import tables  # noqa: F401  (fills the tables of lift.py)
from popqorn_train.operations.lift import Lifter
from popqorn_train.tracing.dependencies import structure
from popqorn_train.tracing.input_path import Plan, plan
from popqorn_train.tracing.output_meaning import KINDS, OutputIs
from popqorn_train.tracing.packed import call_sorted
from popqorn_train.tracing.preserve import preserved
from popqorn_train.tracing.randomness import nothing_random
from popqorn_train.tracing.steps import pick_samples
from popqorn_train.tracing.trace import record
from popqorn_train.tracing.wrappers import unwrapped

Inputs = Tensor | tuple[Any, ...]

_KEPT = 32  # traces for batches of equal shapes, but of other numbers of the whole batch


class _Known(NamedTuple):
    """A trace, and what it was made for.

    Attributes:
        plan: what moves in it.
        hold: the question it was made for, see ``hold_of``.
        seen: the inputs that it was compared on.
        structure: of the model then.
    """

    plan: Plan
    hold: int
    seen: tuple[int, ...]
    structure: Any


_traces: "weakref.WeakKeyDictionary[nn.Module, dict[Any, dict[Any, _Known]]]" = (
    weakref.WeakKeyDictionary()
)


def as_tuple(inputs: Inputs) -> tuple[Any, ...]:
    """The arguments of forward."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


class BoundModel(nn.Module):
    """A model that can be bounded: the differentiable bound layer.

    Args:
        model: a classifier whose forward returns logits ``(B, C)``.
        perturb: what moves: the name of an argument of forward, of a sub-module or of a traced
            step; None takes the first floating input, for tokens the output of the embedding.
        frame_axis: the axis of what moves, as passed and with its batch axis counted, that holds
            the frames; None takes those that the first recurrent layer reads where layout changes
            and per-feature scalings alone lead to it, else axis 1 (0 where time comes first).
        output_is: what one number a sample is: a ``"logit"``, class 1 above 0, or a
            ``"probability"``, class 1 above 1/2; None decides by the code, and refuses where that
            leaves a doubt.

    Raises:
        TypeError: a ``frame_axis`` that is no whole number.
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
    ) -> None:
        super().__init__()
        whole = isinstance(frame_axis, int) and not isinstance(frame_axis, bool)
        if frame_axis is not None and not whole:
            raise TypeError(
                f"`frame_axis` must be an axis of what moves, a whole number or None, got "
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

    def batch_axis(self, inputs: Inputs) -> int:
        """Which axis of the inputs is the batch: 0, or 1 for a time-major model."""
        with undisturbed(self.model):
            return self._known(self.named(inputs)).batch_axis

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
                reproduce it; left out while training, where an older trace may serve.

        Raises:
            ValueError: inputs that the model cannot read.
            UnsupportedModelError: see the class.
        """
        with undisturbed(self.model):
            named = self.named(inputs)
            found = self._checked(inputs, named) if check else self._known(named)
            return self._instance(named, found, dtype or self._precision())

    def run(self, values: Sequence[Any]) -> Any:
        """What the model itself returns, as it is; call it inside ``undisturbed``."""
        with preserved(self.model):
            return call_sorted(self.model, values)

    def _instance(self, named: dict[str, Any], found: Plan, dtype: torch.dtype) -> Instance:
        lifter = self._lifter(named, found, dtype)
        check_numbers(found, lifter)
        check_shape(found, lifter.value(found.root.name))
        return prepared(lifter, found)

    def _lifter(self, named: dict[str, Any], found: Plan, dtype: torch.dtype) -> Lifter:
        source = next(iter(_tensors(named).values()))
        batch = source.shape[min(found.batch_axis, source.ndim - 1)]
        lifter = Lifter(found.trace, self.model, named, batch, dtype)
        lifter.hold(step.name for step in found.whole)
        return lifter

    @property
    def weights_dtype(self) -> torch.dtype | None:
        """Precision of the weights; None without any."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)

    def _precision(self) -> torch.dtype:
        kinds = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        return torch.float64 if torch.float64 in kinds else torch.float32

    def named(self, inputs: Inputs) -> dict[str, Any]:
        """The arguments of forward by name.

        Raises:
            ValueError, TypeError: what no model of this kind can read.
        """
        values = as_tuple(inputs)
        names = _arguments(type(self.model).forward)
        names = names + [f"argument_{index}" for index in range(len(names), len(values))]
        named = dict(zip(names, values, strict=False))
        tensors = _tensors(named)
        if not tensors:
            raise TypeError(
                f"`inputs` must be a tensor or a tuple with one, got {type(inputs).__name__}."
            )
        for name, tensor in tensors.items():
            if 0 in tensor.shape or tensor.ndim == 0:
                raise ValueError(
                    f"`inputs` must hold at least one sample and one frame, got {name} of shape "
                    f"{tuple(tensor.shape)}."
                )
            self._check_dtype(name, tensor)
        return {name: _usable(value) for name, value in named.items()}

    def _check_dtype(self, name: str, tensor: Tensor) -> None:
        own = self.weights_dtype
        if tensor.is_floating_point() and own is not None and tensor.dtype != own:
            raise TypeError(
                f"`inputs` ({name}) must be {own} as the model's weights are, got {tensor.dtype}. "
                f"Convert it with .to({own}), or the model."
            )

    def _checked(self, inputs: Inputs, named: dict[str, Any]) -> Plan:
        """The plan for these inputs, on which the trace was compared with the model."""
        hold = hold_of(self.model)
        last = self._lookup(named, lambda known: known.hold == hold)
        seen = (hold, *map(id, as_tuple(inputs)))
        if last is not None and last.seen == seen:
            return last.plan
        output = self._output(named)  # first of all, inputs that the model itself can read
        plan = self._make_plan(named) if last is None else last.plan
        exact = functools.partial(self._instance, named, plan, torch.float64)
        own = self._instance(named, plan, self._precision())
        check_logits(own, exact, output, self.weights_dtype)

        def run(chosen: Tensor) -> Any:
            axis = plan.batch_axis
            return self._output({n: pick_samples(v, chosen, axis) for n, v in named.items()})

        check_apart(own, exact, output, self.weights_dtype, run)
        self._remember(named, _Known(plan, hold, seen, structure(self.model, plan.trace.visited)))
        return plan

    def _known(self, named: dict[str, Any]) -> Plan:
        """A plan for inputs of this shape, as long as the model's structure is the same."""

        def holds(known: _Known) -> bool:
            return known.structure == structure(self.model, known.plan.trace.visited)

        last = self._lookup(named, holds)
        return self._checked(tuple(named.values()), named) if last is None else last.plan

    def _lookup(self, named: dict[str, Any], holds: Callable[["_Known"], bool]) -> "_Known | None":
        """A trace of such inputs, and of the numbers that the whole batch has in these."""
        known = _traces.setdefault(self.model, {})
        kept = [last for axis in (0, 1) for last in known.get(self._key(named, axis), {}).values()]
        for last in kept:
            if holds(last):
                lifter = self._lifter(named, last.plan, self._precision())
                if not other_numbers(last.plan, lifter):
                    return last
        return None

    def _remember(self, named: dict[str, Any], known: "_Known") -> None:
        key = self._key(named, known.plan.batch_axis)
        kept = _traces[self.model].setdefault(key, {})
        kept[numbers_of(known.plan)] = known
        while len(kept) > _KEPT:
            del kept[next(iter(kept))]

    def _key(self, named: dict[str, Any], axis: int) -> tuple[Any, ...]:
        shapes = tuple(
            (value.shape, value.dtype) if isinstance(value, Tensor) else repr(value)
            for value in named.values()
        )
        return (*self._asked, axis, _without(shapes, axis))

    @property
    def _asked(self) -> tuple[Any, ...]:
        """What plans of the same trace differ by."""
        return self.perturb, self.frame_axis, self.output_is

    def _make_plan(self, named: dict[str, Any]) -> Plan:
        """Trace with the batch on axis 0; if the logits then have no batch, on axis 1.

        An axis on which all tensors are as long comes first.
        """
        failures: list[Exception] = []
        for axis in sorted((0, 1), key=lambda axis: len(_lengths(named, axis))):
            try:
                with torch.no_grad():
                    trace = record(self.model, named, axis)
                if trace.output_step.batch_axis == 0:
                    return self._fitted(plan(trace, self.model, axis, *self._asked), named)
            except UnsupportedModelError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        raise UnsupportedModelError(
            f"{type(self.model).__name__} returns logits without a batch axis, expected (B, C). "
            "Return one row of logits a sample."
        )

    def _fitted(self, found: Plan, named: dict[str, Any]) -> Plan:
        """The plan of a recording with the numbers of the whole batch, if there is one."""
        lifter = self._lifter(named, found, self._precision())
        samples = telling_samples(found, lifter) if other_numbers(found, lifter) else None
        if samples is None:
            return found
        with torch.no_grad():
            trace = record(self.model, named, found.batch_axis, samples.tolist())
        return plan(trace, self.model, found.batch_axis, *self._asked)

    def _output(self, named: dict[str, Any]) -> Any:
        """What the model itself returns."""
        try:
            with torch.no_grad(), nothing_random(self.model):
                return self.run(list(named.values()))
        except UnsupportedModelError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in _tensors(named).items())
            raise ValueError(
                f"`inputs` must be what {type(self.model).__name__}.forward takes, got {shapes}, "
                f"which it refuses: {error}"
            ) from error


@functools.cache
def _arguments(forward: Callable[..., Any]) -> list[str]:
    """Names of what a forward takes."""
    return list(inspect.signature(forward).parameters)[1:]


def _tensors(named: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def _lengths(named: dict[str, Any], axis: int) -> set[int]:
    """How many samples the tensors hold if the batch is this axis of them."""
    return {value.shape[min(axis, value.ndim - 1)] for value in _tensors(named).values()}


def _usable(value: Any) -> Any:
    """Autograd cannot save an inference tensor: take a normal copy."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _without(shapes: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    """Shapes with the size of the batch left out."""

    def cut(entry: Any) -> Any:
        if not (isinstance(entry, tuple) and entry and isinstance(entry[0], torch.Size)):
            return entry
        at = min(axis, len(entry[0]) - 1)
        return (*entry[0][:at], None, *entry[0][at + 1 :], entry[1])

    return tuple(cut(entry) for entry in shapes)


def bound(
    model: nn.Module,
    *,
    perturb: str | None = None,
    frame_axis: int | None = None,
    output_is: OutputIs | None = None,
) -> BoundModel:
    """Prepare a model once: to say which tensor moves, what a frame is, or what an output is.

    Everything that takes a model also takes the result.

    Args:
        model: a classifier that returns logits ``(B, C)``; itself returned if already bound. What
            is compiled, or wrapped for training in parallel, is bounded without the wrapper.
        perturb: see ``BoundModel``; for a bound model, None leaves what moves.
        frame_axis: see ``BoundModel``; with a new ``perturb``, None means none.
        output_is: see ``BoundModel``; for a bound model, None leaves what it was.

    Raises:
        ValueError, TypeError: no such option, what is no model, or no axis.
        UnsupportedModelError: a wrapper with hooks of its own.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"`model` must be an nn.Module that is not scripted, got {type(model).__name__}."
        )
    if isinstance(model, BoundModel):
        if perturb is None and frame_axis is None and output_is is None:
            return model
        if perturb is None and frame_axis is None:
            frame_axis = model.frame_axis
        perturb, output_is = perturb or model.perturb, output_is or model.output_is
        return BoundModel(model.model, perturb, frame_axis=frame_axis, output_is=output_is)
    inner = unwrapped(model)
    if inner is not model and (model._forward_hooks or model._forward_pre_hooks):
        raise UnsupportedModelError(
            f"`model` is a {type(model).__name__} with hooks of its own. Put them on the "
            f"{type(inner).__name__} inside, or bound that."
        )
    return BoundModel(inner, perturb, frame_axis=frame_axis, output_is=output_is)
