"""From a model and inputs to the plan that a certificate follows: recorded where the batch is."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from popqorn_train.certificates.inputs import lengths_along
from popqorn_train.certificates.instance import Instance
from popqorn_train.certificates.whole_batch import other_numbers, telling_samples
from popqorn_train.errors import UnboundedStepError, UnsupportedModelError
from popqorn_train.operations.lift import Lifter
from popqorn_train.tracing.input_path import Plan, plan
from popqorn_train.tracing.selection import Select
from popqorn_train.tracing.trace import record


class Planner:
    """Records a model, and decides what moves in it.

    Args:
        model: the module.
        asked: what ``plan`` takes besides a trace: ``perturb``, ``frame_axis``, ``output_is``.
        select: see ``BoundModel``.
        lifter: runs recorded operations on inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        asked: tuple[Any, ...],
        select: Select | None,
        lifter: Callable[[dict[str, Any], Plan], Lifter],
    ) -> None:
        self._model, self._asked, self._select, self._lifter = model, asked, select, lifter

    def make(self, named: dict[str, Any]) -> Plan:
        """Trace with the batch on axis 0; if the logits then have no batch, on axis 1.

        An axis on which all tensors are as long comes first.

        Raises:
            UnsupportedModelError: it cannot be recorded, or returns no row of logits per sample.
        """
        failures: list[Exception] = []
        for axis in sorted((0, 1), key=lambda axis: len(lengths_along(named, axis))):
            try:
                with torch.no_grad():
                    trace = record(self._model, named, axis, (0, 1), self._select)
                if trace.output_step.batch_axis == 0:
                    return self._fitted(plan(trace, self._model, axis, *self._asked), named)
            except UnsupportedModelError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        raise UnsupportedModelError(
            f"{type(self._model).__name__} returns logits without a batch axis, expected (B, C). "
            "Return one row of logits per sample."
        )

    def _fitted(self, found: Plan, named: dict[str, Any]) -> Plan:
        """The plan of a recording with the numbers of the whole batch, if there is one."""
        lifter = self._lifter(named, found)
        samples = telling_samples(found, lifter) if other_numbers(found, lifter) else None
        if samples is None:
            return found
        with torch.no_grad():
            trace = record(self._model, named, found.batch_axis, samples.tolist(), self._select)
        return plan(trace, self._model, found.batch_axis, *self._asked)


def all_refusals(first: UnboundedStepError, instance: Instance) -> UnsupportedModelError:
    """One error for all steps without a bound."""
    found = instance.refusals()
    if len(found) < 2:
        return first
    whats = "".join(f"\n- {error.what}" for error in found)
    ways = " ".join(dict.fromkeys(error.way_out for error in found))
    name = type(instance.lifter.model).__name__
    return UnsupportedModelError(f"{name} has {len(found)} steps without a bound:{whats}\n{ways}")
