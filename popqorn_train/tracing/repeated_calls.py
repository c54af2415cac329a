"""A module that moves must be called once: of several calls, only one would move."""

import operator

from torch import nn

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.tracing.steps import IDENTITIES, MOVES, Step, Trace
from popqorn_train.tracing.tracer import called_name
from popqorn_train.tracing.wrappers import plain_path

_LOOKUPS = frozenset(("embedding", "embedding_bag", "gather", "getitem", "index_select", "take"))


def check_called_once(
    trace: Trace, model: nn.Module, source: Step, perturb: str | None, output: str
) -> None:
    """Refuse a module whose output moves, and which also has another part in the output.

    A step of a trace may be named where it cannot be taken for the module itself; but the vectors
    of an embedding are the same ones wherever they are looked up.

    Args:
        trace: the recording.
        model: what was recorded.
        source: the step whose result moves.
        perturb: how the user called it, if at all.
        output: name of the step that holds the logits.

    Raises:
        UnsupportedModelError: it is called twice, or its weight is looked up in otherwise.
    """
    if source.kind != "module":
        return
    layer = model.get_submodule(source.target)
    embedding = layer if isinstance(layer, nn.Embedding) else None
    if embedding is None and perturb != plain_path(source.target):
        return
    live = trace.leading_to(output)
    for step in trace.steps:
        again = step.kind == "module" and step.target == source.target
        if embedding is not None:
            again = again or _looks_up(step, embedding, trace, model)
        if again and step is not source and step.name in live:
            raise UnsupportedModelError(
                f"module {plain_path(source.target)!r} moves, but it is read twice, in "
                f"{source.name!r} ({source.source}) and in {step.name!r} ({step.source}), of which "
                "one alone would move. Call it once and keep the result, or name another tensor "
                "with bound(model, perturb=...)."
            )


def _looks_up(step: Step, layer: nn.Embedding, trace: Trace, model: nn.Module) -> bool:
    """Whether a step takes rows of the weight of an embedding."""
    if step.kind == "module":
        other = model.get_submodule(step.target)
        return isinstance(other, nn.Embedding | nn.EmbeddingBag) and other.weight is layer.weight
    if called_name(step.target) not in _LOOKUPS:
        return False
    steps = {step.name: step for step in trace.steps}
    for name in step.refs:
        at = steps[name]
        while at.kind in ("function", "method") and _passes(at):
            at = steps[at.refs[0]]
        if at.kind == "weight" and operator.attrgetter(at.target)(model) is layer.weight:
            return True
    return False


def _passes(step: Step) -> bool:
    return called_name(step.target) in MOVES | IDENTITIES and bool(step.refs)
