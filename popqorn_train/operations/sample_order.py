"""Which sample does each row of a batch hold, where a forward sorts and unsorts it?

A node holds its samples in the order of the inputs, whatever the user's code makes of the batch.
So an operation that only gives samples another place leaves a node as it is, and picking samples
stays picking rows. Beside the nodes goes the order that the code has them in after each step:

    order[i] = the sample in row i            (None: row i holds sample i)

It is found by sending numbers through the operation, with the arguments of this very batch,
whenever a graph is built. By induction over the steps, row i is a function of the sample order[i]
alone, because

- what moves entries (an index, a flip, a gather) takes those of a row from one sample, and leaves
  no sample out; else it is refused;
- every other operation works row by row, on operands that are in one order; else it is refused;
- what does not move is brought into the order of the samples too, where it is what it is for every
  sample alone (certificates/alone.py compares them);
- the logits end in the order of the inputs; else they are refused.

A batch of one sample has one order, so nothing is refused there, and a sample in a chunk of its own
is bounded as it is among others.

B: batch, M: entries of a sample of the result.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.node import Node
from popqorn_train.bounds.single_reads import Affine
from popqorn_train.errors import MixedSamplesError
from popqorn_train.nested import map_nested
from popqorn_train.tracing.packed import Packed, Padded
from popqorn_train.tracing.sample_axis import counts_samples, deals
from popqorn_train.tracing.steps import Step

if TYPE_CHECKING:
    from popqorn_train.operations.lift import Lifter

Order = Tensor | None
_WAY_OUT = "Sort the batch before forward, or pack with enforce_sorted=False, which needs no order."


class Dealt(NamedTuple):
    """What an operation that moves entries made of a batch.

    Attributes:
        order: of the rows of the result.
        places: ``(B, M)`` for every sample, where its entries were in the sample before.
    """

    order: Order
    places: Tensor


class Met(NamedTuple):
    """What does not move, where it meets what moves.

    Attributes:
        step: reads both.
        name: of the step whose result it is; None for the places that an index leads to.
        value: in the order of the samples.
        axis: of the batch in it, if it has one.
        order: that the code has it in.
        moved: of places: the shape, without the batch, and the batch axis of what is moved.
    """

    step: Step
    name: str | None
    value: Any
    axis: int | None
    order: Order
    moved: tuple[tuple[int, ...], int] = ((), 0)


def rows_of(x: Tensor, order: Order) -> Tensor:
    """From the order of the samples to that of the code; the batch is first."""
    return x if order is None else x[order]


def samples_of(x: Tensor, order: Order) -> Tensor:
    """From the order of the code back to that of the samples; the batch is first."""
    return x if order is None else x[order.argsort()]


def of_samples(value: Any, axis: int | None, order: Order) -> Any:
    """The same for whatever does not move.

    Args:
        value: a tensor, a list with an item a sample, lengths beside nodes; all else stays.
        axis: of the batch.
        order: that the code has it in.
    """
    if order is None:
        return value
    if isinstance(value, Packed):
        padded = of_samples(value.padded, value.batch_axis, order)
        return value._replace(padded=padded, lengths=of_samples(value.lengths, 0, order))
    if isinstance(value, Padded):
        return value._replace(lengths=of_samples(value.lengths, 0, order))
    if isinstance(value, tuple):  # what a recurrent layer returns
        return map_nested(value, (Packed, Padded), lambda part: of_samples(part, axis, order))
    if isinstance(value, list):
        return [value[row] for row in order.argsort().tolist()]
    if not isinstance(value, Tensor) or axis is None:
        return value
    return value.index_select(axis, order.argsort().to(value.device))


def lift_in_order(lifter: "Lifter", step: Step, moving: list[str]) -> Any:
    """Lift a step on nodes that are in the order of the samples.

    Args:
        lifter: knows all arguments of the step.
        step: what is lifted.
        moving: which of them hold nodes.

    Raises:
        MixedSamplesError: it mixes samples.
        UnsupportedModelError: it cannot be bounded.
    """
    order = _common_order(step, [lifter.orders.get(name) for name in moving])
    if deals(step):
        return _lift_deal(lifter, step, moving, order)
    if lifter.batch > 1 and counts_samples(step):
        raise _mixes(step, "computes with the number of samples")
    result = lifter.lift(step, *lifter.resolved((step.args, step.kwargs), order))
    if not isinstance(result, Tensor):  # as that of expand_as, which reads a shape only
        _note(lifter, step, moving, order)
    if order is None:
        return result
    lifter.orders[step.name] = order
    axis, back = step.batch_axis or 0, order.argsort()  # of the inverse, the inverse is the order
    return map_nested(result, Tensor, lambda x: of_samples(x, axis, back))


def _common_order(step: Step, orders: list[Order]) -> Order:
    first = orders[0]
    for order in orders[1:]:
        same = order is first or not (order is None or first is None or (order != first).any())
        if not same:
            raise _mixes(step, "combines samples in different orders")
    return first


def _lift_deal(lifter: "Lifter", step: Step, moving: list[str], order: Order) -> Node:
    """Lift an operation that moves entries, and perhaps samples."""
    x, *_ = lifter.resolved(step.args)
    if not isinstance(x, Node) or moving != step.refs[:1]:
        raise _mixes(step, "has an index that depends on the perturbed tensor")
    new, places = dealt(lifter, step, x.shape, x.batch_axis, order)
    if lifter.met is not None:
        lifter.met.append(Met(step, None, places, 0, order, (x.shape, x.batch_axis)))
    if new is not None:
        lifter.orders[step.name] = new
    shape, axis = _sample_shape(step), step.batch_axis or 0
    stays = (shape, axis) == (x.shape, x.batch_axis) and lifter.choose(
        step, "stays", lambda: _stays(places)
    )
    return x if stays else _gathered(x, places, shape, axis)


def dealt(
    lifter: "Lifter", step: Step, shape: tuple[int, ...], axis: int, order: Order = None
) -> Dealt:
    """Send the number of every entry through an operation that moves entries.

    Args:
        lifter: has the arguments of this batch.
        step: the operation.
        shape: of its first argument, without the batch.
        axis: where that has the batch.
        order: of its rows.

    Raises:
        MixedSamplesError: a row of the result holds entries of several samples, or samples are
            left out.
    """
    for name in step.refs[1:]:
        lifter.value(name)
    batch, size = lifter.batch, math.prod(shape)
    numbers = torch.arange(batch * size, device=lifter.device).view(batch, *shape)
    rest, kwargs = lifter.resolved((step.args[1:], step.kwargs))
    result = lifter.call(step, (rows_of(numbers, order).movedim(0, axis), *rest), kwargs)
    at = step.batch_axis
    if at is None or result.ndim <= at or result.shape[at] != batch:
        raise _mixes(step, "mixes samples of the batch, or leaves some out")
    result = result.movedim(at, 0).flatten(1)
    samples, every = result // size, torch.arange(batch, device=lifter.device)
    new = samples[:, 0]
    if bool((samples != new[:, None]).any()) or not torch.equal(new.sort().values, every):
        raise _mixes(step, "mixes samples of the batch, or leaves some out")
    found = None if torch.equal(new, every) else new
    return Dealt(found, samples_of(result % size, found))


def _stays(places: Tensor) -> bool:
    """Whether every entry is where it was in its sample."""
    return bool((places == torch.arange(places.shape[1], device=places.device)).all())


def _gathered(x: Node, places: Tensor, shape: tuple[int, ...], axis: int) -> Node:
    """The entries of a node at these places, sample by sample."""

    def gather(value: Tensor) -> Tensor:
        flat = value.movedim(x.batch_axis, 0).flatten(1).expand(len(places), -1)
        return flat.gather(1, places).view(-1, *shape).movedim(0, axis)

    return Affine(gather, [x], shape, axis)


def _note(lifter: "Lifter", step: Step, moving: list[str], order: Order) -> None:
    """Note what does not move and is read beside what does."""
    if lifter.met is None:
        return
    for name in step.refs:
        if name not in moving:
            axis = lifter.steps[name].batch_axis
            value = of_samples(lifter.values[name], axis, order)
            lifter.met.append(Met(step, name, value, axis, order))


def order_after(
    lifter: "Lifter", last: str, first: str | None = None, order: Order = None
) -> Order:
    """The order of a step's rows, from the operations that moved its first argument.

    Args:
        lifter: has the arguments of the batch.
        last: the step.
        first: an earlier one, whose order is known; None for the inputs.
        order: of that.
    """
    way: list[Step] = []
    step = lifter.steps[last]
    while step.name != first and step.refs:
        way.append(step)
        step = lifter.steps[step.refs[0]]
    for after in reversed(way):
        if deals(after) and step.batch_axis is not None:
            order = dealt(lifter, after, _sample_shape(step), step.batch_axis, order).order
        step = after
    return order


def check_restored(order: Order) -> None:
    """Refuse logits in another order than the inputs.

    Raises:
        MixedSamplesError: they are.
    """
    if order is not None:
        raise MixedSamplesError(
            "forward mixes samples: it returns logits in another order than its inputs. Undo the "
            "sorting, with logits[order.argsort()], or sort the batch before forward."
        )


def _sample_shape(step: Step) -> tuple[int, ...]:
    """Shape of a result without the batch."""
    shape = step.shape or ()
    return tuple(size for axis, size in enumerate(shape) if axis != step.batch_axis)


def _mixes(step: Step, what: str) -> MixedSamplesError:
    return MixedSamplesError(f"{step.name!r} {what} ({step.source}). {_WAY_OUT}")
