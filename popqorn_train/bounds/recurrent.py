"""Recurrent layers, unrolled through time into nodes.

One step of each cell, as in ``torch.nn`` (pre-activations z = W_ih x[t] + b_ih + W_hh h + b_hh):

    RNN   h' = f(z)                                                  f = tanh or relu
    LSTM  i, f, g, o = z;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')
    GRU   r, z, n = z;     q = W_hn h + b_hn;  n = W_in x[t] + b_in + sigmoid(r) q;
          h' = (1 - sigmoid(z)) tanh(n) + sigmoid(z) h

Ko et al., "POPQORN", ICML 2019, appendices A.1, A.3 and A.7 bound the same products.
T: frames, F: features, H: hidden units.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

from torch import Tensor
from torch.nn.functional import linear

from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.affine import Linear, Matrix, Sum
from popqorn_train.bounds.concatenation import Select
from popqorn_train.bounds.constant import Constant
from popqorn_train.bounds.gated import Blend, Gated
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.slices import split
from popqorn_train.relaxations.products import MEMORY, RESET, SIGMOID_TANH


class Weights(NamedTuple):
    """What a step needs beside its projected input.

    Attributes:
        hidden: w_hh ``(G H, H)`` for G gates; of a GRU, those of r and z, and that of n.
        bias_q: ``(H,)`` b_hn of a GRU, which sits inside the product with r; else None. All
            other biases are part of the projected input.
        w_hr: ``(P, H)`` projection of an LSTM's hidden state; else None.
    """

    hidden: tuple[Matrix, ...]
    bias_q: Tensor | None = None
    w_hr: Matrix | None = None


class State(NamedTuple):
    """Hidden and cell state; None stands for zeros (a GRU takes a ``Constant`` instead)."""

    h: Node | None
    c: Node | None = None

    def after(self, before: "State") -> "State":
        """The same, marked as the state that follows another one; see ``Node.state``."""
        known = before.h.state if before.h is not None else None
        step = 0 if known is None else known[1] + 1
        for name, node in zip(self._fields, self, strict=True):
            if node is not None:
                node.state = name, step
        return self


def project(
    h: Node, weight: Matrix, bias: Tensor | None = None, summands: Sequence[Tensor] = ()
) -> Node:
    """``W h + b``, worked out at once where h does not move; ``summands`` as of ``Linear``."""
    if isinstance(h, Constant):
        moves = bool(h.value.any()) or h.worked_out
        return Constant(linear(h.value, weight.value, bias), worked_out=moves)
    return Linear(h, weight, bias, summands)


def _add(x: Node, h: Node | None, weight: Matrix) -> Node:
    """``x + W h``, where x is the projected input."""
    if h is None:
        return Sum([x])
    projected = project(h, weight)
    if isinstance(projected, Constant):
        return Sum([x], projected.value)
    return Sum([x, projected])


def rnn_step(kind: str, x: Node, state: State, weights: Weights) -> State:
    """One step of a vanilla RNN; ``kind`` is ``"tanh"`` or ``"relu"``."""
    return State(Activation(kind, _add(x, state.h, *weights.hidden)))


def lstm_step(x: Node, state: State, weights: Weights) -> State:
    """One step of an LSTM."""
    size = x.shape[-1] // 4
    i, f, g, o = split(_add(x, state.h, *weights.hidden), size, size, size, size)
    c: Node = Gated(SIGMOID_TANH, i, g)
    if state.c is not None:
        c = Sum([Gated(MEMORY, f, state.c), c])
    h: Node = Gated(SIGMOID_TANH, o, c)
    return State(h if weights.w_hr is None else project(h, weights.w_hr), c)


def gru_step(x: Node, state: State, weights: Weights) -> State:
    """One step of a GRU; ``state.h`` is given, zeros as a ``Constant``."""
    h = state.h
    if h is None:
        raise TypeError("gru_step needs a state; pass Constant(zeros).")
    size, (w_rz, w_n) = x.shape[-1] // 3, weights.hidden
    x_rz, x_n = split(x, 2 * size, size)
    r, z = split(_add(x_rz, h, w_rz), size, size)
    q = project(h, w_n, weights.bias_q)
    n = Sum([x_n, Gated(RESET, r, q)])
    return State(Blend(z, n, h))


def step_of(kind: str) -> Callable[[Node, State, Weights], State]:
    """One step of a cell: ``"tanh"``, ``"relu"``, ``"lstm"`` or ``"gru"``."""
    gated = {"lstm": lstm_step, "gru": gru_step}
    return gated.get(kind) or partial(rnn_step, kind)


def _held(new: State, old: State, valid: Tensor) -> State:
    """The new state where a sample has this frame, else the old one."""
    parts = [
        None if one is None or two is None else Select(valid, one, two)
        for one, two in zip(new, old, strict=True)
    ]
    return State(*parts)


def unroll(
    kind: str,
    inputs: Sequence[Node],
    state: State,
    weights: Weights,
    *,
    valid: Sequence[Tensor | None],
    reverse: bool = False,
) -> tuple[list[Node], State]:
    """Walk a layer through its projected inputs.

    Args:
        kind: ``"tanh"``, ``"relu"``, ``"lstm"`` or ``"gru"``.
        inputs: ``W_ih x[t]`` and biases for every frame.
        state: before the first frame walked; without None if there is a ``valid`` frame.
        weights: of the layer.
        valid: for every frame the samples ``(B,)`` that have it; None where all do. The others
            keep their state.
        reverse: walk from the last frame to the first.

    Returns:
        The hidden state of every frame, in the order of ``inputs``, and the last state.
    """
    step = step_of(kind)
    hidden: dict[int, Node] = {}
    places = range(len(inputs))
    for t in reversed(places) if reverse else places:
        new, there = step(inputs[t], state, weights), valid[t]
        state = (new if there is None else _held(new, state, there)).after(state)
        hidden[t] = cast(Node, state.h)
    return [hidden[t] for t in places], state
