"""What a frame is: which entries of the tensor that moves lie in one.

Where layout changes and per-feature scalings alone lead from the tensor to the first recurrent
layer, they are folded into the ball, and frames are those that the layer reads. Behind anything
else (a normalisation, an activation, a loop by hand) nobody says what a frame is: no layout change
is folded then, and frames lie on axis 1 of the tensor as passed (axis 0 where time comes first),
or on the axis that the user names.

T: frames, N: features of a frame.
"""

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.nested import map_nested
from popqorn_train.tracing.roads import Road, Roads, arranges
from popqorn_train.tracing.steps import Multiple, Ref, Repeated, Step


class Frames(NamedTuple):
    """Where frames lie.

    Attributes:
        order: ``(T, N)`` positions of the entries of each frame in a sample of the root; None
            where frames are its first axis as they lie.
        places: ``(T, N)`` their positions in a sample of the tensor that moves, as passed.
        axis: of the tensor as passed, batch included, whose entries are the frames; None where
            they are no entries of one axis (the rows of a flat image).
        doubt: why another axis may be meant; empty where none is.
    """

    order: Tensor | None
    places: Tensor
    axis: int | None
    doubt: str


def find_frames(
    roads: Roads, source: Step, frame_axis: int | None
) -> tuple[tuple[Step, ...], Frames]:
    """Decide what is folded into the ball, and what a frame is.

    Args:
        roads: where what moves is read.
        source: the step whose result moves.
        frame_axis: the axis of its result that the user names; None leaves it to the rule.

    Returns:
        The steps after the source that are folded, and the frames.

    Raises:
        ValueError: no such axis.
        UnsupportedModelError: what moves is one number per sample.
    """
    if not _sample(source):
        raise UnsupportedModelError(
            f"The perturbed tensor, {source.name!r}, holds one number per sample and so no frames. "
            "Name another one with bound(model, perturb=...), or make it (B, 1) in forward."
        )
    chain = roads.chain(source)
    read = _as_read(source, chain, roads)
    if frame_axis is None and read is not None:
        return chain, read
    numbers = _numbered(source).select(_batch(source), 0)
    axis = 0 if frame_axis is None else _checked(frame_axis, source)
    places = _rows(numbers, axis)
    if read is not None and torch.equal(read.places, places):
        return chain, read._replace(doubt="")
    # Layout changes stay outside the ball: the root has the shape of the tensor as passed.
    still = itertools.takewhile(lambda step: not arranges(step, roads.model), chain)
    doubt = _doubt(source, roads) if frame_axis is None else ""
    order = None if _lies(places, numbers.shape) else places
    return tuple(still), Frames(order, places, _as_passed(axis, source), doubt)


def _as_read(source: Step, chain: tuple[Step, ...], roads: Roads) -> Frames | None:
    """The frames that the first recurrent layers read; None if they read none, or disagree."""
    root = chain[-1] if chain else source
    numbers, shape = _numbered(root), _sample(source)
    sample = numbers.select(_batch(root), 0)
    known = [road for road in roads.leading_from(root) if road.known]
    rows = [_rows_of(road, root, numbers, roads.model) for road in known]
    order = _agreed(rows, sample) if rows else None
    if order is None:
        return None
    folded = _moved(_numbered(source), chain, roads.model).select(_batch(root), 0)
    places = folded.flatten()[order]
    axis = axis_of(places, shape)
    doubt = ""
    if axis is not None:  # counted as passed, also behind a flip
        counted = torch.unravel_index(places[:, 0], shape)[axis].argsort()
        order, places = order[counted], places[counted]
        if all(len(row) == 1 for row in rows) and max(shape[:axis], default=1) > 1:
            doubt = _taken_apart(axis, source)  # a loop over cells
    lies = None if _lies(order, sample.shape) else order
    return Frames(lies, places, None if axis is None else _as_passed(axis, source), doubt)


def _agreed(rows: list[Tensor], sample: Tensor) -> Tensor | None:
    """The frames ``(T, N)`` of a sample that all readers see; None if they differ."""
    first = rows[0]
    if all(row.numel() == sample.numel() for row in rows):
        parts = [row.sort(1).values for row in rows]
        parts = [part[part[:, 0].argsort()] for part in parts]
        if all(torch.equal(part, parts[0]) for part in parts):
            return first
    axes = {axis_of(row, sample.shape) for row in rows}
    axis = axes.pop()
    return None if axes or axis is None else _rows(sample, axis)


