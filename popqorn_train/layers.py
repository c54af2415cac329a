"""How recurrent layers act on nodes: checked, given their weights, and unrolled."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from popqorn_train.activation import Constant
from popqorn_train.affine import Linear, Stack, frame, frames
from popqorn_train.lift import Lifter, has_node, module, unsupported
from popqorn_train.node import Node, Root
from popqorn_train.recurrent import State, Weights, unroll
from popqorn_train.steps import Step

_SEQUENCE = "Put the batch on axis 0 with batch_first=True, or on axis 1 without it."


@module(nn.RNN, nn.LSTM, nn.GRU)
def _recurrent_module(
    lifter: Lifter, step: Step, layer: nn.RNNBase, x: Node, state: Any = None
) -> tuple[Node, Any]:
    """Unroll every layer; the outputs are those of torch: ``out, h_n`` or ``out, (h_n, c_n)``."""
    _check_recurrent(step, layer, x)
    kind = layer.nonlinearity if isinstance(layer, nn.RNN) else layer.mode.lower()
    lstm = kind == "lstm"
    before, state = _still(lifter, step, x, state)
    h0, c0 = state if lstm and state is not None else (state, None)
    below, last_h, last_c = frames(x) if not isinstance(x, Root) else [x], [], []
    for index in range(layer.num_layers):
        w_ih, w_hh, b_ih, b_hh = (
            lifter.weight(step.target, f"{name}_l{index}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        assert w_ih is not None
        assert w_hh is not None
        bias, bias_q = _biases(kind, layer.hidden_size, b_ih, b_hh)
        projected: Sequence[Node] = [Linear(node, w_ih, bias) for node in below]
        if len(below[0].shape) > 1:  # the perturbed sequence, projected in one go
            projected = frames(projected[0])[len(before) :]
        start = State(_initial(lifter, step, h0, index), _initial(lifter, step, c0, index))
        if kind == "gru" and start.h is None:
            start = State(Constant(w_hh.new_zeros(lifter.batch, layer.hidden_size)))
        below, c = unroll(kind, projected, start, Weights(w_hh, bias_q))
        last_h.append(below[-1])
        last_c.append(c)
    out, h_n = Stack([*before, *below], x.batch_axis), Stack(last_h, 1)
    return (out, (h_n, Stack(last_c, 1))) if lstm else (out, h_n)  # type: ignore[arg-type]


def _still(lifter: Lifter, step: Step, x: Node, state: Any) -> tuple[list[Node], Any]:
    """Run the layer itself over the first frames, up to where something moves in some sample.

    Returns:
        Its outputs there, frame by frame, and its state after them.
    """
    if not isinstance(x, Root) or has_node(state):
        return [], state
    moved = x.region.moved.any(0)
    # One frame is left, so that there is something to unroll where nothing moves.
    count = int((moved.cumsum(0)[:-1] == 0).sum())
    if count == 0:
        return [], state
    value = x.region.value[:, :count].movedim(0, x.batch_axis)
    with torch.backends.cudnn.flags(enabled=False):  # its kernels may round to TF32
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


def _check_recurrent(step: Step, layer: nn.RNNBase, x: Node) -> None:
    if layer.proj_size:
        raise unsupported(step, "an LSTM with proj_size", "Use proj_size=0 and a Linear after it.")
    if layer.bidirectional:
        raise unsupported(step, "a bidirectional layer", "Use one direction.")
    if not isinstance(x, Node):
        raise unsupported(step, "a recurrent layer whose input stays while its state moves")
    if len(x.shape) != 2:
        raise unsupported(step, "a recurrent layer on a single sequence", "Feed it (B, T, N).")
    if x.batch_axis != (0 if layer.batch_first else 1):
        raise unsupported(
            step,
            f"a recurrent layer with batch_first={layer.batch_first} that reads the batch, axis "
            f"{x.batch_axis}, as time",
            _SEQUENCE,
        )


def _initial(lifter: Lifter, step: Step, state: Any, layer: int) -> Node | None:
    """Initial state of one layer; zeros are left out."""
    if state is None:
        return None
    if isinstance(state, Node):
        if state.batch_axis != 1:
            raise unsupported(step, "a recurrent layer whose state has its batch elsewhere than 1")
        return frame(state, layer)
    value: Tensor = state[layer].expand(lifter.batch, -1)
    zero = not value.requires_grad and not bool(value.any())
    return None if zero else Constant(value)
