"""The traced model: what every bound, radius and loss works on.

B: batch, T: frames, N: features of a frame, C: classes.
"""

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from popqorn_train.certificates.fidelity import check_graph, check_hooks, check_logits
from popqorn_train.certificates.instance import Instance, as_frames, undisturbed
from popqorn_train.certificates.whole_batch import (
    check_apart,
    check_numbers,
    check_shape,
    other_numbers,
    telling_samples,
)
from popqorn_train.errors import UnsupportedModelError
from popqorn_train.operations import tables  # noqa: F401  (fills the tables of lift.py)
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.units import center_and_scale, frame_order
from popqorn_train.tracing.dependencies import structure
from popqorn_train.tracing.input_path import Plan, plan
from popqorn_train.tracing.packed import call_sorted
from popqorn_train.tracing.preserve import preserved
from popqorn_train.tracing.steps import pick_samples
from popqorn_train.tracing.trace import record
from popqorn_train.tracing.wrappers import unwrapped

Inputs = Tensor | tuple[Any, ...]

_KEPT = 32  # traces for batches of equal shapes and other lengths
_traces: "weakref.WeakKeyDictionary[nn.Module, dict[Any, list[tuple[Any, Plan]]]]" = (
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

    Raises:
        UnsupportedModelError: at the first call, for a model that cannot be bounded.
    """

    def __init__(self, model: nn.Module, perturb: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.perturb = perturb

    def batch_axis(self, inputs: Inputs) -> int:
        """Which axis of the inputs is the batch: 0, or 1 for a time-major model."""
        with undisturbed(self.model):
            return self._plan(self._named(inputs)).batch_axis

    def instance(
        self, inputs: Inputs, dtype: torch.dtype | None = None, *, check: bool = True
    ) -> Instance:
        """Trace if need be, and work out everything that does not move.

        Args:
            inputs: what the model's forward takes: a tensor or a tuple.
            dtype: precision of the bounds; None takes the weights', at least float32.
            check: run the model itself too, and refuse a trace that does not reproduce it; left
                out while training, where the model ran when it was traced.

        Raises:
            ValueError: inputs that the model cannot read.
            UnsupportedModelError: see the class.
        """
        named = self._named(inputs)
        with undisturbed(self.model):
            found = self._plan(named)
            if not check or dtype is not None:
                return self._case(named, found, dtype or self._precision())
            output = self._output(named)
            instance = self._case(named, found, self._precision())
            try:
                check_logits(instance, output)
            except UnsupportedModelError:  # perhaps something changed since it was traced
                _traces.pop(self.model, None)
                instance = self._case(named, self._plan(named), self._precision())
                check_logits(instance, output)
            self._check_apart(named, instance.plan, output)
        return instance

    def _lifter(self, named: dict[str, Any], found: Plan, dtype: torch.dtype) -> Lifter:
        source = next(iter(_tensors(named).values()))
        batch = source.shape[min(found.batch_axis, source.ndim - 1)]
        lifter = Lifter(found.trace, self.model, named, batch, dtype)
        lifter.hold(step.name for step in found.whole)
        return lifter

    def _check_apart(self, named: dict[str, Any], found: Plan, output: Any) -> None:
        """Samples whose own numbers are not those of the batch, in a batch of their own."""

        def run(chosen: Tensor) -> Any:
            axis = found.batch_axis
            return self._output({n: pick_samples(v, chosen, axis) for n, v in named.items()})

        check_apart(found, self._lifter(named, found, self._precision()), output, run)

    def _case(self, named: dict[str, Any], found: Plan, dtype: torch.dtype) -> Instance:
        lifter = self._lifter(named, found, dtype)
        check_numbers(found, lifter)
        value = lifter.value(found.root.name)
        check_shape(found, value)
        center, scale = center_and_scale(found, lifter)
        axis, order = found.root.batch_axis or 0, frame_order(found, lifter)
        scale = None if scale is None else as_frames(scale, axis, order)
        center, value = as_frames(center, axis, order), as_frames(value, axis, order)
        return Instance(lifter, found, center, value, scale, order)

    @property
    def weights_dtype(self) -> torch.dtype | None:
        """Precision of the weights; None without any."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)

    def _precision(self) -> torch.dtype:
        kinds = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        return torch.float64 if torch.float64 in kinds else torch.float32

    def _named(self, inputs: Inputs) -> dict[str, Any]:
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

    def _plan(self, named: dict[str, Any]) -> Plan:
        shapes = tuple(
            (value.shape, value.dtype) if isinstance(value, Tensor) else repr(value)
            for value in named.values()
        )
        known = _traces.setdefault(self.model, {})
        for axis in (0, 1):
            for shape, found in known.get((self.perturb, axis, _without(shapes, axis)), ()):
                if self._holds(shape, found, named):
                    return found
        output = self._output(named)  # first of all, inputs that the model itself can read
        check_hooks(self.model, lambda: self._output(named))
        found = self._make_plan(named)
        with torch.no_grad():
            check_graph(self._case(named, found, self._precision()), output)
            self._check_apart(named, found, output)
        shape = structure(self.model, found.trace.visited)
        kept = known.setdefault(
            (self.perturb, found.batch_axis, _without(shapes, found.batch_axis)), []
        )
        # Without numbers of the batch there is but one trace of these shapes.
        kept[:] = [(shape, found), *(kept[: _KEPT - 1] if found.whole else ())]
        return found

    def _holds(self, shape: Any, found: Plan, named: dict[str, Any]) -> bool:
        """Whether a trace is what would be recorded for these inputs."""
        if shape != structure(self.model, found.trace.visited):
            return False
        return not other_numbers(found, self._lifter(named, found, self._precision()))

    def _make_plan(self, named: dict[str, Any]) -> Plan:
        """Trace with the batch on axis 0; if the logits then have no batch, on axis 1."""
        failures: list[Exception] = []
        for axis in (0, 1):
            try:
                with torch.no_grad():
                    trace = record(self.model, named, axis)
                if trace.output_step.batch_axis == 0:
                    return self._fitted(plan(trace, self.model, axis, self.perturb), named)
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
        return plan(trace, self.model, found.batch_axis, self.perturb)

    def _output(self, named: dict[str, Any]) -> Any:
        """What the model itself returns."""
        try:
            with preserved(self.model), torch.no_grad():
                return call_sorted(self.model, list(named.values()))
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


def bound(model: nn.Module, *, perturb: str | None = None) -> BoundModel:
    """Prepare a model once, to reuse its trace or to say which tensor moves.

    Everything that takes a model also takes the result.

    Args:
        model: a classifier that returns logits ``(B, C)``; itself returned if already bound. What
            is compiled, or wrapped for training in parallel, is bounded without the wrapper.
        perturb: see ``BoundModel``.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"`model` must be an nn.Module that is not scripted, got {type(model).__name__}."
        )
    if isinstance(model, BoundModel):
        return model if perturb is None else BoundModel(model.model, perturb)
    inner = unwrapped(model)
    if inner is not model and (model._forward_hooks or model._forward_pre_hooks):
        raise UnsupportedModelError(
            f"`model` is a {type(model).__name__} with hooks of its own. Put them on the "
            f"{type(inner).__name__} inside, or bound that."
        )
    return BoundModel(inner, perturb)
