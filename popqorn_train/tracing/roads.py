"""The roads from the tensor that moves to where it is read by more than a layout change."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from popqorn_train.tracing.packed import pack_lengths
from popqorn_train.tracing.sample_axis import deals_samples, places_samples
from popqorn_train.tracing.steps import (
    IDENTITIES,
    MOVES,
    Ref,
    Step,
    Trace,
    called_name,
    casts_to_half,
)

SCALES = frozenset(("add", "sub", "mul", "div", "truediv", "neg"))
_PIECES = frozenset(("chunk", "split", "unbind"))  # operations that give a tuple of parts
_ENTRIES = ("getitem", "select")

Readers = dict[str, list[Step]]


class Road(NamedTuple):
    """Layout changes and scalings, up to a step that does more.

    Attributes:
        steps: from the tensor that moves on, without the step at the end.
        axis: along which what they give holds frames; None where it is one frame.
        known: whether a recurrent layer or cell, or a convolution over time, is at the end.
    """

    steps: tuple[Step, ...]
    axis: int | None
    known: bool


class Roads:
    """Where a tensor that moves is read.

    Args:
        trace: the recording.
        model: where its modules are.
        source: the step whose result moves.
        readers: for each step those that read it.
    """

    def __init__(self, trace: Trace, model: nn.Module, source: Step, readers: Readers) -> None:
        self.model, self.readers = model, readers
        self.moving = reached(source.name, readers)
        self.layers = any(self._is(step, nn.RNNBase) for step in trace.steps)
        self.cells = any(self._is(step, nn.RNNCellBase) for step in trace.steps)

    def chain(self, source: Step) -> tuple[Step, ...]:
        """Steps from the source on that can be folded into the ball, as long as there is one."""
        chain: list[Step] = []
        at = source
        while self.layers or self.cells:
            ahead = self.readers.get(at.name, [])
            if len(ahead) != 1 or not self._folds(ahead[0], at):
                break
            if not self.layers and called_name(ahead[0].target) in _ENTRIES:
                break  # a loop over cells picks its frames
            at = ahead[0]
            chain.append(at)
        return tuple(chain)

    def leading_from(self, at: Step, steps: tuple[Step, ...] = ()) -> Iterator[Road]:
        """All roads that begin at a step."""
        for step in self.readers.get(at.name, []):
            if self._folds(step, at) or _takes_pieces(step, at) or places_samples(step, at):
                yield from self.leading_from(step, (*steps, step))
            elif at.shape is not None:
                yield self._ending(step, at, steps)

    def _ending(self, step: Step, at: Step, steps: tuple[Step, ...]) -> Road:
        """The road to a step that is more than a layout change."""
        first = step.args[0] if step.args else step.kwargs.get("input")
        reads = isinstance(first, Ref) and first.name == at.name
        sequence = self._is(step, nn.RNNBase) or step.target is pack_lengths
        if reads and sequence and at.batch_axis in (0, 1):
            return Road(steps, 1 - at.batch_axis, known=True)
        convolves = self._is(step, nn.Conv1d) or called_name(step.target) == "conv1d"
        if reads and convolves and at.batch_axis == 0:
            return Road(steps, 2, known=True)  # it reads (B, N, T)
        return Road(steps, None, known=reads and self._is(step, nn.RNNCellBase))

    def _is(self, step: Step, kind: type[nn.Module]) -> bool:
        return step.kind == "module" and isinstance(self.model.get_submodule(step.target), kind)

    def _folds(self, step: Step, before: Step) -> bool:
        """Whether a step moves or scales single coordinates and repeats none."""
        if step.shape is None or before.shape is None or step.batch_axis is None:
            return False
        if self._passes(step):
            return True
        if math.prod(step.shape) > math.prod(before.shape):
            return False
        if arranges(step, self.model):
            return not deals_samples(step)
        return self._scales(step, before)

    def _scales(self, step: Step, before: Step) -> bool:
        """Whether a step is an affine function of every coordinate on its own."""
        name = called_name(step.target)
        alone = step.refs.count(before.name) == 1 and not step.kwargs
        others = self.moving.intersection(step.refs) - {before.name}
        first = isinstance(step.args[0], Ref) and step.args[0].name == before.name
        return (
            step.kind != "module"
            and name in SCALES
            and alone
            and not others
            and step.shape == before.shape
            and (first or "div" not in name)
        )

    def _passes(self, step: Step) -> bool:
        """Whether a step does nothing in eval mode."""
        if step.kind == "module":
            return self._is(step, nn.modules.dropout._DropoutNd) or self._is(step, nn.Identity)
        name = called_name(step.target)
        return name in IDENTITIES and step.floating and not casts_to_half(step)


def reached(start: str, readers: Readers) -> set[str]:
    """Names of a step and of all that depend on it."""
    seen, todo = {start}, [start]
    while todo:
        for step in readers.get(todo.pop(), []):
            if step.name not in seen:
                seen.add(step.name)
                todo.append(step.name)
    return seen


def arranges(step: Step, model: nn.Module) -> bool:
    """Whether a step only moves the entries of one tensor, or drops some, and repeats none."""
    if step.kind == "module":
        return isinstance(model.get_submodule(step.target), nn.Flatten | nn.Unflatten)
    name = called_name(step.target)
    if name not in MOVES | _PIECES or len(set(step.refs)) != 1:
        return False
    # A list or a tensor among the indices could repeat entries.
    return name != "getitem" or _is_basic(step.args[1])


def _takes_pieces(step: Step, before: Step) -> bool:
    """Whether a step gives a tuple of parts, or picks one of them."""
    if before.shape is not None:
        return step.kind != "module" and called_name(step.target) in _PIECES
    return called_name(step.target) == "getitem" and isinstance(step.args[1], int)


def _is_basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(
        part is None
        or part is ...
        or (isinstance(part, int | slice) and not isinstance(part, bool))
        for part in parts
    )
