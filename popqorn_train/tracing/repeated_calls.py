"""A module that moves must be called once: of several calls, only one would move."""

import operator
from typing import Any, cast

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.tracing.steps import IDENTITIES, MOVES, Step, Trace, called_name
from popqorn_train.tracing.wrappers import plain_path

_LOOKUPS = frozenset(("embedding", "embedding_bag", "gather", "getitem", "index_select", "take"))


def check_called_once(
    trace: Trace, model: nn.Module, source: Step, perturb: str | None, output: str
) -> None:
    """Refuse a module whose output moves, and which also has another part in the output.

    A later call can be named as a step, ``words_1``, which cannot be taken for the module.

    Args:
        trace: the recording.
        model: what was recorded.
        source: the step whose result moves.
        perturb: how the user called it, if at all.
        output: name of the step that holds the logits.

    Raises:
        UnsupportedModelError: it is called twice, or its weight is looked up in otherwise.
    """
    module = source.kind == "module"
    tables, live = _tables(source, trace, model), trace.leading_to(output)
    others = [
        step
        for step in trace.steps
        if step is not source
        and step.name in live
        and (
            (module and step.kind == "module" and step.target == source.target)
            or any(a is b for a in tables for b in _tables(step, trace, model))
        )
    ]
    step_named = perturb is not None and not (module and perturb == plain_path(source.target))
    if not others or (step_named and trace.steps.index(others[0]) < trace.steps.index(source)):
        return
    raise UnsupportedModelError(
        f"the output of {source.name!r} is perturbed, but it is read twice, there "
        f"({source.source}) and in {others[0].name!r} ({others[0].source}), and only one of them "
        "would change. Call it once and keep the result, or name another tensor with "
        "bound(model, perturb=...)."
    )


def _tables(step: Step, trace: Trace, model: nn.Module) -> list[Any]:
    """The weights of an embedding that a step takes rows of, or what works them out."""
    if step.kind == "module":
        layer = model.get_submodule(step.target)
        known = isinstance(layer, nn.Embedding | nn.EmbeddingBag)
        return _weights_of(layer) if known else []
    if step.kind not in ("function", "method") or called_name(step.target) not in _LOOKUPS:
        return []
    steps, found = {step.name: step for step in trace.steps}, []
    for name in step.refs:
        at = steps[name]
        while at.refs and called_name(at.target) in MOVES | IDENTITIES:
            at = steps[at.refs[0]]
        if at.kind == "weight":
            found.append(operator.attrgetter(at.target)(model))
        elif at.kind == "module":
            found.append(model.get_submodule(at.target))
    return found


def _weights_of(layer: nn.Module) -> list[Any]:
    """The weight, or what it is worked out from, anew for everyone who reads it."""
    if not is_parametrized(layer, "weight"):
        return [layer.weight]
    made = cast(nn.ModuleDict, layer.parametrizations)["weight"]
    return [made, *made.parameters(recurse=False)]
