"""A model, and what is remembered of its traces: how the plan for a batch is found and checked.

B: batch.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from popqorn_train.certificates.bad_samples import Screened, screened, told
from popqorn_train.certificates.fidelity import check_logits
from popqorn_train.certificates.inputs import (
    Inputs,
    as_tuple,
    dtype_of,
    tensors_of,
)
from popqorn_train.certificates.instance import Instance, prepared
from popqorn_train.certificates.isolation import hold_of
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
from popqorn_train.errors import UnboundedStepError, UnsupportedModelError
from popqorn_train.nested import map_nested
from popqorn_train.operations import tables  # noqa: F401  (fills the tables of lift.py)
from popqorn_train.operations.lift import Lifter
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.tracing.dependencies import structure
from popqorn_train.tracing.input_path import Plan
from popqorn_train.tracing.output_meaning import OutputIs
from popqorn_train.tracing.packed import call_sorted
from popqorn_train.tracing.packed_inputs import together
from popqorn_train.tracing.preserve import preserved
from popqorn_train.tracing.randomness import nothing_random
from popqorn_train.tracing.selection import Select, selected
from popqorn_train.tracing.steps import pick_samples


class TracedModel(nn.Module):
    """Runs a model, traces it, and keeps the traces that hold for a batch.

    Args: see ``BoundModel``, which checks them.
    """

    def __init__(
        self,
        model: nn.Module,
        perturb: str | None,
        frame_axis: int | None,
        output_is: OutputIs | None,
        select: Select | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.perturb = perturb
        self.frame_axis = frame_axis
        self.output_is = output_is
        self.select = select

    def run(self, named: dict[str, Any]) -> Any:
        """What the model itself returns, or is selected of it; call it inside ``undisturbed``."""
        with preserved(self.model):
            return self._called(named)

    def _called(self, named: dict[str, Any]) -> Any:
        def called(*values: Any) -> Any:
            arguments = together(dict(zip(named, values, strict=True)))
            return selected(self.model(*arguments), self.select)

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
                return self._steady(named)
        except UnsupportedModelError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in tensors_of(named).items())
            raise ValueError(
                f"`inputs` must be what {type(self.model).__name__}.forward takes, got {shapes}, "
                f"which it refuses: {error}"
            ) from error

    def _steady(self, named: dict[str, Any]) -> Any:
        """What the model returns, which must not depend on earlier calls."""
        with preserved(self.model) as before:
            output = self._called(_cloned(named))
            changed, first = before.changed(), [value.clone() for value in _tensors(output)]
            if changed and not self._returns(first, named):
                raise UnsupportedModelError(
                    f"The forward of {type(self.model).__name__} returns something else for the "
                    f"same inputs after other calls, as it keeps {', '.join(changed[:5])} from one "
                    "call to the next: it is not one function. Pass in what is kept, or set it "
                    "anew at the beginning of forward."
                )
            return output

    def _returns(self, first: list[Tensor], named: dict[str, Any]) -> bool:
        """Whether the model returns the same as before, after a call with other inputs."""
        with contextlib.suppress(Exception):  # which it may refuse
            self._called({name: _otherwise(value) for name, value in named.items()})
        return _are_close(first, _tensors(self._called(_cloned(named))))


def _otherwise(value: Any) -> Any:
    """Other inputs of the same kind."""
    if not isinstance(value, Tensor):
        return value
    flipped = value.flip(tuple(range(min(value.ndim, 2))))
    return flipped / 2 if value.is_floating_point() else flipped


def _cloned(named: dict[str, Any]) -> dict[str, Any]:
    """Inputs that forward may write into."""
    return {n: v.clone() if isinstance(v, Tensor) else v for n, v in named.items()}


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_nested(value, Tensor, found.append)
    return found


def _are_close(first: list[Tensor], again: list[Tensor]) -> bool:
    """Whether two calls returned the same, but for the order of sums."""
    return all(
        one.shape == two.shape and torch.allclose(one, two, rtol=1e-4, atol=1e-6, equal_nan=True)
        for one, two in zip(first, again, strict=True)
    )
