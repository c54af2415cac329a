"""How gates, blends and the greater of two tensors act on nodes."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.affine import Negative
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.single_reads import Affine
from popqorn_train.operations.arithmetic import add, product, subtract
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.reductions import largest_over
from popqorn_train.operations.registry import module, operation, unsupported
from popqorn_train.operations.shapes import broadcast, lifted, ndim, pieces
from popqorn_train.tracing.steps import Step


@operation("maximum")
def maximum(lifter: Lifter, step: Step, x: Any, y: Any) -> Node:
    """The greater of two, entry by entry."""
    if isinstance(x, Node) and isinstance(y, Node):
        x, y = (broadcast(lifter, step, part) for part in (x, y))

        def pair(x: Tensor, y: Tensor) -> Tensor:
            return torch.stack([x, y], -1)

        both = Affine(pair, [x, y], (*x.shape, 2), x.batch_axis)
        return largest_over(step, both, ndim(both) - 1, keepdim=False)
    return _floored(lifter, step, x, y) if isinstance(x, Node) else _floored(lifter, step, y, x)


def _floored(lifter: Lifter, step: Step, x: Node, least: Any) -> Node:
    """``max(x, least) = relu(x - least) + least``, and x where there is no least."""
    least = torch.as_tensor(least, dtype=lifter.dtype, device=lifter.device)
    finite = torch.where(least.isinf(), torch.zeros_like(least), least)
    above = Activation("relu", lifted(lifter, step, torch.sub, (x, finite), {}))
    if not lifter.choose(step, "infinite", lambda: bool(least.isinf().any())):
        return lifted(lifter, step, torch.add, (above, finite), {})

    def choose(x: Tensor, above: Tensor) -> Tensor:
        found = torch.where(least == math.inf, least, above + finite)
        return torch.where(least == -math.inf, x, found)

    return lifted(lifter, step, choose, (broadcast(lifter, step, x), above), {})


@operation("minimum")
def minimum(lifter: Lifter, step: Step, x: Any, y: Any) -> Node:
    """The lesser of two, entry by entry."""
    x, y = (Negative(part) if isinstance(part, Node) else -part for part in (x, y))
    return Negative(maximum(lifter, step, x, y))


def clamped(lifter: Lifter, step: Step, x: Any, least: Any, most: Any) -> Any:
    """Cut x to between two ends, numbers or tensors; None for no end."""
    if least is not None:
        x = maximum(lifter, step, x, least)
    return x if most is None else minimum(lifter, step, x, most)


@operation("clamp_min")
def _clamp_min(lifter: Lifter, step: Step, x: Any, min: Any) -> Node:
    return maximum(lifter, step, x, min)


@operation("clamp_max")
def _clamp_max(lifter: Lifter, step: Step, x: Any, max: Any) -> Node:
    return minimum(lifter, step, x, max)


@operation("lerp")
def _blend(lifter: Lifter, step: Step, x: Any, y: Any, weight: Any) -> Node:
    """``(1 - weight) x + weight y``."""
    if isinstance(weight, Node):
        moves = isinstance(x, Node) or isinstance(y, Node)
        gap = subtract(lifter, step, y, x) if moves else y - x
        return add(lifter, step, x, _times(lifter, step, weight, gap))
    x, y = _times(lifter, step, x, 1 - weight), _times(lifter, step, y, weight)
    return add(lifter, step, x, y)


def _times(lifter: Lifter, step: Step, x: Any, y: Any) -> Any:
    if isinstance(x, Node) and isinstance(y, Node):
        return product(lifter, step, x, y)
    moves = isinstance(x, Node) or isinstance(y, Node)
    return lifted(lifter, step, torch.mul, (x, y), {}) if moves else x * y


@operation("glu")
def _gated_half(lifter: Lifter, step: Step, x: Node, dim: int = -1) -> Node:
    """The first half of an axis times the sigmoid of the second."""
    dim = dim % ndim(x)
    if dim == x.batch_axis:
        raise unsupported(step, "a glu over the batch")
    half = x.shape[dim - (dim > x.batch_axis)] // 2
    value, gate = pieces(x, [(0, half), (half, half)], dim)
    return product(lifter, step, value, Activation("sigmoid", gate))


@module(nn.GLU)
def _glu_module(lifter: Lifter, step: Step, layer: nn.GLU, x: Node) -> Node:
    dim = layer.dim
    if step.merged:  # counted without the axis that batch and rows have apart
        dim = dim % (ndim(x) - 1) + 1
        if dim == 1:
            raise unsupported(step, "a glu over batch and time as one axis")
    return _gated_half(lifter, step, x, dim)
