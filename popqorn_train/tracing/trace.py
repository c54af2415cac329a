"""Record what a model's forward does, with the caller's shapes.

The code is recorded twice (tracer.py), with batches of 2 and 3: a number that grew with the batch
is a multiple of it, an axis that grew is the batch axis. One recording then serves every batch
size.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.tracing.patches import patched
from popqorn_train.tracing.recording import run_tracer
from popqorn_train.tracing.sample_axis import check_samples_apart
from popqorn_train.tracing.selection import Select, described, way_to_select
from popqorn_train.tracing.steps import (
    Baked,
    Multiple,
    Ref,
    Repeated,
    Step,
    Trace,
    called_name,
    pick_samples,
)

_BATCHES = (2, 3)


def record(
    model: nn.Module,
    inputs: dict[str, Any],
    batch_axis: int = 0,
    samples: Sequence[int] = (0, 1),
    select: Select | None = None,
) -> Trace:
    """Trace a model in eval mode.

    Args:
        model: any module whose forward takes ``inputs`` in this order.
        inputs: example arguments by name; tensors have the batch on ``batch_axis``.
        batch_axis: axis of the batch in every input.
        samples: the two that the recorded batches consist of, in order.
        select: which part of what the model returns holds the logits.

    Raises:
        UnsupportedModelError: control flow that depends on data, sizes that are not multiples of
            the batch, or a recording that does not reproduce the model.
    """
    examples = [
        {name: _resized(value, batch, batch_axis, samples) for name, value in inputs.items()}
        for batch in _BATCHES
    ]
    with patched(model) as patches:
        recordings = [run_tracer(model, example, patches, select) for example in examples]
    (first, one), (second, two) = recordings
    pairs = list(zip(first.nodes, second.nodes, strict=False))
    if len(first.nodes) != len(second.nodes) or any(a.target != b.target for a, b in pairs):
        raise UnsupportedModelError(
            f"The forward of {type(model).__name__} takes a different path for a different batch "
            "size. Write it so that it treats every sample alike."
        )
    steps = [_step(a, b, one.baked, two.baked) for a, b in pairs if a.op != "output"]
    for node, step in zip(first.nodes, steps, strict=False):
        check_samples_apart(node, step, _BATCHES[0])
    output = pairs[-1][0].args[0]
    if not isinstance(output, fx.Node):
        way_out = way_to_select(one.returned)
        raise UnsupportedModelError(
            f"{type(model).__name__} returns {described(one.returned)}, expected one tensor of "
            f"logits (B, C). Say which part holds them: bound(model, {way_out})."
        )
    return Trace(tuple(steps), output.name, frozenset(one.visited), one.tied)


def _resized(value: Any, batch: int, axis: int, samples: Sequence[int]) -> Any:
    """The same samples in every batch, so that a maximum over them is the same."""
    if not isinstance(value, Tensor):
        return value
    size = value.shape[min(axis, value.ndim - 1)] if value.ndim else 1
    first, last = samples
    chosen = torch.tensor([first, *[last] * (batch - 1)]) % size  # lengths may have to fall
    return pick_samples(value.detach(), chosen.sort().values, axis)


def _step(a: fx.Node, b: fx.Node, baked_2: dict[str, Tensor], baked_3: dict[str, Tensor]) -> Step:
    kinds = {"placeholder": "input", "get_attr": "weight"}
    kind = kinds.get(a.op, a.op.removeprefix("call_"))
    target: Any = a.target
    source = a.meta.get("source", "unknown line")
    if isinstance(target, str) and target in baked_2:
        kind, target = "baked", _merge_baked(baked_2[target], baked_3[str(b.target)], source)
    one, two = a.meta["value"], b.meta["value"]
    shape = tuple(one.shape) if isinstance(one, Tensor) else None
    floating = isinstance(one, Tensor) and one.is_floating_point()
    axis = _batch_axis(one, two) if isinstance(one, Tensor) else None
    a.meta["batch_axis"] = axis
    args, kwargs = _merge(a.args, b.args), _merge(a.kwargs, b.kwargs)
    if called_name(target) == "squeeze" and len(args) + len(kwargs) == 1:
        args = (*args, _of_size_one(a.args[0], b.args[0]))  # else a batch of 1 is squeezed too
    if kind != "module":  # torch's names for its first arguments, which follow what has no name
        names = ("condition", "input", "other")
        args = (*args, *[kwargs.pop(name) for name in names if name in kwargs])
    found = a.name, kind, target, tuple(args), kwargs, shape, floating, axis, source
    return Step(*found, _grows(one, two), _discrete(one, two))


def _grows(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape != two.shape
    return not isinstance(one, int | float)


def _discrete(one: Any, two: Any) -> Any:
    """What both recordings gave, see ``Step``; NaN equals nothing."""
    if isinstance(one, Tensor):
        whole = not (one.is_floating_point() or one.is_complex() or _grows(one, two))
        return (one if torch.equal(one, two) else math.nan) if whole else None
    return (one if one == two else math.nan) if isinstance(one, int) else None


def _of_size_one(one: Any, two: Any) -> tuple[int, ...]:
    sizes = zip(one.meta["value"].shape, two.meta["value"].shape, strict=True)
    return tuple(axis for axis, pair in enumerate(sizes) if pair == (1, 1))


def _batch_axis(one: Tensor, two: Tensor) -> int | None:
    """The axis that grew with the batch; None if none did, or if it is mixed with another."""
    grown = [
        axis
        for axis, pair in enumerate(zip(one.shape, two.shape, strict=True))
        if len(set(pair)) > 1
    ]
    single = len(grown) == 1 and (one.shape[grown[0]], two.shape[grown[0]]) == _BATCHES
    return grown[0] if single else None


def _merge_baked(one: Tensor, two: Tensor, source: str) -> Baked:
    numbers = [[*range(batch)] for batch in _BATCHES]
    if not one.is_floating_point() and [one.tolist(), two.tolist()] == numbers:
        return Baked(None, 0)
    axis = _batch_axis(one, two) if one.ndim == two.ndim else None
    if axis is not None:
        one, two = one.narrow(axis, 0, 1), two
    try:
        same = bool((one == two).all())
    except RuntimeError:
        same = False
    if not same:
        raise UnsupportedModelError(
            f"forward makes a tensor that is not the same for every sample ({source}). Make it a "
            "buffer, or build it from constants."
        )
    return Baked(one.detach().clone(), axis)


def _merge(one: Any, two: Any) -> Any:
    """Combine the arguments of the two recordings."""
    if isinstance(one, fx.Node):
        return Ref(one.name)
    if not isinstance(one, bool) and isinstance(one, int) and isinstance(two, int) and one != two:
        per_sample = (two - one) // (_BATCHES[1] - _BATCHES[0])
        return Multiple(per_sample, one - per_sample * _BATCHES[0])
    if isinstance(one, slice):
        ends = zip((one.start, one.stop, one.step), (two.start, two.stop, two.step), strict=True)
        return slice(*[_merge(a, b) for a, b in ends])
    if isinstance(one, dict):
        return {key: _merge(value, two[key]) for key, value in one.items()}
    if isinstance(one, tuple | list) and (len(one), len(two)) == _BATCHES:
        items = [_merge(one[0], item) for item in (*one, *two)]
        if any(item != items[0] for item in items):
            raise UnsupportedModelError(
                f"forward makes a list {one!r} with other items for every sample. Pass a tensor."
            )
        return Repeated(items[0])
    if isinstance(one, tuple | list):
        return tuple(_merge(a, b) for a, b in zip(one, two, strict=True))
    if one is not two and one != two:
        raise UnsupportedModelError(
            f"forward computes with {one!r} for a batch of 2 and {two!r} for one of 3. Write it so "
            "that it treats every sample alike."
        )
    return one
