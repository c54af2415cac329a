"""Run a recorded forward on nodes: from a trace to the graph that is bounded.

Steps that do not depend on the perturbed tensor run as they are; every other step is looked up
in a table by the name of its operation or the type of its module.
"""

import copy
import functools
import inspect
import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from popqorn_train.bounds.constant import Constant
from popqorn_train.bounds.node import Node
from popqorn_train.errors import UnboundedStepError, UnsupportedModelError, is_out_of_memory
from popqorn_train.nested import map_nested
from popqorn_train.operations.cast_modules import cast_copy, eps_of
from popqorn_train.operations.merged import concerns_rows, lift_rows
from popqorn_train.operations.registry import (
    module_handler,
    operation_handler,
    refuse_complex,
    refuse_half,
    spectral_handler,
    unsupported,
)
from popqorn_train.operations.sample_order import Met, Order, lift_in_order, of_samples
from popqorn_train.tracing.calls import tied
from popqorn_train.tracing.in_place import out_of_place
from popqorn_train.tracing.packed import call
from popqorn_train.tracing.steps import (
    Baked,
    Multiple,
    Ref,
    Repeated,
    Step,
    Trace,
    called_name,
    detaches,
    pick_samples,
)

T = TypeVar("T")


def has_node(value: Any) -> bool:
    """Whether nested arguments hold a node."""
    found: list[Node] = []
    map_nested(value, Node, found.append)
    return bool(found)


