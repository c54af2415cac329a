"""What a forward works out once for the whole batch: ``lengths.max()``, to cut the padding off.

A recording holds for a batch only if such numbers are what they were when it was recorded, since
sizes follow from them. Chunks and picked samples keep those of the batch. And as a bound speaks of
one sample, the logits must not depend on them: the model itself is run on samples whose own
numbers are others. What is unpacked is as long as the longest sample of a batch, which is such a
number too.

B: batch.
"""

import inspect
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor

from popqorn_train.certificates.alone import mixing
from popqorn_train.certificates.fidelity import agree, as_rows, measured
from popqorn_train.certificates.instance import Instance
from popqorn_train.errors import MixedSamplesError
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.sample_order import order_after, samples_of
from popqorn_train.tracing.input_path import Plan
from popqorn_train.tracing.packed import pack_lengths, pad_lengths
from popqorn_train.tracing.steps import Ref, Step

_ARGUMENTS = {function: inspect.signature(function) for function in (pack_lengths, pad_lengths)}
_RECORDED = 2  # samples in a recording
_TRIED = 4  # samples that are run alone


def numbers_of(found: Plan) -> Hashable:
    """What tells apart recordings of batches of equal shapes."""
    values = [step.discrete for step in found.whole if step.discrete is not None]
    return repr([value.tolist() if isinstance(value, Tensor) else value for value in values])


def other_numbers(found: Plan, lifter: Lifter) -> list[Step]:
    """The steps whose numbers are not the recorded ones in this batch."""
    numbers = [step for step in found.whole if step.discrete is not None]
    return [step for step in numbers if not _same(lifter.value(step.name), step.discrete)]


def telling_samples(found: Plan, lifter: Lifter) -> Tensor | None:
    """Two samples ``(2,)`` that alone give the numbers of the whole batch; None if there are none.

    The sample of greatest length does for ``lengths.max()``; a sum is no sample's own.
    """
    missing = {step.name for step in found.whole if step.discrete is not None}
    chosen: list[int] = []
    for sample, alone in _alone(found, lifter):
        met = {name for name in missing if _same(alone.value(name), lifter.value(name))}
        chosen += [sample] if met else []
        missing -= met
    if missing or len(chosen) > _RECORDED:
        return None
    others = [sample for sample in range(lifter.batch) if sample not in chosen]
    chosen = [*chosen, *others, *chosen][:_RECORDED]
    return torch.tensor([*chosen, *chosen][:_RECORDED]).sort().values


def check_numbers(found: Plan, lifter: Lifter) -> None:
    """Refuse a batch for which the recording does not hold.

    Raises:
        MixedSamplesError: naming the line of the user's code.
    """
    others = other_numbers(found, lifter)
    if others:
        step = others[0]
        raise MixedSamplesError(
            f"forward computes {step.name!r} from all samples of the batch ({step.source}), and no "
            "two samples alone reproduce its value, so sizes may differ from those traced. "
            "Compute it outside forward, cut the inputs there, or use a maximum over the samples."
        )


def check_shape(found: Plan, value: Tensor) -> None:
    """Refuse what moves if it has not the recorded shape, but for the batch.

    Raises:
        MixedSamplesError: naming the line of the user's code.
    """
    axis, shape = found.root.batch_axis or 0, tuple(found.root.shape or ())
    if (*shape[:axis], *shape[axis + 1 :]) != (*value.shape[:axis], *value.shape[axis + 1 :]):
        raise MixedSamplesError(
            "forward cuts the perturbed tensor to a size that depends on data "
            f"({found.root.source}): {tuple(value.shape)}, where {shape} was traced. Cut the "
            "inputs outside forward."
        )


def check_apart(
    instance: Instance,
    exact: Callable[[], Instance],
    output: Any,
    dtype: torch.dtype | None,
    run: Callable[[Tensor], Any],
) -> None:
    """Refuse a model whose logits for a sample depend on what the others are.

    Args:
        instance: of the whole batch.
        exact: makes the same in float64.
        output: what the model returned for it.
        dtype: precision of its weights, if it has any.
        run: from indices ``(b,)`` of samples to what it returns for them alone.

    Raises:
        MixedSamplesError: they do.
    """
    found, lifter = instance.plan, instance.lifter
    names = [step.name for step in found.whole]
    others = {
        sample
        for sample, alone in _alone(found, lifter)
        if any(not _same(alone.value(name), lifter.value(name)) for name in names)
    }
    outsiders = sorted(others | _shorter(found, lifter))
    if not outsiders:
        return
    precise, near = measured(instance, exact(), dtype or instance.value.dtype)
    for sample in outsiders[:: -(-len(outsiders) // _TRIED)]:
        twice = torch.tensor([sample, sample], device=lifter.device)  # one may be squeezed
        theirs, its_own = as_rows(output, precise), as_rows(run(twice), precise[twice])
        if theirs is None or its_own is None or not agree(its_own, theirs[twice], near).all():
            raise mixing(instance)


def _shorter(found: Plan, lifter: Lifter) -> set[int]:
    """Samples that have fewer frames alone, where forward unpacks without a total length."""
    steps, short = found.trace.steps, set[int]()
    if not any(step.target is pad_lengths and _longest_counts(step) for step in steps):
        return short
    for step in steps:
        if step.target is pack_lengths:
            recorded = _ARGUMENTS[pack_lengths].bind(*step.args, **step.kwargs).arguments["lengths"]
            order = None
            if isinstance(recorded, Ref):
                lifter.value(recorded.name)
                order = order_after(lifter, recorded.name)
            lengths = samples_of(torch.as_tensor(lifter.resolved(recorded)), order)
            short.update((lengths < lengths.max()).nonzero()[:, 0].tolist())
    return short


def _longest_counts(step: Step) -> bool:
    given = _ARGUMENTS[pad_lengths].bind(*step.args, **step.kwargs).arguments
    return given.get("total_length") is None


def _alone(found: Plan, lifter: Lifter) -> Iterator[tuple[int, Lifter]]:
    """Every sample as a batch of its own."""
    if found.whole:
        for sample in range(lifter.batch):
            chosen = torch.tensor([sample], device=lifter.device)
            yield sample, lifter.pick(chosen, found.batch_axis, anew=True)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape == two.shape and torch.allclose(one, two, equal_nan=True)
    return bool(one == two)
