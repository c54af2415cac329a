"""Which operations that move entries may give samples another place in the batch.

One that reads no tensor deals the entries of every batch alike, so it is looked at once, while the
forward is recorded. Where an index leads, and whether a flip or a roll turns the batch, is known
with the arguments of a batch only: see operations/sample_order.py.
"""

from types import NoneType
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.nested import map_nested
from popqorn_train.tracing.steps import MOVES, REPEATS, Multiple, Ref, Repeated, Step, called_name

_TURNS = ("flip", "roll")
_PICKS = ("getitem", "narrow", "roll", "select")  # where a number is a place, not a size


def moves_entries(step: Step) -> bool:
    """Whether every entry of the result is an entry of the first argument."""
    return step.kind in ("function", "method") and called_name(step.target) in MOVES | REPEATS


def deals(step: Step) -> bool:
    """Whether an operation that moves entries may also give samples another place."""
    if not moves_entries(step):
        return False
    indices: list[Any] = []
    kinds = (Ref, Repeated, Multiple) if called_name(step.target) in _PICKS else (Ref, Repeated)
    map_nested((step.args[1:], step.kwargs), kinds, indices.append)
    return bool(indices) or called_name(step.target) in _TURNS


def counts_samples(step: Step) -> bool:
    """Whether a number that grows with the batch is more than a size of the result."""
    numbers: list[Any] = []
    map_nested((step.args, step.kwargs), Multiple, numbers.append)
    sizes = moves_entries(step) or called_name(step.target).startswith(("new_", "expand"))
    return bool(numbers) and not sizes


def deals_samples(step: Step) -> bool:
    """The same, but for a flip or a roll along other axes; a roll without axes goes over all."""
    name = called_name(step.target)
    if name not in _TURNS:
        return deals(step)
    given = step.args[1:] if name == "flip" else step.args[2:] or (None,)
    axes: list[Any] = []
    map_nested(step.kwargs.get("dims", given), (int, NoneType), axes.append)
    ndim = len(step.shape or ())
    return any(axis is None or axis % ndim == step.batch_axis for axis in axes)


def places_samples(step: Step, before: Step) -> bool:
    """Whether a step gives samples another place, and leaves entries where they are in a sample."""
    same = (step.shape, step.batch_axis) == (before.shape, before.batch_axis)
    if not same or step.batch_axis is None or not deals(step):
        return False
    name = called_name(step.target)
    if name == "getitem":
        index = step.args[1] if isinstance(step.args[1], tuple) else (step.args[1],)
        rest = [part for axis, part in enumerate(index) if axis != step.batch_axis]
        return len(index) > step.batch_axis and all(part == slice(None) for part in rest)
    place = 2 if name == "roll" else 1
    dims = step.kwargs.get("dim", step.kwargs.get("dims", (*step.args, None, None)[place]))
    axes = dims if isinstance(dims, tuple | list) else (dims,)
    ndim = len(step.shape or ())
    return all(isinstance(axis, int) and axis % ndim == step.batch_axis for axis in axes)


def check_samples_apart(node: fx.Node, step: Step, batch: int) -> None:
    """Send the number of each sample through an operation that moves entries.

    ``h_n.reshape(B, -1)`` of a ``(layers, B, H)`` tensor, for one, would deal samples anew.

    Args:
        node: as it was recorded.
        step: what it became.
        batch: of the recording.

    Raises:
        UnsupportedModelError: entries of different samples come together.
    """
    source = next((arg for arg in node.all_input_nodes), None)
    if not moves_entries(step) or deals(step) or source is None or step.batch_axis is None:
        return
    value, axis = source.meta["value"], source.meta["batch_axis"]
    if axis is None:
        return
    numbers = torch.arange(batch, device=value.device).view(_along(axis, value.ndim))
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
    rest = tuple(args[1:]) if args else ()
    kwargs = {name: value for name, value in kwargs.items() if name != "input"}
    args = (numbers.expand(value.shape).clone(), *rest)
    method = isinstance(node.target, str)
    run = getattr(args[0], str(node.target)) if method else node.target
    result = run(*args[1:], **kwargs) if method else run(*args, **kwargs)  # type: ignore[operator]
    expected = torch.arange(batch, device=value.device)
    if (result != expected.view(_along(step.batch_axis, result.ndim))).any():
        raise UnsupportedModelError(
            f"{step.name!r} mixes the entries of different samples ({step.source}). "
            "Permute the axes before reshaping, so that the batch stays an axis of its own."
        )


def _along(axis: int, ndim: int) -> list[int]:
    return [-1 if other == axis else 1 for other in range(ndim)]
