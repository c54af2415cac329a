"""Recurrent layers over sequences of which every sample has several, on one axis with the batch.

The layer is unrolled over one sequence of every sample after the other. Its last states, which the
code has as ``(layers, B R, H)``, are kept as one result a layer and direction.

B: batch, R: sequences of a sample, T: frames, H: hidden units.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.bounds.concatenation import Stack
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.single_reads import Affine
from popqorn_train.errors import UnboundedStepError
from popqorn_train.tracing.steps import Step, called_name

if TYPE_CHECKING:
    from popqorn_train.operations.lift import Lifter

_WAY_OUT = (
    "Run it over one sequence of every sample at a time, and stack what it returns: "
    "torch.stack([layer(x[:, i])[0] for i in range(x.size(1))], 1) for x of (B, S, T, N)."
)
_PERMUTING = "moveaxis", "movedim", "permute", "swapaxes", "swapdims", "transpose"


class LastStates(NamedTuple):
    """States ``(layers, B R, H)``, by layer and direction.

    Attributes:
        layers: each ``(R, H)`` with the batch where the sequences have it, and as merged rows once
            the code has them.
    """

    layers: tuple[Any, ...]

    def read(self, step: Step, rest: Any, run: Callable[[Tensor], Tensor]) -> Any:
        """What ``h_n[index]`` picks, ``h_n.squeeze(0)`` of one layer, or a permutation arranges.

        Args:
            step: that reads them.
            rest: its further arguments.
            run: what it does to a value in the place of the states.

        Raises:
            UnboundedStepError: another way to read them.
        """
        name, count = called_name(step.target), len(self.layers)
        place = rest[0] if len(rest) == 1 else None
        if name == "getitem" and isinstance(place, slice) and self.layers[place]:
            return LastStates(self.layers[place])
        one = name == "getitem" or (name == "squeeze" and place == 0 and count == 1)
        if one and isinstance(place, int) and -count <= place < count:
            return self.layers[place]
        if name in _PERMUTING and (order := _order(run))[0] == 1:
            return self._rows_first(order)
        raise other_than_by_layer(step)

    def _rows_first(self, order: Sequence[int]) -> Any:
        """The states with the axis of the sequences first."""
        nodes = [layer.rows for layer in self.layers]
        (count, units), axis = nodes[0].shape, nodes[0].batch_axis
        last = order[1] == 2  # layers behind units
        shape = (count, units, len(nodes)) if last else (count, len(nodes), units)

        def join(*values: Tensor) -> Tensor:
            return torch.stack(values, 3 if last else 2)

        return self.layers[0]._replace(rows=Affine(join, nodes, shape, axis))


def other_than_by_layer(step: Step) -> UnboundedStepError:
    """The error for any other way to read states."""
    what = f"node {step.name!r} reads states of sequences that were merged with the batch"
    return UnboundedStepError(
        f"{what} other than by layer ({step.source}).",
        "Pick the states of a layer, h_n[-1], put the sequences first, h_n.permute(1, 0, 2), or "
        "split its output: view(B, S, T, -1).",
    )


def _order(run: Callable[[Tensor], Tensor]) -> list[int]:
    """Which axis of three is where in the result."""
    sizes = [2, 3, 5]
    return [sizes.index(size) for size in run(torch.zeros(sizes)).shape]


def lift_sequences(lifter: "Lifter", step: Step, rows: Node, rest: Any, kwargs: Any) -> Any:
    """A recurrent layer over every sequence: its outputs ``(R, T, H)``, and its last states.

    Args:
        lifter: lifts the layer.
        step: its call.
        rows: sequences ``(R, T, N)``.
        rest: further arguments of the call.
        kwargs: likewise.

    Raises:
        UnboundedStepError: it starts from states of its own, or reads the batch as time.
    """
    layer = lifter.model.get_submodule(step.target)
    assert isinstance(layer, nn.RNNBase)
    if rest or kwargs or not layer.batch_first or len(rows.shape) != 3:
        raise UnboundedStepError(
            f"module {step.target!r} is a recurrent layer over sequences that were merged with the "
            f"batch, which has no bound with states of its own or batch_first=False "
            f"({step.source}).",
            _WAY_OUT,
        )
    alone = dataclasses.replace(step, batch_axis=None)
    found = [lifter.lift(alone, (_sequence(rows, at),), {}) for at in range(rows.shape[0])]
    outputs = Stack([output for output, _ in found], rows.batch_axis)
    if not isinstance(layer, nn.LSTM):
        return outputs, _joined([state for _, state in found], rows.batch_axis)
    hidden, cells = ([state[at] for _, state in found] for at in (0, 1))
    return outputs, (_joined(hidden, rows.batch_axis), _joined(cells, rows.batch_axis))


def _sequence(rows: Node, at: int) -> Node:
    """One sequence of every sample, ``(T, N)``."""

    def pick(value: Tensor) -> Tensor:
        return value.select(1 - rows.batch_axis, at)

    return Affine(pick, [rows], rows.shape[1:], 0)


def _joined(states: list[Node], axis: int) -> LastStates:
    """States ``(layers, H)`` of every sequence, by layer."""
    stacked = Stack(states, 0)

    def layer(index: int) -> Node:
        def pick(value: Tensor) -> Tensor:
            picked = value[:, :, index]
            return picked if axis == 0 else picked.transpose(0, 1)

        return Affine(pick, [stacked], (stacked.shape[0], stacked.shape[2]), axis)

    return LastStates(tuple(layer(index) for index in range(stacked.shape[1])))
