"""What an output means: which step holds the logits, and above which number one of them is class 1.

A softmax at the end is undone, through casts: it keeps the order of the classes. One number a
sample is a logit (class 1 above 0), or a probability (class 1 above 1/2); a sigmoid at the end is
undone, through moves and casts, because it is above 1/2 exactly where its logit is above 0.
"""

from typing import Literal, NamedTuple

from torch import nn

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.tracing.number_range import plain_name
from popqorn_train.tracing.output_ranges import SIGMOIDS, OutputRanges, keeps_numbers
from popqorn_train.tracing.steps import IDENTITIES, MOVES, Ref, Step, Trace

OutputIs = Literal["logit", "probability"]
KINDS = ("logit", "probability")
_SOFTMAX = ("softmax", "log_softmax")
_SINGLE = ((2,), (2, 1))


class Meaning(NamedTuple):
    """How an output is read.

    Attributes:
        output: name of the step that holds the logits, or the probability.
        classes: number of logits; 2 where there is one number per sample.
        single: whether there is one number per sample.
        squashed: whether the model returns a sigmoid of it.
        threshold: above which number one number per sample is class 1.
    """

    output: str
    classes: int
    single: bool
    squashed: bool
    threshold: float


def meaning(trace: Trace, model: nn.Module, source: Step, output_is: OutputIs | None) -> Meaning:
    """Decide how the output of a model is read.

    Args:
        trace: the recording.
        model: what was recorded.
        source: the step whose result moves.
        output_is: what one number per sample is; None decides by the code.

    Raises:
        UnsupportedModelError: it is no ``(B, C)``, or one number that may be either.
        ValueError: ``output_is`` for several numbers per sample.
    """
    steps = {step.name: step for step in trace.steps}
    output = trace.output_step
    if output.batch_axis != 0 or output.shape not in _SINGLE:
        output = _before_softmax(output, steps, model)
        classes = _classes(output, model)
        if output_is is not None:
            raise ValueError(
                f"`output_is` says what one number per sample is, but {type(model).__name__} "
                f"returns {classes} logits per sample. Leave it out."
            )
        return Meaning(output.name, classes, False, False, 0.0)
    before = _before_sigmoid(output, steps, model) if output_is != "logit" else None
    if before is not None:
        return Meaning(before.name, 2, True, True, 0.0)
    if output_is is None:
        threshold = _threshold(output, steps, model, OutputRanges(trace, model, source))
    else:
        threshold = 0.5 if output_is == "probability" else 0.0
    return Meaning(output.name, 2, True, False, threshold)


def _threshold(
    output: Step, steps: dict[str, Step], model: nn.Module, ranges: OutputRanges
) -> float:
    """Above which number an output is class 1, if its range leaves no doubt."""
    found = ranges.of(output.name)
    if found.is_probability or found.is_score:
        return 0.5 if found.is_probability else 0.0
    while keeps_numbers(output, model) and output.refs:
        output = steps[output.refs[0]]
    raise UnsupportedModelError(
        f"{type(model).__name__} returns one number per sample, computed in {output.name!r} "
        f"({output.source}), that may be neither a logit nor a probability. Return the logit or "
        "its sigmoid, or say with bound(model, output_is=...) where class 1 begins: "
        '"probability" above 1/2, "logit" above 0.'
    )


def _classes(output: Step, model: nn.Module) -> int:
    if output.shape is not None and len(output.shape) == 2 and output.batch_axis == 0:
        return output.shape[1]
    shape = "a tuple" if output.shape is None else f"a tensor like {output.shape}"
    raise UnsupportedModelError(
        f"{type(model).__name__} returns {shape} for a batch of 2, expected logits (B, C). "
        "Classify the whole sequence: select a frame, or average over frames, before the output."
    )


def _through(output: Step, steps: dict[str, Step], model: nn.Module, names: frozenset[str]) -> Step:
    """The step before operations of these names, and before layers that only pass on."""
    while True:
        if output.kind == "module":
            layer = model.get_submodule(output.target)
            passes = isinstance(layer, nn.Identity | nn.modules.dropout._DropoutNd) or (
                "flatten" in names and isinstance(layer, nn.Flatten | nn.Unflatten)
            )
        else:
            passes = plain_name(output) in names and output.floating
        if not passes or not output.args or not isinstance(output.args[0], Ref):
            return output
        output = steps[output.args[0].name]


def _before_softmax(output: Step, steps: dict[str, Step], model: nn.Module) -> Step:
    """What a softmax over the classes at the end reads, through casts."""
    last = _through(output, steps, model, IDENTITIES)
    while _is_softmax(last, model):
        output = steps[last.refs[0]]
        last = _through(output, steps, model, IDENTITIES)
    return output


def _is_softmax(step: Step, model: nn.Module) -> bool:
    """Whether a step is a softmax over the classes."""
    if step.kind == "module":
        layer = model.get_submodule(step.target)
        return isinstance(layer, nn.Softmax | nn.LogSoftmax) and layer.dim in (1, -1, None)
    dim = step.kwargs.get("dim", step.args[1] if len(step.args) > 1 else None)
    return plain_name(step) in _SOFTMAX and dim in (1, -1, None)


def _before_sigmoid(output: Step, steps: dict[str, Step], model: nn.Module) -> Step | None:
    """What a sigmoid at the end reads, through moves and casts of its one entry."""
    at = _through(output, steps, model, MOVES | IDENTITIES)
    if at.kind == "module":
        found = isinstance(model.get_submodule(at.target), nn.Sigmoid)
    else:
        found = plain_name(at) in SIGMOIDS
    before = steps[at.refs[0]] if found else None
    alone = before is not None and before.batch_axis == 0 and before.shape in _SINGLE
    return before if alone else None
