"""Is what does not move the same for a sample alone as in the batch?

A graph holds it as it is in a batch, or in a chunk of one. Were it made of several samples, as a
mean over the batch or the longest length is, then a chunk would be bounded with other numbers than
those that the model computes with. It is known, not perturbed, so comparing values is no probe:
where they agree, the recorded operations treat every sample of this batch as they do alone, over
the whole of every ball (operations/sample_order.py has the rest of the argument).

A number of the whole batch (whole_batch.py) is held where samples are picked. It may be a size:
what has another size for a sample alone is compared at the size that it has in the batch, and
whether the size matters, whole_batch.check_apart asks the model. As a value it is refused.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from popqorn_train.certificates.instance import Instance
from popqorn_train.errors import MixedSamplesError, UnsupportedModelError
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.sample_order import Met, dealt, of_samples, order_after
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.tracing.packed import Packed, pad_lengths
from popqorn_train.tracing.sample_axis import counts_samples, deals
from popqorn_train.tracing.steps import Baked, Ref, Step

_CLOSE = 1e-9  # in float64, for the rounding of another order of sums


@torch.no_grad()
def check_samples_alone(instance: Instance) -> None:
    """Compare whatever meets what moves, in the whole batch and sample by sample.

    Raises:
        MixedSamplesError: something in forward mixes samples.
    """
    batch, exact = len(instance.center), instance.to(torch.float64)
    if batch == 1:
        return
    every = torch.arange(batch, device=exact.center.device)
    _check(exact)
    if _may_mix(exact):  # a batch that happens to be sorted would hide what another one shows
        _check(exact.pick(every.roll(1)))


def _check(instance: Instance) -> None:
    graph = instance.met(LpBall(0.0)) if _may_mix(instance) else []
    facts = _worth_a_look(instance, [*_before_root(instance), *graph])
    samples = torch.arange(len(instance.center), device=instance.center.device)[:, None]
    lifter, axis = instance.lifter, instance.plan.batch_axis
    alone = [lifter.pick(one, axis, anew=True) for one in samples] if facts else []
    sized = [lifter.pick(one, axis) for one in samples] if facts and lifter.whole else []
    for fact in facts:
        agrees = _agrees(fact, alone)
        if agrees is None and sized:
            agrees = _agrees(fact, sized)
        if not agrees:
            raise mixing(instance, fact.step)


def mixing(instance: Instance, step: Step | None = None) -> MixedSamplesError:
    """The error for a model that mixes samples."""
    where = "something in forward" if step is None else f"what {step.name!r} reads ({step.source})"
    return MixedSamplesError(
        f"{type(instance.lifter.model).__name__} treats a sample differently when it is alone: "
        f"{where} mixes samples (as a mean over the batch does). Bounds hold for one sample at a "
        "time; keep samples independent in forward."
    )


def _may_mix(instance: Instance) -> bool:
    """Whether some step could do so, and the graph of the whole batch is worth building."""
    plan, steps = instance.plan, instance.lifter.steps
    moving = {plan.root.name}
    for step in plan.trace.steps:
        if deals(step):
            return True
        if moving.isdisjoint(step.refs):
            continue
        moving.add(step.name)
        beside = [steps[name] for name in step.refs if name not in moving]
        if counts_samples(step) or any(
            read.kind != "input" and not _is_alike(read) for read in beside
        ):
            return True
    return False


def _before_root(instance: Instance) -> Iterator[Met]:
    """What moves is itself made of, and what its way into the graph reads."""
    plan, lifter = instance.plan, instance.lifter
    order = order_after(lifter, plan.source.name)
    names = [(plan.source, plan.source.name)]
    known = {plan.source.name, *[step.name for step in plan.chain]}
    for step in plan.chain:
        if counts_samples(step):
            raise mixing(instance, step)
        names += [(step, name) for name in step.refs if name not in known]
    for step, name in names:
        axis = lifter.steps[name].batch_axis
        yield Met(step, name, of_samples(lifter.value(name), axis, order), axis, order)


def _worth_a_look(instance: Instance, facts: list[Met]) -> list[Met]:
    """Each once; without weights, what the code made alike for all, and inputs as they came in."""
    found: dict[Any, Met] = {}
    for fact in facts:
        read = instance.lifter.steps[fact.name] if fact.name is not None else None
        own = read is not None and read.kind == "input" and fact.order is None
        if not own and not _is_size(fact) and not (read is not None and _is_alike(read)):
            place = fact.step.name if fact.name is None else fact.name
            found.setdefault((place, id(fact.order)), fact)
    return list(found.values())


def _is_alike(read: Step) -> bool:
    """Whether it is alike for all samples: a weight, or rows that the code made equal."""
    made = isinstance(read.target, Baked) and read.target.value is not None
    return made or read.kind == "weight"


def _is_size(fact: Met) -> bool:
    """Whether it says no more than how many frames an unpacked sequence has."""
    args, kwargs = fact.step.args, fact.step.kwargs
    size = kwargs.get("total_length", args[3] if len(args) > 3 else None)
    if fact.step.target is not pad_lengths or not isinstance(size, Ref):
        return False
    return size.name == fact.name and fact.step.refs.count(size.name) == 1


def _agrees(fact: Met, alone: list[Lifter]) -> bool | None:
    """Whether every sample alone has what it has in the batch; None where its size is another."""
    try:
        values = [_of_one(fact, lifter) for lifter in alone]
    except MixedSamplesError:
        return False
    except (ValueError, UnsupportedModelError):  # shapes that fit another batch only
        return None
    ours, theirs = _rows(fact.value, fact.axis), [_rows(value, fact.axis) for value in values]
    if any(rows.shape[1:] != ours.shape[1:] for rows in theirs):
        return None
    one, other = ours.double(), torch.cat(theirs).double()
    return torch.allclose(one.expand_as(other), other, rtol=_CLOSE, atol=_CLOSE, equal_nan=True)


def _of_one(fact: Met, alone: Lifter) -> Any:
    if fact.name is not None:
        return alone.value(fact.name)
    return dealt(alone, fact.step, *fact.moved).places


def _rows(value: Any, axis: int | None) -> Tensor:
    """A row per sample; one row for what has no batch axis."""
    if isinstance(value, Packed):
        padded = value.padded.movedim(value.batch_axis, 0).flatten(1)
        return torch.cat([padded, value.lengths.to(padded)[:, None]], 1)
    if isinstance(value, list):
        return torch.as_tensor(value)
    if isinstance(value, Tensor) and axis is not None:
        return value.movedim(axis, 0)
    return torch.as_tensor(value)[None]