class Lifter:
    """Executes a trace step by step, each when it is first needed.

    Attributes:
        values: results by step. Tensors are as the user's code has them, nodes in the order of the
            samples, see sample_order.py.
        orders: which sample each row holds for the code, of nodes that it has in another order.
        met: takes note of what does not move and is read beside what does; None notes nothing.
        choices: what the values of the batch decided about nodes, see ``choose``.
        whole: results that stay those of the whole batch, see ``hold``.
        unrolled: whether recurrent layers are nodes from their first frame on, even where nothing
            moves yet.
        attached: steps that detach nothing from its gradient.
        refusals: takes all steps without a bound, with a constant in their place; None raises
            the first.

    Args:
        trace: what to run.
        model: where weights and modules are.
        inputs: arguments by name.
        batch: number of samples.
        dtype: weights and floating inputs are cast to it.
    """

    def __init__(
        self,
        trace: Trace,
        model: nn.Module,
        inputs: dict[str, Any],
        batch: int,
        dtype: torch.dtype,
    ) -> None:
        self.model, self.batch, self.dtype = model, batch, dtype
        self.device = next(value.device for value in inputs.values() if isinstance(value, Tensor))
        self.steps = {step.name: step for step in trace.steps}
        self.tied = trace.tied
        self.inputs = inputs
        self.values: dict[str, Any] = {}
        self.orders: dict[str, Tensor] = {}
        self.met: list[Met] | None = None
        self.choices: dict[tuple[str, str], Any] = {}
        self.whole: dict[str, Any] = {}
        self.unrolled = False
        self.attached: set[str] = set()
        self.refusals: list[UnboundedStepError] | None = None

    def value(self, name: str) -> Any:
        """Result of a step: a tensor, a node, or a tuple of these."""
        todo = [name]
        while todo:
            step = self.steps[todo[-1]]
            missing = [ref for ref in step.refs if ref not in self.values]
            todo.extend(missing)
            if not missing:
                todo.pop()
                if step.name not in self.values:
                    self.values[step.name] = self._run_or_say_where(step)
        return self.values[name]

    def fork(self) -> "Lifter":
        """A copy that shares what is known and can be told other values."""
        fork = copy.copy(self)
        fork.values, fork.orders = {**self.values}, {**self.orders}
        fork.choices = {**self.choices}
        return fork

    def choose(self, step: Step, what: str, choice: Callable[[], T]) -> T:
        """What the values of the batch decide about the nodes of a step.

        Whoever picks samples from a graph builds it from the same choices, so that it has the
        same nodes. So what is chosen for a batch has to be right for every part of it.

        Args:
            step: whose nodes.
            what: names the choice among those of the step.
            choice: looks at the values; called for the whole batch only.
        """
        key = step.name, what
        if key not in self.choices:
            self.choices[key] = choice()
        return cast(T, self.choices[key])

    def hold(self, names: Iterable[str]) -> None:
        """Work steps out, whose results stay when samples are picked."""
        exact = self.to(torch.float64)
        self.whole = {name: exact.value(name) for name in names}
        self.values.update(self._held())

    def _held(self) -> dict[str, Any]:
        return {name: map_nested(value, Tensor, self.cast) for name, value in self.whole.items()}

    def pick(self, chosen: Tensor, batch_axis: int, *, anew: bool = False) -> "Lifter":
        """The same for some samples, with the choices made so far.

        Args:
            chosen: ``(b,)`` indices.
            batch_axis: of the inputs.
            anew: work out what belongs to the whole batch as if these samples were all.
        """
        pick = copy.copy(self)
        pick.whole = {} if anew else self.whole
        pick.values, pick.orders, pick.batch = pick._held(), {}, len(chosen)
        pick.inputs = {
            name: pick_samples(value, chosen, batch_axis) for name, value in self.inputs.items()
        }
        return pick

    def to(self, dtype: torch.dtype) -> "Lifter":
        """The same in another precision."""
        other = copy.copy(self)
        other.orders, other.dtype = {}, dtype
        other.values = other._held()
        return other

    def cast(self, value: Any) -> Any:
        """Bring a floating tensor to the precision of the bounds."""
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(self.dtype) if floating else value

    def weight(self, path: str, name: str) -> Tensor | None:
        """A weight of a sub-module, with its gradient; None where there is none."""
        shadow = self._cast_module(path)  # as a module that runs has it
        return self.cast(getattr(shadow, name, None))

    def _cast_module(self, path: str) -> nn.Module:
        return cast_copy(tied(self.model, path, self.tied), self.cast)

    def resolved(self, recorded: Any, order: Order = None) -> Any:
        """Recorded arguments with their values.

        Args:
            recorded: nested.
            order: that the code has the batch in; what does not move is brought back from it.
        """

        def resolve(value: Any) -> Any:
            if isinstance(value, Ref):
                axis = self.steps[value.name].batch_axis
                return of_samples(self.values[value.name], axis, order)
            if isinstance(value, Repeated):
                return [value.item] * self.batch
            return value.per_sample * self.batch + value.rest

        return map_nested(recorded, (Ref, Multiple, Repeated), resolve)

    def _run_or_say_where(self, step: Step) -> Any:
        try:
            return self.run(step)
        except UnboundedStepError as error:
            if self.refusals is None:
                raise
            self.refusals.append(error)
            return self._stand_in(step)
        except UnsupportedModelError:
            raise
        except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            if self.refusals is not None:
                return self._stand_in(step)  # it reads one of the steps without a bound
            raise unsupported(step, f"a step that fails when it is run again ({error})") from error

    def _stand_in(self, step: Step) -> Node:
        """A node in the place of a step without a bound."""
        axis, shape = step.batch_axis or 0, list(step.shape or (self.batch,))
        shape.insert(0, self.batch)
        del shape[axis + 1]
        node = Constant(torch.zeros(shape, dtype=self.dtype, device=self.device))
        node.batch_axis = axis
        return node

    def run(self, step: Step) -> Any:
        """Execute one step, all of whose arguments are known."""
        if step.kind == "input":
            return self.cast(self.inputs[step.target])
        if step.kind == "weight":
            return self.cast(operator.attrgetter(step.target)(self.model))
        if step.kind == "baked":
            return self.cast(self._expanded(step.target))
        moving = [name for name in step.refs if has_node(self.values[name])]
        if moving:
            return lift_in_order(self, step, moving)
        args, kwargs = self.resolved((step.args, step.kwargs))
        # A cast in forward must not undo the precision of the bounds.
        return map_nested(self.call(step, args, kwargs), Tensor, self.cast)

    def call(self, step: Step, args: Any, kwargs: Any) -> Any:
        """Call what a step calls, on tensors."""
        if step.kind == "module":
            return self.call_module(step.target, args, kwargs)
        if step.name in self.attached and detaches(step, args):
            return args[0]
        if step.kind == "method":
            return getattr(args[0], step.target)(*args[1:], **kwargs)
        if "dropout" in called_name(step.target):
            kwargs = {**kwargs, "training": self.model.training}
        return step.target(*args, **kwargs)

    def _expanded(self, baked: Baked) -> Tensor:
        if baked.value is None:
            return torch.arange(self.batch, device=self.device)
        if baked.batch_axis is None:
            return baked.value
        shape = [-1] * baked.value.ndim
        shape[baked.batch_axis] = self.batch
        return baked.value.expand(shape).contiguous()  # cuDNN takes no other states

    def call_module(self, path: str, args: Any, kwargs: Any) -> Any:
        """Run a sub-module on tensors, in the precision of the bounds."""
        called = out_of_place(self._cast_module(path))
        if isinstance(called, nn.RMSNorm) and called.eps is None:
            called = copy.copy(called)
            called.eps = eps_of(self.model, self.dtype)
        return call(called.forward, args, kwargs)

    def lift(self, step: Step, args: Any, kwargs: Any) -> Any:
        """The node for a step, from its handler."""
        refuse_complex(step, (args, kwargs))
        refuse_half(step, self.model)
        if (handler := spectral_handler(step, (args, kwargs))) is not None:
            return handler(self, step, *args, **kwargs)
        if concerns_rows(step, args, kwargs):
            return lift_rows(self, step, args, kwargs)
        if step.kind == "module":
            called = self.model.get_submodule(step.target)
            handler = module_handler(step, called)
            given = _signature(type(called).forward).bind(called, *args, **kwargs)
            return handler(self, step, *given.args, **given.kwargs)
        return operation_handler(step)(self, step, *args, **kwargs)


@functools.cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)
