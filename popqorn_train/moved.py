"""Which recorded tensor moves, and how it reaches the first recurrent layer.

Shape operations and per-feature affine ones (a ``view`` to rows, a normalisation) between the
input and the first layer are folded into the ball, so that epsilon stays in the units of the raw
input while frames are those the layer reads.
"""

import math
from typing import NamedTuple

from torch import Tensor, nn

from popqorn_train.lift import Lifter, operation_name
from popqorn_train.trace import Ref, Step, Trace, UnsupportedModelError, walk

_MOVES = {
    "contiguous", "flatten", "getitem", "movedim", "narrow", "permute", "reshape", "select",
    "squeeze", "swapaxes", "transpose", "unflatten", "unsqueeze", "view",
}  # fmt: skip
_SCALES = {"add", "sub", "mul", "div", "truediv", "neg"}
_SOFTMAX = {"softmax", "log_softmax"}


class Plan(NamedTuple):
    """What moves in a trace.

    Attributes:
        trace: the recording.
        batch_axis: of the inputs.
        source: the step whose result moves.
        chain: steps after it that are folded into the ball; the last one is the root.
        output: name of the logits, before a softmax.
    """

    trace: Trace
    batch_axis: int
    source: Step
    chain: tuple[Step, ...]
    output: str

    @property
    def root(self) -> Step:
        """The step that the graph starts from."""
        return self.chain[-1] if self.chain else self.source

    @property
    def scales(self) -> bool:
        """Whether the units change between source and root."""
        return any(operation_name(step) in _SCALES for step in self.chain)


def plan(trace: Trace, model: nn.Module, batch_axis: int, perturb: str | None) -> Plan:
    """Find what moves.

    Raises:
        UnsupportedModelError: nothing can move, or the logits do not depend on it.
    """
    steps = {step.name: step for step in trace.steps}
    source = _named(trace, perturb) if perturb is not None else _default(trace, model)
    output = steps[trace.output]
    while _is_softmax(output, model):
        output = steps[output.refs()[0]]
    readers: dict[str, list[Step]] = {}
    for step in trace.steps:
        for name in set(step.refs()):
            readers.setdefault(name, []).append(step)
    if not _reaches(source.name, output.name, readers):
        raise UnsupportedModelError(
            f"The logits do not depend on {source.name!r}, which moves. Name another tensor with "
            "bound(model, perturb=...)."
        )
    chain: list[Step] = []
    if any(_is_recurrent(step, model) for step in trace.steps):
        at = source
        while len(readers.get(at.name, [])) == 1 and _folds(readers[at.name][0], at):
            at = readers[at.name][0]
            chain.append(at)
    return Plan(trace, batch_axis, source, tuple(chain), output.name)


def _named(trace: Trace, perturb: str) -> Step:
    for step in trace.steps:
        if perturb in (step.name, step.target if step.kind in ("input", "module") else None):
            return step
    known = ", ".join(step.name for step in trace.steps if step.shape is not None)
    raise UnsupportedModelError(
        f"`perturb` must name an argument, a module or a step of the forward, got {perturb!r}. "
        f"There are: {known}."
    )


def _default(trace: Trace, model: nn.Module) -> Step:
    """The first floating input; for tokens, the output of the embedding."""
    for step in trace.steps:
        if step.kind == "input" and step.floating:
            return step
    for step in trace.steps:
        if step.kind == "module" and isinstance(model.get_submodule(step.target), nn.Embedding):
            return step
    raise UnsupportedModelError(
        "`inputs` holds no floating tensor and the model has no nn.Embedding, so nothing can move. "
        "Pass floating inputs, or name a tensor with bound(model, perturb=...)."
    )


def _is_softmax(step: Step, model: nn.Module) -> bool:
    if step.kind == "module":
        return isinstance(model.get_submodule(step.target), nn.Softmax | nn.LogSoftmax)
    return operation_name(step) in _SOFTMAX


def _is_recurrent(step: Step, model: nn.Module) -> bool:
    return step.kind == "module" and isinstance(model.get_submodule(step.target), nn.RNNBase)


def _reaches(start: str, end: str, readers: dict[str, list[Step]]) -> bool:
    seen, todo = {start}, [start]
    while todo:
        for step in readers.get(todo.pop(), []):
            if step.name not in seen:
                seen.add(step.name)
                todo.append(step.name)
    return end in seen


def _folds(step: Step, before: Step) -> bool:
    """Whether a step moves or scales single coordinates and repeats none."""
    name = operation_name(step)
    if step.shape is None or before.shape is None or step.batch_axis is None:
        return False
    if step.kind not in ("function", "method") or math.prod(step.shape) > math.prod(before.shape):
        return False
    if name in _MOVES:
        indices: list[Tensor] = []
        walk(step.args[1:], (Ref, list), indices.append)  # an index tensor could repeat entries
        return not indices
    numerator = not (
        "div" in name and (not isinstance(step.args[0], Ref) or step.args[0].name != before.name)
    )
    return (
        name in _SCALES
        and step.shape == before.shape
        and numerator
        and step.refs().count(before.name) == 1
    )


def center_and_scale(found: Plan, lifter: Lifter) -> tuple[Tensor, Tensor | None]:
    """What moves in its own units, and the factor from these to what the root holds.

    Returns:
        Both in the user's layout of the root.
    """
    raw = lifter.value(found.source.name)
    center = _through(found, lifter, raw, scaled=False)
    if not found.scales:
        return center, None
    ones = _through(found, lifter, raw.new_ones(()).expand_as(raw), scaled=True)
    return center, ones - _through(found, lifter, raw.new_zeros(()).expand_as(raw), scaled=True)


def _through(found: Plan, lifter: Lifter, x: Tensor, *, scaled: bool) -> Tensor:
    """Send a tensor through the chain, leaving changes of unit out if asked."""
    lifter.value(found.root.name)  # everything the chain reads is known from here on
    other = lifter.fork()
    before = found.source.name
    other.values[before] = x
    for step in found.chain:
        if scaled or operation_name(step) in _MOVES:
            other.values[step.name] = other.run(step)
        else:
            other.values[step.name] = other.values[before]
        before = step.name
    return other.values[before]
