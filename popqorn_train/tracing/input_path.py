"""Which recorded tensor moves, and how it reaches the first recurrent layer.

Shape operations and per-feature affine ones (a ``view`` to rows, a normalisation) between the
input and the first layer are folded into the ball, so that epsilon stays in the units of the raw
input while frames are those the layer reads. What a frame is otherwise says frame_axis.py.
"""

from typing import NamedTuple

from torch import nn

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.tracing.frame_axis import Frames, find_frames
from popqorn_train.tracing.output_meaning import Meaning, OutputIs, meaning
from popqorn_train.tracing.repeated_calls import check_called_once
from popqorn_train.tracing.roads import SCALES, Roads, reached
from popqorn_train.tracing.steps import Step, Trace, called_name
from popqorn_train.tracing.wrappers import plain_path


class Plan(NamedTuple):
    """What moves in a trace.

    Attributes:
        trace: the recording.
        batch_axis: of the inputs.
        source: the step whose result moves.
        chain: steps after it that are folded into the ball; the last one is the root.
        meaning: how the output is read.
        frames: where frames lie.
        whole: steps that make one value of all samples, of what does not move.
    """

    trace: Trace
    batch_axis: int
    source: Step
    chain: tuple[Step, ...]
    meaning: Meaning
    frames: Frames
    whole: tuple[Step, ...]

    @property
    def root(self) -> Step:
        """The step that the graph starts from."""
        return self.chain[-1] if self.chain else self.source

    @property
    def output(self) -> str:
        """Name of the step that holds the logits, before a softmax, or the probability."""
        return self.meaning.output

    @property
    def classes(self) -> int:
        """Number of logits; 2 where the model returns one number per sample."""
        return self.meaning.classes

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
    output_is: OutputIs | None = None,
) -> Plan:
    """Find what moves, and what the output means.

    Raises:
        UnsupportedModelError: nothing can move, or the logits do not depend on it, or it is one of
            several calls of a module; or what one number per sample means is in doubt.
        ValueError: what moves has no such ``frame_axis``, or ``output_is`` for a model that returns
            several logits.
    """
    source = _named(trace, perturb) if perturb is not None else _default(trace, model)
    read = meaning(trace, model, source, output_is)
    readers: dict[str, list[Step]] = {step.name: [] for step in trace.steps}
    for step in trace.steps:
        for name in set(step.refs):
            readers[name].append(step)
    moving = reached(source.name, readers)
    if read.output not in moving:
        raise UnsupportedModelError(
            f"The logits do not depend on the perturbed tensor, {source.name!r}. Name another one "
            "with bound(model, perturb=...)."
        )
    check_called_once(trace, model, source, perturb, read.output)
    roads = Roads(trace, model, source, readers)
    chain, frames = find_frames(roads, source, frame_axis)
    return Plan(trace, batch_axis, source, chain, read, frames, _whole(trace, moving))


def _whole(trace: Trace, moving: set[str]) -> tuple[Step, ...]:
    """Steps that the output needs and that make one value of all samples."""
    needed, grows = {trace.output}, {step.name for step in trace.steps if step.grows}
    for step in reversed(trace.steps):
        needed.update(step.refs if step.name in needed else ())
    return tuple(
        step
        for step in trace.steps
        if step.name in needed - moving - grows and not grows.isdisjoint(step.refs)
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
        names = ", ".join(f"{step.name} in {step.source}" for step in embedded)
        raise UnsupportedModelError(
            f"`inputs` are tokens and there are several embeddings ({names}); name the one "
            "to perturb with bound(model, perturb=...)."
        )
    if embedded and embedded[0].batch_axis is None:
        raise UnsupportedModelError(
            "Tokens of several samples are on one axis before they are embedded "
            f"({embedded[0].source}). Embed them first, self.embedding(tokens), and merge the axes "
            "after that."
        )
    if embedded:
        return embedded[0]
    raise UnsupportedModelError(
        "`inputs` holds no floating tensor and the model has no nn.Embedding: there is nothing to "
        "perturb. Pass floating inputs, or name a tensor with bound(model, perturb=...)."
    )
