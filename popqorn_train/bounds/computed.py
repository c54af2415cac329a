"""The graph of a network as it is computed in float32.

Every node v of a graph over the real numbers gets a bound of how far the computed value is from the
one of the graph, where both read the same:

    drift(v)  =  error of the operation itself  +  |coefficients| drift(inputs)

An affine node hands the drift of its inputs on. Where a nonlinear node reads v, the graph gets a
node ``v + e`` with ``|e| <= drift(v)`` between the two: the computed value is among those that it
can have, and from there on the drift is 0 again. So every method bounds what is computed, whatever
it does with a graph, and rounding before a layer reaches the logits by the slopes of the bounds,
not by the worst case of every layer. Ranges for the errors are intervals, of the graph with these
nodes in it.

B: batch.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.affine import Linear, Negative
from popqorn_train.bounds.arithmetic_error import FLOAT32, Arithmetic, Seen, inexact, rule_of
from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.concatenation import Concat, Projected, Select, Stack
from popqorn_train.bounds.node import Logits, Node, Nonlinear, Root
from popqorn_train.bounds.outline import from_ball
from popqorn_train.bounds.slices import Frame, NodeSlice, whole
from popqorn_train.bounds.tape import Tape
from popqorn_train.errors import UnsupportedModelError
from popqorn_train.perturbations.region import Bounds, dot
from popqorn_train.relaxations.lines import Lines

_EXACT = Root, Logits, Negative, Stack, Concat, Select, NodeSlice  # numbers as they are


@dataclass(frozen=True, eq=False)
class Drifted:
    """``x + e``, as the function of an activation.

    Attributes:
        drift: ``(B or 1, *shape)`` no absolute value of e is greater.
    """

    drift: Tensor

    def range(self, bounds: Bounds) -> Bounds:
        """The range, wider by the drift."""
        return Bounds(bounds.lower - self.drift, bounds.upper + self.drift)

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """Parallel lines, which no others beat."""
        one = torch.ones_like(lower)
        drift = self.drift.expand_as(lower)
        return Lines(one, -drift, one, drift)


class Computed(Activation):
    """The computed value of a node.

    Args:
        x: node.
        drift: how far from x it may be, ``(B or 1, *shape)``.
    """

    drifts = True

    def __init__(self, x: Node, drift: Tensor) -> None:
        super().__init__(Drifted(drift), x)
        self.drift = drift

    def backward(self, slope: Tensor, tape: Tape, relaxation: Lines | None) -> Tensor:
        """The slope, and what the drift is worth at most."""
        tape.add(self.inputs[0], slope)
        drift = self.drift[:, : slope.shape[2]] if slope.ndim > 3 else self.drift
        return -dot(slope.abs(), drift)


class _Rewriting:
    """Copies of nodes, with nodes for rounding among them.

    Args:
        nodes: of a graph, first to last.
        arithmetic: that the network is computed in.
    """

    def __init__(self, nodes: list[Node], arithmetic: Arithmetic) -> None:
        self._arithmetic = arithmetic
        self._copies: dict[Node, Node] = {}
        self._ranges: dict[Node, Bounds] = {}
        self._drifts: dict[Node, Tensor] = {}
        self._read = {
            whole(parent)
            for node in nodes
            if isinstance(node, Nonlinear | Logits)
            for parent in node.inputs
        }

    def add(self, node: Node) -> Node:
        """Copy a node whose inputs are copied."""
        made = self._copied(node)
        inputs = [self._copies[parent] for parent in node.inputs]
        self._ranges[made] = self._range(made, [self._ranges[parent] for parent in inputs])
        drift = self._drift(made, inputs)
        if node in self._read and not isinstance(node, _EXACT[:2]):
            between = Computed(made, drift)
            self._ranges[between] = between.range(self._ranges[made])
            made, drift = between, torch.zeros_like(drift)
        self._copies[node], self._drifts[made] = made, drift
        return made

    def _copied(self, node: Node) -> Node:
        inputs = tuple(self._copies[parent] for parent in node.inputs)
        if isinstance(node, Projected) and isinstance(inputs[0], Computed):
            return Frame(inputs[0], node.t)
        made = copy.copy(node)
        Node.__init__(made, inputs, node.shape, node.batch_axis)
        made.time, made.region = node.time, node.region
        made.affine = made.affine and not isinstance(node, Nonlinear)
        if isinstance(made, Projected):
            assert isinstance(inputs[0], Linear)
            made.layer = inputs[0]
        return made

    @staticmethod
    def _range(node: Node, inputs: list[Bounds]) -> Bounds:
        known = node.range_from_ball() if from_ball(node) else None
        return node.range(*inputs) if known is None else known

    def _drift(self, node: Node, inputs: list[Node]) -> Tensor:
        """How far the computed value may be from that of a node, ``(B, *shape)``."""
        before = [self._drifts[parent] for parent in inputs]
        if isinstance(node, _EXACT):
            moved = [Bounds(-drift, drift) for drift in before]
            return node.range(*moved).upper if moved else torch.zeros_like(self._ranges[node].lower)
        rule = rule_of(node)
        if rule is None or inexact(node):
            raise unknown_rounding(node, worked_out=rule is not None)
        pairs = zip(inputs, before, strict=True)
        read = [Drifted(drift).range(self._ranges[parent]) for parent, drift in pairs]
        own = rule(Seen(node, read, self._ranges[node], self._arithmetic))
        if isinstance(node, Nonlinear) or not before:
            return own
        still = node.size(None, *[torch.zeros_like(drift) for drift in before])
        return own + (node.size(None, *before) - still) * (1 + 1e-9)


def unknown_rounding(node: Node, *, worked_out: bool) -> UnsupportedModelError:
    """The error for a node of which nothing is known in float32."""
    why = "has constants that forward works out" if worked_out else "has no rule"
    return UnsupportedModelError(
        f"`confirm='deployed'` cannot bound the rounding of forward: a {type(node).__name__} node "
        f"of shape {node.shape} {why}. Use confirm='float64', which certifies the network over the "
        "real numbers."
    )


def deployed(output: Logits, arithmetic: Arithmetic = FLOAT32) -> Logits:
    """The logits as they are computed.

    Args:
        output: logits over the real numbers.
        arithmetic: that they are computed in.

    Raises:
        UnsupportedModelError: a node of which it is not known how far rounding moves it.
    """
    nodes = ancestors(output)
    rewriting = _Rewriting(nodes, arithmetic)
    for node in nodes[:-1]:
        last = rewriting.add(node)

    def of(pick: Callable[[Tensor], Logits], chosen: Tensor) -> Logits:
        return deployed(pick(chosen), arithmetic)

    return Logits(last, partial(of, output.pick), partial(of, output.anew))
