"""How recurrent layers and cells act on nodes: checked, given their weights, and unrolled."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from popqorn_train.bounds.affine import Matrix
from popqorn_train.bounds.concatenation import Concat, Stack, frame, frames
from popqorn_train.bounds.constant import Constant
from popqorn_train.bounds.node import Node, Root
from popqorn_train.bounds.recurrent import State, Weights, project, step_of, unroll
from popqorn_train.operations.lift import Lifter, has_node
from popqorn_train.operations.packing import extent
from popqorn_train.operations.registry import module, unsupported
from popqorn_train.perturbations.region import Region
from popqorn_train.tracing.packed import Packed
from popqorn_train.tracing.process_settings import without_cudnn
from popqorn_train.tracing.steps import Step

_SEQUENCE = "Put the batch on axis 0 with batch_first=True, or on axis 1 without it."


class _Parameters(NamedTuple):
    """Weights of one layer in one direction."""

    w_ih: Matrix
    bias: Tensor | None
    step: Weights
    summands: tuple[Tensor, ...]

    def project(self, x: Node) -> Node:
        """What the layer makes of its input."""
        return project(x, self.w_ih, self.bias, self.summands)


@module(nn.RNN, nn.LSTM, nn.GRU)
def _recurrent_module(
    lifter: Lifter, step: Step, layer: nn.RNNBase, x: Any, hx: Any = None
) -> tuple[Any, Any]:
    """Unroll every layer; the outputs are those of torch: ``out, h_n`` or ``out, (h_n, c_n)``."""
    first = 0 if layer.batch_first else 1  # of a packed sequence that does not count
    axis, sequence = (x.batch_axis, x.padded) if isinstance(x, Packed) else (first, x)
    sequence = _check_recurrent(step, layer, sequence, axis)
    below: list[Any] = frames(sequence) if not isinstance(sequence, Root) else [sequence]
    before: list[Node] = []
    if not layer.bidirectional and not isinstance(x, Packed):
        before, hx = _still(lifter, step, sequence, hx)
    valid = _valid(lifter, step, x, sequence.shape[0])[len(before) :]
    last: list[State] = []
    for index in range(layer.num_layers):
        sides = []
        for suffix in ("", "_reverse")[: 1 + layer.bidirectional]:
            start = _start(lifter, step, layer, hx, place=len(last))
            if any(there is not None for there in valid):
                start = _without_none(lifter, layer, start)
            found = _parameters(lifter, step, layer, f"_l{index}{suffix}")
            projected = _projected(below, found, skip=len(before))
            hidden, state = _direction(layer, projected, start, found, valid, reverse=bool(suffix))
            sides.append(hidden)
            last.append(state)
        below = [Concat(pair) for pair in zip(*sides, strict=True)] if sides[1:] else sides[0]
    out: Any = Stack([*before, *below], sequence.batch_axis)
    out = x._replace(padded=out) if isinstance(x, Packed) else out
    h_n = Stack([cast(Node, state.h) for state in last], 1)
    if not isinstance(layer, nn.LSTM):
        return out, h_n
    return out, (h_n, Stack([cast(Node, state.c) for state in last], 1))


def _projected(below: Sequence[Node], found: _Parameters, *, skip: int) -> Sequence[Node]:
    """What the layer makes of its inputs; the perturbed sequence in one go, but for the first."""
    projected: Sequence[Node] = [found.project(node) for node in below]
    return frames(projected[0])[skip:] if len(below[0].shape) > 1 else projected


def _direction(
    layer: nn.RNNBase,
    projected: Sequence[Node],
    start: State,
    found: _Parameters,
    valid: Sequence[Tensor | None],
    *,
    reverse: bool,
) -> tuple[list[Node], State]:
    kind, longest = _kind(layer), len(valid)
    hidden, state = unroll(
        kind, projected[:longest], start, found.step, valid=valid, reverse=reverse
    )
    return hidden + hidden[-1:] * (len(projected) - longest), state


def _kind(layer: nn.RNNBase | nn.RNNCellBase) -> str:
    if isinstance(layer, nn.RNN | nn.RNNCell):
        return layer.nonlinearity
    return "lstm" if isinstance(layer, nn.LSTM | nn.LSTMCell) else "gru"


def _valid(lifter: Lifter, step: Step, x: Any, time: int) -> list[Tensor | None]:
    """Which samples have each frame, up to the longest sample; None where all have it."""
    if not isinstance(x, Packed):
        return [None] * time
    lengths = x.lengths.to(lifter.device)
    shortest, longest = extent(lifter, step, lengths)
    return [None if t < shortest else lengths > t for t in range(longest)]


def _parameters(
    lifter: Lifter, step: Step, layer: nn.RNNBase | nn.RNNCellBase, suffix: str
) -> _Parameters:
    w_ih, w_hh, b_ih, b_hh, w_hr = (
        lifter.weight(step.target, name + suffix)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    )
    assert w_ih is not None
    assert w_hh is not None
    kind, size = _kind(layer), layer.hidden_size
    bias, bias_q = _biases(kind, size, b_ih, b_hh)
    hidden = torch.split(w_hh, [2 * size, size]) if kind == "gru" else (w_hh,)
    projection = None if w_hr is None else Matrix(w_hr)
    weights = Weights(tuple(Matrix(weight) for weight in hidden), bias_q, projection)
    return _Parameters(Matrix(w_ih), bias, weights, _summands(kind, size, b_ih, b_hh))


def _still(lifter: Lifter, step: Step, x: Node, state: Any) -> tuple[list[Node], Any]:
    """Run the layer itself over the first frames, up to where something moves in some sample.

    Returns:
        Its outputs there, frame by frame, and its state after them.
    """
    known = isinstance(x, Root) and isinstance(x.region, Region) and not has_node(state)
    if lifter.unrolled or not known:
        return [], state
    assert isinstance(x, Root)
    assert isinstance(x.region, Region)
    moved = x.region.moved.any(0)
    # One frame is left, so that there is something to unroll where nothing moves.
    count = lifter.choose(step, "still", lambda: int((moved.cumsum(0)[:-1] == 0).sum()))
    if count == 0:
        return [], state
    value = x.region.value[:, :count].movedim(0, x.batch_axis)
    with without_cudnn():  # its kernels may round to TF32
        out, state = lifter.call_module(step.target, (value, state), {})
    return [Constant(frame) for frame in out.movedim(x.batch_axis, 0).unbind(1)], state


def _biases(
    kind: str, hidden: int, b_ih: Tensor | None, b_hh: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """What is added to the projected input, and what a GRU adds inside its product."""
    if b_ih is None or b_hh is None:
        return None, None
    if kind != "gru":
        return b_ih + b_hh, None
    gates, candidate = b_hh[: 2 * hidden], b_hh[2 * hidden :]
    return torch.cat([b_ih[: 2 * hidden] + gates, b_ih[2 * hidden :]]), candidate


def _summands(
    kind: str, hidden: int, b_ih: Tensor | None, b_hh: Tensor | None
) -> tuple[Tensor, ...]:
    """What ``_biases`` adds up to what is added to the projected input."""
    if b_ih is None or b_hh is None:
        return ()
    gates = torch.cat([b_hh[: 2 * hidden], torch.zeros_like(b_hh[2 * hidden :])])
    return b_ih, (gates if kind == "gru" else b_hh)


def _check_recurrent(step: Step, layer: nn.RNNBase, x: Any, axis: int) -> Node:
    """The sequence as a node, its batch on an axis."""
    if not isinstance(x, Node):
        x = Stack([Constant(value) for value in x.unbind(1 - axis)], axis)
    if len(x.shape) != 2:
        raise unsupported(step, "a recurrent layer on a single sequence", "Feed it (B, T, N).")
    if x.batch_axis != axis:
        raise unsupported(
            step,
            f"a recurrent layer with batch_first={layer.batch_first} that reads the batch, axis "
            f"{x.batch_axis}, as time",
            _SEQUENCE,
        )
    return x


def _start(lifter: Lifter, step: Step, layer: nn.RNNBase, state: Any, *, place: int) -> State:
    """State of one layer and direction before its first frame; None stands for zeros."""
    lstm = isinstance(layer, nn.LSTM)
    h, c = state if lstm and state is not None else (state, None)
    parts = zip(State._fields, (h, c), strict=True)
    start = State(*[_initial(lifter, step, part, place, name) for name, part in parts])
    return _without_none(lifter, layer, start) if isinstance(layer, nn.GRU) else start


def _initial(lifter: Lifter, step: Step, state: Any, place: int, name: str) -> Node | None:
    if state is None:
        return None
    if isinstance(state, Node):
        if state.batch_axis != 1:
            raise unsupported(step, "a recurrent layer whose state has its batch off axis 1")
        return frame(state, place)
    return _constant_state(lifter, step, state[place], f"{name}{place}")


def _constant_state(lifter: Lifter, step: Step, value: Tensor, name: str) -> Node | None:
    """A state that does not move; zeros are left out."""
    value = value.expand(lifter.batch, -1)
    zero = lifter.choose(step, name, lambda: not value.requires_grad and not bool(value.any()))
    return None if zero else Constant(value)


def _without_none(lifter: Lifter, layer: nn.RNNBase | nn.RNNCellBase, state: State) -> State:
    """Zeros written out."""
    size = getattr(layer, "proj_size", 0) or layer.hidden_size

    def zeros(width: int) -> Node:
        return Constant(torch.zeros(lifter.batch, width, dtype=lifter.dtype, device=lifter.device))

    lstm = isinstance(layer, nn.LSTM | nn.LSTMCell)
    c = (state.c or zeros(layer.hidden_size)) if lstm else None
    return State(state.h or zeros(size), c)


@module(nn.RNNCell, nn.LSTMCell, nn.GRUCell)
def _cell_module(
    lifter: Lifter, step: Step, layer: nn.RNNCellBase, input: Any, hx: Any = None
) -> Any:
    """One step: ``h``, or ``(h, c)`` of an LSTM."""
    lstm = isinstance(layer, nn.LSTMCell)
    parts = [
        part
        if isinstance(part, Node) or part is None
        else _constant_state(lifter, step, part, name)
        for name, part in zip("hc", hx if lstm and hx is not None else (hx,), strict=False)
    ]
    x = input if isinstance(input, Node) else Constant(input.expand(lifter.batch, -1))
    for node in (x, *parts):
        if node is not None and (len(node.shape), node.batch_axis) != (1, 0):
            raise unsupported(step, "a cell on a single sample", "Feed it (B, N).")
    state = State(*parts)
    if isinstance(layer, nn.GRUCell):
        state = _without_none(lifter, layer, state)
    found = _parameters(lifter, step, layer, "")
    new = step_of(_kind(layer))(found.project(x), state, found.step)
    new.after(state)
    return tuple(new) if lstm else new.h
