"""Run the user's module, as it is, at other values of what moves.

B: batch, T: frames, N: features.
"""

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.frame_layout import as_frames
from popqorn_train.certificates.instance import Instance
from popqorn_train.operations.sample_order import rows_of
from popqorn_train.operations.units import source_positions
from popqorn_train.tracing.packed import Packed, longest_first
from popqorn_train.tracing.process_settings import without_cudnn
from popqorn_train.tracing.steps import pick_samples


class StandIn:
    """Puts values in the place of what moves, and calls the module.

    Args:
        layer: the model.
        instance: the batch.
    """

    def __init__(self, layer: BoundModel, instance: Instance) -> None:
        self._layer, self._instance = layer, instance
        self._named = instance.lifter.inputs
        plan = instance.plan
        self._source = plan.source
        places = source_positions(plan, instance.lifter)
        self._places = as_frames(places, plan.root.batch_axis or 0, instance.order)[0]

    @property
    def possible(self) -> bool:
        """Whether what moves is an argument or the result of a module, which can be replaced."""
        return self._source.kind in ("input", "module")

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the module reads what moves."""
        value: Tensor = self._instance.lifter.value(self._source.name)
        return self._layer.weights_dtype or value.dtype

    def outputs(self, moved: Tensor, chosen: Tensor) -> Any:
        """What the module returns, ``(b, C)``; with a gradient in ``moved`` where it has one.

        Args:
            moved: ``(b, T, N)`` value of what moves.
            chosen: ``(b,)`` of which samples everything else is.
        """
        if self._source.kind == "input":
            values = self._picked(chosen)
            raw = self._raw(moved.to(self.dtype), chosen)
            values[self._source.target] = raw.to(self._named[self._source.target].dtype)
            return self._run(values)
        order = self._order(chosen)
        moved, chosen = moved[order], chosen[order]
        module = self._layer.model.get_submodule(self._source.target)
        raw = self._as_rows(self._raw(moved.to(self.dtype), chosen), chosen)
        with _returning(module, raw, self._earlier_calls()):
            output = self._run(self._picked(chosen))
        return output[order.argsort()] if isinstance(output, Tensor) else output

    def _as_rows(self, raw: Tensor, chosen: Tensor) -> Tensor:
        """As the module itself returns it: packed rows where it reads those."""
        lifter = self._instance.pick(chosen).lifter
        for name in self._source.refs:
            for ref in lifter.steps[name].refs:
                read = lifter.value(ref)
                if isinstance(read, Packed):
                    return pack_padded_sequence(raw, read.lengths.cpu(), True, False).data
        return raw

    def _order(self, chosen: Tensor) -> Tensor:
        """Longest first: what a module returns cannot be sorted later, for a model that insists."""
        lengths = [v for v in self._named.values() if isinstance(v, Tensor) and v.ndim == 1]
        if not lengths:
            return torch.arange(len(chosen), device=chosen.device)
        return longest_first(lengths[0][chosen.to(lengths[0].device)]).to(chosen.device)

    def _picked(self, chosen: Tensor) -> dict[str, Any]:
        axis = self._instance.plan.batch_axis
        return {name: pick_samples(value, chosen, axis) for name, value in self._named.items()}

    def _earlier_calls(self) -> int:
        """How often the module whose result moves is called before."""
        steps = self._instance.plan.trace.steps
        calls = [step.name for step in steps if step.target == self._source.target]
        return calls.index(self._source.name)

    def tokens(self, tokens: Tensor, name: str, chosen: Tensor) -> Any:
        """What the module returns for other tokens of one argument."""
        return self._run({**self._picked(chosen), name: tokens})

    def _run(self, values: dict[str, Any]) -> Any:
        kernels = without_cudnn() if torch.is_grad_enabled() else contextlib.nullcontext()
        with kernels:
            return self._layer.run(values)

    def _raw(self, moved: Tensor, chosen: Tensor) -> Tensor:
        """The source's own tensor, with what moves replaced in it."""
        axis, picked = self._source.batch_axis or 0, self._instance.pick(chosen)
        raw = picked.lifter.value(self._source.name).movedim(axis, 0).to(moved)
        moved = rows_of(moved, picked.sample_order)
        index = self._places.flatten().expand(len(raw), -1)
        flat = raw.reshape(len(raw), -1).scatter(1, index, moved.flatten(1))
        return flat.view(raw.shape).movedim(0, axis)


@contextlib.contextmanager
def _returning(module: nn.Module, value: Tensor, earlier: int) -> Iterator[None]:
    """Let one call of a module return a value, in this thread, after so many other calls."""
    own, calls = threading.get_ident(), itertools.count()

    def replace(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        here = threading.get_ident() == own and next(calls) == earlier
        return value.to(output.dtype) if here else output

    # Before hooks of the user's, which are recorded as steps after the module.
    handle = module.register_forward_hook(replace, prepend=True)
    try:
        yield
    finally:
        handle.remove()