def axis_of(rows: Tensor, shape: tuple[int, ...], *, whole: bool = False) -> int | None:
    """The axis of a sample along which frames ``(T, N)`` are entries, or parts of entries.

    Args:
        rows: positions in a flat sample.
        shape: of the sample.
        whole: take whole entries only.
    """
    index = torch.unravel_index(rows, shape)
    fits = [
        axis
        for axis, along in enumerate(index)
        if (along == along[:, :1]).all() and len(set(along[:, 0].tolist())) == len(along)
    ]
    full = [axis for axis in fits if rows.shape[1] * shape[axis] == math.prod(shape)]
    return next(iter(full if whole else full + fits), None)


def _doubt(source: Step, roads: Roads) -> str:
    """Why axis 1 as passed may not be meant, where no known layout leads to a recurrent layer."""
    shape = _sample(source)
    if len(shape) > 2:
        return (
            f"it has {len(shape) + 1} axes, and no path of layout changes alone leads from it to "
            "a recurrent layer"
        )
    if roads.layers:
        return ""
    numbers, seen = _numbered(source), set()
    for road in roads.leading_from(source):  # a loop by hand
        row = _rows_of(road._replace(axis=None), source, numbers, roads.model)
        axis = axis_of(row, shape, whole=True)
        if axis is not None:
            seen.add((axis, int(torch.unravel_index(row[0, 0], shape)[axis])))
    counts = [len([axis for axis, _ in seen if axis == other]) for other in range(len(shape))]
    apart = [axis for axis, size in enumerate(shape) if 1 < size == counts[axis]]
    return _taken_apart(apart[0], source) if apart and 0 not in apart else ""


def _taken_apart(axis: int, source: Step) -> str:
    found, first = _as_passed(axis, source), _as_passed(0, source)
    return f"forward takes it apart along axis {found}, not along axis {first}"


def _checked(frame_axis: int, source: Step) -> int:
    """The axis of a sample that the user means.

    Raises:
        ValueError: there is none.
    """
    batch, axes = _batch(source), len(_sample(source)) + 1
    axis = frame_axis + axes if frame_axis < 0 else frame_axis
    if not 0 <= axis < axes or axis == batch:
        others = ", ".join(str(other) for other in range(axes) if other != batch)
        raise ValueError(
            f"`frame_axis` must be an axis of {source.name!r} other than its batch axis {batch} "
            f"({others}), got {frame_axis}."
        )
    return axis - (batch < axis)


def _batch(step: Step) -> int:
    return step.batch_axis or 0


def _sample(step: Step) -> tuple[int, ...]:
    """Shape of a sample."""
    shape = step.shape or ()
    return shape[: _batch(step)] + shape[_batch(step) + 1 :]


def _as_passed(axis: int, source: Step) -> int:
    """Number of an axis of a sample where the batch is counted too."""
    return axis + (_batch(source) <= axis)


def _numbered(step: Step) -> Tensor:
    """The positions of a sample's entries, in the shape of the recorded result."""
    shape = _sample(step)
    numbers = torch.arange(math.prod(shape)).view(shape)
    return numbers.unsqueeze(_batch(step)).expand(step.shape or ()).contiguous()


def _moved(numbers: Tensor, steps: tuple[Step, ...], model: nn.Module) -> Any:
    """Positions sent through layout changes; scalings leave them where they are."""
    value: Any = numbers

    def resolve(arg: Any) -> Any:
        if isinstance(arg, Ref):
            return value
        if isinstance(arg, Repeated):
            return [arg.item] * batch
        return arg.per_sample * batch + arg.rest

    batch = 2  # of the recording
    for step in steps:
        if not arranges(step, model):
            continue
        args = map_nested(step.args, (Ref, Multiple, Repeated), resolve)
        kwargs = map_nested(step.kwargs, (Ref, Multiple, Repeated), resolve)
        if step.kind == "module":
            value = model.get_submodule(step.target).forward(*args, **kwargs)
        elif step.kind == "method":
            value = getattr(args[0], step.target)(*args[1:], **kwargs)
        else:
            value = step.target(*args, **kwargs)
        value = map_nested(value, Tensor, Tensor.contiguous)
    return value


def _rows(sample: Tensor, axis: int) -> Tensor:
    """Frames ``(T, N)`` along an axis of a sample; numbers are frames of one feature."""
    frames = sample.movedim(axis, 0)
    return frames[:, None] if frames.ndim == 1 else frames.flatten(1)


def _rows_of(road: Road, root: Step, numbers: Tensor, model: nn.Module) -> Tensor:
    """Positions ``(T, N)`` of the frames that are read at the end of a road."""
    end = road.steps[-1] if road.steps else root
    value = _moved(numbers, road.steps, model)
    sample = value.select(_batch(end), 0)
    if road.axis is None:
        return sample.flatten()[None]
    return _rows(sample, road.axis - (_batch(end) < road.axis))


def _lies(rows: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether frames are the first axis of a sample as they lie."""
    lies = torch.arange(math.prod(shape))
    return rows.shape[:1] == shape[:1] and torch.equal(rows.flatten(), lies)
