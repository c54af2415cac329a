"""Which recorded tensor moves, and how it reaches the first recurrent layer.

Shape operations and per-feature affine ones (a ``view`` to rows, a normalisation) between the
input and the first layer are folded into the ball, so that epsilon stays in the units of the raw
input while frames are those the layer reads. What a frame is otherwise says frame_axis.py.
"""

from typing import NamedTuple

from torch import nn

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.tracing.frame_axis import Frames, find_frames
from popqorn_train.tracing.roads import SCALES, Roads, reached
from popqorn_train.tracing.steps import MOVES, Ref, Step, Trace
from popqorn_train.tracing.tracer import called_name
from popqorn_train.tracing.wrappers import plain_path

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
        frames: where frames lie.
    """

    trace: Trace
    batch_axis: int
    source: Step
    chain: tuple[Step, ...]
    output: str
    classes: int
    single: bool
    squashed: bool
    frames: Frames

    @property
    def root(self) -> Step:
        """The step that the graph starts from."""
        return self.chain[-1] if self.chain else self.source

    @property
    def scales(self) -> bool:
        """Whether the units change between source and root."""
        return any(called_name(step.target) in SCALES for step in self.chain)


def plan(
    trace: Trace,
    model: nn.Module,
    batch_axis: int,
    perturb: str | None,
    frame_axis: int | None = None,
) -> Plan:
    """Find what moves.

    Raises:
        ValueError: what moves has no such ``frame_axis``.
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
    if output.name not in reached(source.name, readers):
        raise UnsupportedModelError(
            f"The logits do not depend on {source.name!r}, which moves. Name another tensor with "
            "bound(model, perturb=...)."
        )
    classes = 2 if single else _classes(output, model)
    roads = Roads(trace, model, source, readers)
    chain, frames = find_frames(roads, source, frame_axis)
    found = trace, batch_axis, source, chain, output.name
    return Plan(*found, classes, single, inner is not None, frames)


def _classes(output: Step, model: nn.Module) -> int:
    if output.shape is not None and len(output.shape) == 2 and output.batch_axis == 0:
        return output.shape[1]
    shape = "a tuple" if output.shape is None else f"a tensor like {output.shape}"
    raise UnsupportedModelError(
        f"{type(model).__name__} returns {shape} for a batch of 2, expected logits (B, C). "
        "Classify the whole sequence: select a frame, or average over frames, before the output."
    )


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
