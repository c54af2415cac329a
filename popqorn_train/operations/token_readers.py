"""Substitutions move the output of one embedding: does anything else read the tokens?

From the argument of forward, tokens are followed through operations each of whose entries comes
from one token: moves, casts, comparisons with constants. What reads the result of these is run for
no candidate, so it must read the same for all of them. Each entry depends on one token, and all
tokens are replaced at once, candidate by candidate: what then stays, stays for every sentence.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.operations.lift import Lifter
from popqorn_train.tracing.input_path import Plan
from popqorn_train.tracing.steps import MOVES, REPEATS, Ref, Step, called_name

_MOVES = (
    MOVES
    | REPEATS
    | frozenset(
        (
            "chunk", "clone", "contiguous", "detach", "getattr", "int", "long", "split", "to",
            "type", "type_as", "unbind",
        )
    )
)  # fmt: skip
_ELEMENTWISE = frozenset(
    (
        "abs", "add", "and_", "bitwise_and", "bitwise_not", "bitwise_or", "bool", "clamp",
        "clamp_max", "clamp_min", "clip", "double", "eq", "float", "full_like", "ge", "gt", "half",
        "invert", "isin", "le", "logical_and", "logical_not", "logical_or", "lt", "masked_fill",
        "mul", "ne", "neg", "new_full", "new_ones", "new_zeros", "not_equal", "ones_like", "or_",
        "sign", "sub", "truediv", "where", "zeros_like",
    )
)  # fmt: skip


class _Readers(NamedTuple):
    """Who reads the tokens.

    Attributes:
        followed: steps each of whose entries comes from one token, in order.
        ends: name of what is read, and the step to blame if that changes.
    """

    followed: list[Step]
    ends: list[tuple[str, Step]]


def check_token_readers(
    found: Plan, lifter: Lifter, candidates: Callable[[Tensor], Tensor]
) -> None:
    """Refuse tokens that are read beside the embedding, unless what is read stays as it is.

    Args:
        found: what moves, the output of an embedding.
        lifter: holds the tokens.
        candidates: from tokens ``(B, T)`` that the embedding reads to ``(B, T, C)``.

    Raises:
        UnsupportedModelError: another reader, named with its line; or the embedding reads what
            forward makes of the tokens.
    """
    source, way = found.source, _way(found)
    origin, axis = way[0], source.batch_axis or 0
    tokens, whole = lifter.value(source.refs[0]), lifter.value(origin.name)
    numbers = torch.arange(whole.numel(), device=whole.device).view(whole.shape)
    places = _run(lifter, origin, numbers, way[1:])[source.refs[0]].flatten()
    if len(places.unique()) < len(places):
        raise UnsupportedModelError(
            f"Substitutions replace tokens, but {source.name!r} reads some of them twice "
            f"({source.source}), and only one would change. Repeat tokens outside forward."
        )
    readers = _readers(found, origin)
    for column in candidates(tokens.movedim(axis, 0)).unbind(2):
        changed = whole.flatten().clone()
        changed[places] = column.movedim(0, axis).flatten().to(whole.dtype)
        values = _run(lifter, origin, changed.view(whole.shape), readers.followed)
        for name, reader in readers.ends:
            if not _same(values[name], lifter.value(name)):
                raise UnsupportedModelError(
                    f"Substitutions change tokens that {source.name!r} reads, but forward reads "
                    f"them in {reader.name!r} too ({reader.source}), which would not change. "
                    "Pass what it needs as another argument, or leave out the candidates that "
                    "change it."
                )


def _way(found: Plan) -> list[Step]:
    """Steps from the argument of forward to what the embedding reads."""
    steps = {step.name: step for step in found.trace.steps}
    way = [steps[found.source.refs[0]]]
    while way[0].kind != "input":
        at = way[0]
        moved = at.kind in ("function", "method") and called_name(at.target) in _MOVES
        if not moved or not isinstance(at.args[0], Ref):
            raise UnsupportedModelError(
                f"Substitutions replace tokens that forward takes, but {found.source.name!r} reads "
                f"what {at.name!r} makes of them ({at.source}). Do that outside forward."
            )
        way.insert(0, steps[at.args[0].name])
    return way


def _readers(found: Plan, origin: Step) -> _Readers:
    trace = found.trace
    live, moving = trace.leading_to(found.output), trace.made_from(found.source.name)
    blamed: dict[str, Step | None] = {origin.name: None}  # the first that does more than move
    readers = _Readers([], [])
    for step in trace.steps:
        read = [name for name in dict.fromkeys(step.refs) if name in blamed]
        if not read or step is found.source or step.name not in live:
            continue
        moves = _is_first(step, read[0]) and called_name(step.target) in _MOVES
        if len(read) == 1 and step.name not in moving and (moves or _is_elementwise(step, read[0])):
            blamed[step.name] = blamed[read[0]] or (None if moves else step)
            readers.followed.append(step)
        else:
            readers.ends.extend((name, blamed[name] or step) for name in read)
    return readers


def _is_first(step: Step, name: str) -> bool:
    first = step.args[0] if step.args and step.kind in ("function", "method") else None
    return isinstance(first, Ref) and first.name == name


def _is_elementwise(step: Step, name: str) -> bool:
    plain = step.kind in ("function", "method") and called_name(step.target) in _ELEMENTWISE
    return plain and (called_name(step.target) != "isin" or _is_first(step, name))


def _run(lifter: Lifter, origin: Step, value: Tensor, steps: list[Step]) -> dict[str, Any]:
    """Values of steps for other tokens."""
    for step in steps:
        for name in step.refs:
            lifter.value(name)
    fork = lifter.fork()
    fork.values[origin.name] = value
    for step in steps:
        fork.values[step.name] = fork.run(step)
    return fork.values


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list):
        return all(map(_same, one, other))
    return isinstance(one, Tensor) and torch.equal(one, other)
