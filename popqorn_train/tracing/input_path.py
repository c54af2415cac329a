"""Which recorded tensor moves, and how it reaches the first recurrent layer.

Shape operations and per-feature affine ones (a ``view`` to rows, a normalisation) between the
input and the first layer are folded into the ball, so that epsilon stays in the units of the raw
input while frames are those the layer reads.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.tracing.steps import IDENTITIES, MOVES, Ref, Step, Trace
from popqorn_train.tracing.tracer import called_name
from popqorn_train.tracing.wrappers import plain_path

SCALES = frozenset(("add", "sub", "mul", "div", "truediv", "neg"))
_SOFTMAX = ("softmax", "log_softmax")


class Plan(NamedTuple):
    """What moves in a trace.

    Attributes:
        trace: the recording.
        batch_axis: of the inputs.
        source: the step whose result moves.
        chain: steps after it that are folded into the ball; the last one is the root.
        output: name of the logits, before a softmax.
        classes: number of logits; 2 where the model returns one, bounded as (0, logit).
        single: whether it returns one logit a sample.
        squashed: whether it returns a sigmoid of it.
        layout: steps from the root to the first recurrent layer that only arrange coordinates;
            they say what a frame is where the root is also read on another way.
        whole: steps that make one value of all samples, of what does not move.
    """

    trace: Trace
    batch_axis: int
    source: Step
    chain: tuple[Step, ...]
    output: str
    classes: int
    single: bool
    squashed: bool
    layout: tuple[Step, ...]
    whole: tuple[Step, ...]

    @property
    def root(self) -> Step:
        """The step that the graph starts from."""
        return self.chain[-1] if self.chain else self.source

    @property
    def scales(self) -> bool:
        """Whether the units change between source and root."""
        return any(called_name(step.target) in SCALES for step in self.chain)


def plan(trace: Trace, model: nn.Module, batch_axis: int, perturb: str | None) -> Plan:
    """Find what moves.

    Raises:
        UnsupportedModelError: nothing can move, or the logits do not depend on it.
    """
    steps = {step.name: step for step in trace.steps}
    source = _named(trace, perturb) if perturb is not None else _default(trace, model)
    output = steps[trace.output]
    while _is_softmax(output, model):
        output = steps[output.refs[0]]
    single = output.batch_axis == 0 and output.shape in ((2,), (2, 1))
    inner = _before_sigmoid(output, steps, model) if single else None
    output = inner or output
    readers: dict[str, list[Step]] = {}
    for step in trace.steps:
        for name in set(step.refs):
            readers.setdefault(name, []).append(step)
    moving = _reached(source.name, readers)
    if output.name not in moving:
        raise UnsupportedModelError(
            f"The logits do not depend on {source.name!r}, which moves. Name another tensor with "
            "bound(model, perturb=...)."
        )
    classes = 2 if single else _classes(output, model)
    chain, layout = _chain(trace, model, source, readers)
    found = trace, batch_axis, source, chain, output.name
    whole = _whole(trace, steps, moving)
    return Plan(*found, classes, single, inner is not None, layout, whole)


def _classes(output: Step, model: nn.Module) -> int:
    if output.shape is not None and len(output.shape) == 2 and output.batch_axis == 0:
        return output.shape[1]
    shape = "a tuple" if output.shape is None else f"a tensor like {output.shape}"
    raise UnsupportedModelError(
        f"{type(model).__name__} returns {shape} for a batch of 2, expected logits (B, C). "
        "Classify the whole sequence: select a frame, or average over frames, before the output."
    )


def _chain(
    trace: Trace, model: nn.Module, source: Step, readers: dict[str, list[Step]]
) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """Steps from the source towards the first recurrent layer.

    Returns:
        Those that can be folded into the ball, and those after them that arrange frames.
    """
    chain: list[Step] = []
    at = source
    layers = any(_is_recurrent(step, model) for step in trace.steps)
    if layers or any(_is_cell(step, model) for step in trace.steps):
        while len(readers[at.name]) == 1 and _folds(readers[at.name][0], at, model):
            if not layers and called_name(readers[at.name][0].target) in ("getitem", "select"):
                break  # a loop over cells picks its frames
            at = readers[at.name][0]
            chain.append(at)
    return tuple(chain), tuple(_way_to_layer(at, model, readers) or ())


def _way_to_layer(at: Step, model: nn.Module, readers: dict[str, list[Step]]) -> list[Step] | None:
    """Steps that move or scale single coordinates up to a recurrent layer; None if others come."""
    for step in readers.get(at.name, []):
        if _is_recurrent(step, model) and isinstance(step.args[0], Ref):
            if step.args[0].name == at.name:
                return []
        elif _is_convolution(step, model):  # it reads (B, N, T)
            axes = Ref(at.name), 1, 2
            return [replace(step, name="frames", kind="method", target="transpose", args=axes)]
        elif _folds(step, at, model):
            rest = _way_to_layer(step, model, readers)
            if rest is not None:
                return [step, *rest]
    return None


def _named(trace: Trace, perturb: str) -> Step:
    for step in trace.steps:
        if (
            step.floating
            and step.batch_axis is not None
            and perturb
            in (
                step.name,
                plain_path(step.target) if step.kind in ("input", "module") else None,
            )
        ):
            return step
    known = ", ".join(step.name for step in trace.steps if step.floating)
    raise UnsupportedModelError(
        f"`perturb` must name an argument, a module or a step of the forward, got {perturb!r}. "
        f"There are: {known}."
    )


def _default(trace: Trace, model: nn.Module) -> Step:
    """The first floating input; for tokens, the output of the embedding."""
    for step in trace.steps:
        if step.kind == "input" and step.floating:
            return step
    embedded = [
        step
        for step in trace.steps
        if step.kind == "module" and isinstance(model.get_submodule(step.target), nn.Embedding)
    ]
    if len(embedded) > 1:
        names = ", ".join(step.name for step in embedded)
        raise UnsupportedModelError(
            f"`inputs` are tokens and there are several embeddings ({names}); say which one moves "
            "with bound(model, perturb=...)."
        )
    if embedded:
        return embedded[0]
    raise UnsupportedModelError(
        "`inputs` holds no floating tensor and the model has no nn.Embedding, so nothing can move. "
        "Pass floating inputs, or name a tensor with bound(model, perturb=...)."
    )


def _is_softmax(step: Step, model: nn.Module) -> bool:
    """Whether a step is a softmax over the classes."""
    if step.kind == "module":
        layer = model.get_submodule(step.target)
        return isinstance(layer, nn.Softmax | nn.LogSoftmax) and layer.dim in (1, -1, None)
    dim = step.kwargs.get("dim", step.args[1] if len(step.args) > 1 else None)
    return called_name(step.target) in _SOFTMAX and dim in (1, -1, None)


def _before_sigmoid(output: Step, steps: dict[str, Step], model: nn.Module) -> Step | None:
    """What a sigmoid at the end reads, through operations that only move its one entry."""
    at = output
    while called_name(at.target) in MOVES and isinstance(at.args[0], Ref):
        at = steps[at.args[0].name]
    layer = model.get_submodule(at.target) if at.kind == "module" else None
    found = isinstance(layer, nn.Sigmoid) or called_name(at.target) in ("sigmoid", "expit")
    before = steps[at.refs[0]] if found else None
    alone = before is not None and before.batch_axis == 0 and before.shape in ((2,), (2, 1))
    return before if alone else None


def _is_convolution(step: Step, model: nn.Module) -> bool:
    layer = model.get_submodule(step.target) if step.kind == "module" else None
    return isinstance(layer, nn.Conv1d) or called_name(step.target) == "conv1d"


def _is_recurrent(step: Step, model: nn.Module) -> bool:
    return step.kind == "module" and isinstance(model.get_submodule(step.target), nn.RNNBase)


def _is_cell(step: Step, model: nn.Module) -> bool:
    return step.kind == "module" and isinstance(model.get_submodule(step.target), nn.RNNCellBase)


def _whole(trace: Trace, steps: dict[str, Step], moving: set[str]) -> tuple[Step, ...]:
    """Steps that the output needs and that make one value of all samples."""
    needed = {trace.output}
    for step in reversed(trace.steps):
        needed.update(step.refs if step.name in needed else ())
    return tuple(
        step
        for step in trace.steps
        if step.name in needed - moving
        and not step.grows
        and any(steps[ref].grows for ref in step.refs)
    )


def _reached(start: str, readers: dict[str, list[Step]]) -> set[str]:
    """A step and all that read it, directly or not."""
    seen, todo = {start}, [start]
    while todo:
        for step in readers.get(todo.pop(), []):
            if step.name not in seen:
                seen.add(step.name)
                todo.append(step.name)
    return seen


def _passes(step: Step, model: nn.Module) -> bool:
    """Whether a step does nothing in eval mode."""
    if step.kind == "module":
        return isinstance(model.get_submodule(step.target), nn.Dropout | nn.Identity)
    return called_name(step.target) in IDENTITIES and step.floating


def _folds(step: Step, before: Step, model: nn.Module) -> bool:
    """Whether a step moves or scales single coordinates and repeats none."""
    if step.shape is None or before.shape is None or step.batch_axis is None:
        return False
    if _passes(step, model):
        return True
    name = called_name(step.target)
    if step.kind == "module" or math.prod(step.shape) > math.prod(before.shape):
        return False
    if name in MOVES:
        # A list or a tensor among the indices could repeat entries.
        return name != "getitem" or _is_basic(step.args[1])
    alone = step.refs.count(before.name) == 1 and not step.kwargs
    first = isinstance(step.args[0], Ref) and step.args[0].name == before.name
    return name in SCALES and alone and step.shape == before.shape and (first or "div" not in name)


def _is_basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(
        part is None
        or part is ...
        or (isinstance(part, int | slice) and not isinstance(part, bool))
        for part in parts
    )
