"""Recurrent layers, unrolled through time into nodes.

One step of each cell, as in ``torch.nn`` (pre-activations z = W_ih x[t] + b_ih + W_hh h + b_hh):

    RNN   h' = f(z)                                                  f = tanh or relu
    LSTM  i, f, g, o = z;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')
    GRU   r, z, n = z;     q = W_hn h + b_hn;  n = W_in x[t] + b_in + sigmoid(r) q;
          h' = (1 - sigmoid(z)) tanh(n) + sigmoid(z) h

Ko et al., "POPQORN", ICML 2019, appendices A.1, A.3 and A.7 bound the same products.
T: frames, F: features, H: hidden units.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from popqorn_train.activation import Activation, Blend, Constant, Gated
from popqorn_train.affine import Linear, Sum
from popqorn_train.node import Node, split
from popqorn_train.products import MEMORY, RESET, SIGMOID_TANH


class Weights(NamedTuple):
    """What a step needs beside its projected input.

    Attributes:
        w_hh: ``(G H, H)`` for G gates.
        bias_q: ``(H,)`` b_hn of a GRU, which sits inside the product with r; else None. All
            other biases are part of the projected input.
    """

    w_hh: Tensor
    bias_q: Tensor | None = None


class State(NamedTuple):
    """Hidden and cell state; None stands for zeros (a GRU takes a ``Constant`` instead)."""

    h: Node | None
    c: Node | None = None


def _linear(h: Node, weight: Tensor, bias: Tensor | None) -> Node:
    """``W h + b``, worked out at once where h does not move."""
    if isinstance(h, Constant):
        return Constant(linear(h.value, weight, bias))
    return Linear(h, weight, bias)


def _add(x: Node, h: Node | None, weight: Tensor) -> Node:
    """``x + W h``, where x is the projected input."""
    if h is None:
        return Sum([x])
    projected = _linear(h, weight, None)
    if isinstance(projected, Constant):
        return Sum([x], projected.value)
    return Sum([x, projected])


def rnn_step(kind: str, x: Node, state: State, weights: Weights) -> State:
    """One step of a vanilla RNN; ``kind`` is ``"tanh"`` or ``"relu"``."""
    return State(Activation(kind, _add(x, state.h, weights.w_hh)))


def lstm_step(x: Node, state: State, weights: Weights) -> State:
    """One step of an LSTM."""
    hidden = weights.w_hh.shape[1]
    i, f, g, o = split(_add(x, state.h, weights.w_hh), hidden, hidden, hidden, hidden)
    c: Node = Gated(SIGMOID_TANH, i, g)
    if state.c is not None:
        c = Sum([Gated(MEMORY, f, state.c), c])
    return State(Gated(SIGMOID_TANH, o, c), c)


def gru_step(x: Node, state: State, weights: Weights) -> State:
    """One step of a GRU; ``state.h`` is given, zeros as a ``Constant``."""
    h = state.h
    if h is None:
        raise TypeError("gru_step needs a state; pass Constant(zeros).")
    hidden = weights.w_hh.shape[1]
    w_rz, w_n = torch.split(weights.w_hh, [2 * hidden, hidden])
    x_rz, x_n = split(x, 2 * hidden, hidden)
    r, z = split(_add(x_rz, h, w_rz), hidden, hidden)
    q = _linear(h, w_n, weights.bias_q)
    n = Sum([x_n, Gated(RESET, r, q)])
    return State(Blend(z, n, h))


def unroll(
    kind: str, inputs: Sequence[Node], state: State, weights: Weights
) -> tuple[list[Node], Node | None]:
    """Walk a layer through its projected inputs.

    Args:
        kind: ``"tanh"``, ``"relu"``, ``"lstm"`` or ``"gru"``.
        inputs: ``W_ih x[t]`` and biases for every frame.
        state: before the first frame.
        weights: of the layer.

    Returns:
        The hidden state of every frame, and the last cell state of an LSTM.
    """
    gated = {"lstm": lstm_step, "gru": gru_step}
    step = gated.get(kind) or partial(rnn_step, kind)
    hidden: list[Node] = []
    for x in inputs:
        state = step(x, state, weights)
        hidden.append(cast(Node, state.h))
    return hidden, state.c
